"""Quantized weights and activations: real = (integer - zero_point) * scale, or an entry of a table, or 16-bit floats.

Source: Jacob et al. 2018, arXiv:1712.05877, section 2.1; Krishnamoorthi 2018, arXiv:1806.08342.
Differs: a channel of zeros, or of one constant, keeps a finite scale (by the book it is 0 / 0).

Weights are symmetric signed integers (zero point 0, the lowest code unused so that the range is symmetric), or codes
into a palette, or half-precision numbers; activations are unsigned integers with a zero point, so that a real 0 is
exact (padding stays padding).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int

MIN_SCALE = 2.0**-60  # far below any weight, far above the smallest normal float32


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor: weight [o, ...] -> scale [1]."""


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale per output channel (axis 0): weight [o, ...] -> scale [o]."""


@dataclass(frozen=True, slots=True)
class PerGroup:
    """One scale per `size` consecutive inputs of an output channel: weight [o, i, kh, kw] -> scale [o, i*kh*kw/size].

    The last group is shorter when `size` does not divide the inputs of a channel.
    """

    size: int


@dataclass(frozen=True, slots=True)
class Palette:
    """A table of 2^bits free values per `channels` output channels in a row (None: one table for the whole tensor).

    Codes run from -2^(bits-1): code c stands for entry c + 2^(bits-1). Tables are [tables, 2^bits]; the last one is of
    fewer channels when `channels` does not divide them.
    """

    channels: int | None = None


@dataclass(frozen=True, slots=True)
class Half:
    """No grid at all: each weight is a 16-bit floating-point number of its own."""

    dtype: Literal["float16", "bfloat16"]


Granularity = PerTensor | PerChannel | PerGroup | Palette | Half


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight:
    """What is stored for each weight, in the weight's shape, and what it is read with.

    | granularity | qdata | scale |
    |---|---|---|
    | PerTensor, PerChannel, PerGroup | int8 in [-qmax, qmax] | scales: [1], [o], [o, groups] |
    | Palette | int8, codes | tables: [tables, 2^bits] |
    | Half | float16 or bfloat16, the weights | nothing: [0] |
    """

    qdata: torch.Tensor
    scale: torch.Tensor  # float32
    bits: int
    granularity: Granularity


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationRange:
    """How one activation tensor is quantized, per tensor: unsigned integers of `bits` bits."""

    scale: float
    zero_point: int
    bits: int = 8


def scale_shape(shape: Sequence[int], *, bits: int, granularity: Granularity) -> tuple[int, ...]:
    """The shape of the scales (or tables) of a weight of this shape."""
    match granularity:
        case PerTensor():
            return (1,)
        case PerChannel():
            return (shape[0],)
        case PerGroup(size=size):
            return (shape[0], -(-math.prod(shape[1:]) // size))
        case Palette(channels=channels):
            return (1 if channels is None else -(-shape[0] // channels), 2**bits)
        case Half():
            return (0,)


def stored_bytes(shape: Sequence[int], *, bits: int, granularity: Granularity) -> int:
    """Bytes of a weight on disk: codes packed without a gap, scales or tables in float32."""
    codes = -(-math.prod(shape) * bits // 8)
    return codes + 4 * math.prod(scale_shape(shape, bits=bits, granularity=granularity))


def signed_qmax(bits: int) -> int:
    """127 for 8 bits, 7 for 4, 1 for 2."""
    return 2 ** (bits - 1) - 1


def _grouped(weight: torch.Tensor, size: int) -> torch.Tensor:
    """[o, ...] -> [o, groups, size], the last group padded with zeros."""
    rows = weight.reshape(weight.shape[0], -1)
    padding = -rows.shape[1] % size
    return torch.nn.functional.pad(rows, (0, padding)).reshape(weight.shape[0], -1, size)


def _broadcast(scale: torch.Tensor, weight: torch.Tensor, granularity: Granularity) -> torch.Tensor:
    """The scale of every single weight, broadcastable to the weight's shape."""
    match granularity:
        case PerTensor():
            return scale.reshape(())
        case PerChannel():
            return scale.reshape(-1, *[1] * (weight.dim() - 1))
        case PerGroup(size=size):
            inputs = weight[0].numel()
            return scale.repeat_interleave(size, dim=1)[:, :inputs].reshape(weight.shape)
        case _:
            raise TypeError(f"{granularity} has no scales")


def absmax_scale(weight: Float[torch.Tensor, "..."], *, bits: int, granularity: Granularity) -> torch.Tensor:
    """The scale that maps the largest magnitude of each tensor, channel or group to the largest integer; float32."""
    match granularity:
        case PerTensor():
            peak = weight.abs().amax().reshape(1)
        case PerChannel():
            peak = weight.abs().reshape(weight.shape[0], -1).amax(dim=1)
        case PerGroup(size=size):
            peak = _grouped(weight, size).abs().amax(dim=2)
        case _:
            raise TypeError(f"{granularity} has no scales")
    return (peak.float() / signed_qmax(bits)).clamp_min(MIN_SCALE)


def round_to_scale(
    weight: Float[torch.Tensor, "..."], scale: torch.Tensor, *, bits: int, granularity: Granularity
) -> QuantizedWeight:
    """Round to nearest (ties to even) on a given scale, clipped to [-qmax, qmax]."""
    qmax = signed_qmax(bits)
    qdata = (weight / _broadcast(scale, weight, granularity)).round().clamp(-qmax, qmax).to(torch.int8)
    return QuantizedWeight(qdata=qdata, scale=scale.float(), bits=bits, granularity=granularity)


def dequantize(weight: QuantizedWeight) -> Float[torch.Tensor, "..."]:
    """What is stored back to float32, in the weight's shape."""
    match weight.granularity:
        case Half():
            return weight.qdata.float()
        case Palette(channels=channels):
            return _look_up(weight, weight.qdata.shape[0] if channels is None else channels)
        case _:
            return weight.qdata.float() * _broadcast(weight.scale, weight.qdata, weight.granularity)


def _look_up(weight: QuantizedWeight, channels: int) -> torch.Tensor:
    entries = weight.qdata.to(torch.int32) + 2 ** (weight.bits - 1)
    parts = zip(weight.scale, entries.split(channels), strict=True)
    return torch.cat([table[part] for table, part in parts])


def dequantized_rows(weight: QuantizedWeight, rows: Int[torch.Tensor, "..."]) -> Float[torch.Tensor, "... d"]:
    """Some rows of a table [rows, d] in float32, the others left as they are stored."""
    picked = rows.reshape(-1)
    scale, granularity = weight.scale, weight.granularity
    match granularity:
        case PerChannel() | PerGroup():
            scale = scale[picked]
        case Palette(channels=int(channels)):
            scale, granularity = scale[picked // channels], Palette(1)
    part = QuantizedWeight(qdata=weight.qdata[picked], scale=scale, bits=weight.bits, granularity=granularity)
    return dequantize(part).reshape(*rows.shape, weight.qdata.shape[1])


def clipped_scale(weight: torch.Tensor, *, bits: int, granularity: Granularity, steps: int = 40) -> torch.Tensor:
    """The scale with the least squared error, of `steps` clipping points from 40% to 100% of the largest magnitude.

    Source: the grid search of OMSE (Choukroun et al. 2019, arXiv:1902.06822), on each channel or group by itself.
    """
    full = absmax_scale(weight, bits=bits, granularity=granularity)
    best, least = full, _squared_error(weight, full, bits, granularity)
    for step in range(1, steps):
        scale = full * (1.0 - 0.6 * step / steps)
        error = _squared_error(weight, scale, bits, granularity)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def _squared_error(weight: torch.Tensor, scale: torch.Tensor, bits: int, granularity: Granularity) -> torch.Tensor:
    """Rounding error summed over what shares one scale; the scale's shape."""
    rounded = dequantize(round_to_scale(weight, scale, bits=bits, granularity=granularity))
    error = (rounded - weight).square()
    match granularity:
        case PerTensor():
            return error.sum().reshape(1)
        case PerChannel():
            return error.reshape(weight.shape[0], -1).sum(dim=1)
        case PerGroup(size=size):
            return _grouped(error, size).sum(dim=2)
        case _:
            raise TypeError(f"{granularity} has no scales")


def activation_range(low: float, high: float, *, bits: int = 8) -> ActivationRange:
    """The affine grid over [low, high], widened to hold 0; finite for a constant tensor too.

    Raises:
        ValueError: a bound is not finite or low > high.
    """
    if not (-float("inf") < low <= high < float("inf")):
        raise ValueError(f"activation range [{low}, {high}] is not a finite interval")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(torch.tensor(max((high - low) / (2**bits - 1), MIN_SCALE), dtype=torch.float32))
    zero_point = round(-low / scale)
    return ActivationRange(scale=scale, zero_point=min(max(zero_point, 0), 2**bits - 1), bits=bits)


def fake_quantize(x: torch.Tensor, grid: ActivationRange) -> torch.Tensor:
    """Round to the grid and back, as a runtime's quantize and dequantize do (ties to even, clipped)."""
    integers = (x / grid.scale).round() + grid.zero_point
    return (integers.clamp(0, 2**grid.bits - 1) - grid.zero_point) * grid.scale
