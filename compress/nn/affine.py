"""Affine quantization: real = (integer - zero_point) * scale.

Source: Jacob et al. 2018, arXiv:1712.05877, section 2.1; Krishnamoorthi 2018, arXiv:1806.08342.
Differs: a channel of zeros, or of one constant, keeps a finite scale (by the book it is 0 / 0).

Weights are symmetric signed integers (zero point 0, the lowest code unused so that the range is symmetric);
activations are unsigned integers with a zero point, so that a real 0 is exact (padding stays padding).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8

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


Granularity = PerTensor | PerChannel | PerGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight:
    """Integers and their scales. `qdata` has the weight's shape; `scale` is [1], [o] or [o, groups]."""

    qdata: torch.Tensor  # int8, in [-qmax, qmax]
    scale: torch.Tensor  # float32
    bits: int
    granularity: Granularity


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationRange:
    """How one activation tensor is quantized, per tensor: unsigned integers of `bits` bits."""

    scale: float
    zero_point: int
    bits: int = 8


def scale_count(weight: torch.Tensor, granularity: Granularity) -> int:
    """How many scales a weight has."""
    match granularity:
        case PerTensor():
            return 1
        case PerChannel():
            return weight.shape[0]
        case PerGroup(size=size):
            return weight.shape[0] * -(-weight[0].numel() // size)


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


def absmax_scale(weight: Float[torch.Tensor, "..."], *, bits: int, granularity: Granularity) -> torch.Tensor:
    """The scale that maps the largest magnitude of each tensor, channel or group to the largest integer; float32."""
    match granularity:
        case PerTensor():
            peak = weight.abs().amax().reshape(1)
        case PerChannel():
            peak = weight.abs().reshape(weight.shape[0], -1).amax(dim=1)
        case PerGroup(size=size):
            peak = _grouped(weight, size).abs().amax(dim=2)
    return (peak.float() / signed_qmax(bits)).clamp_min(MIN_SCALE)


def round_to_scale(
    weight: Float[torch.Tensor, "..."], scale: torch.Tensor, *, bits: int, granularity: Granularity
) -> QuantizedWeight:
    """Round to nearest (ties to even) on a given scale, clipped to [-qmax, qmax]."""
    qmax = signed_qmax(bits)
    qdata = (weight / _broadcast(scale, weight, granularity)).round().clamp(-qmax, qmax).to(torch.int8)
    return QuantizedWeight(qdata=qdata, scale=scale.float(), bits=bits, granularity=granularity)


def dequantize(weight: QuantizedWeight) -> Float[torch.Tensor, "..."]:
    """Integers back to float32, in the weight's shape."""
    return weight.qdata.float() * _broadcast(weight.scale, weight.qdata, weight.granularity)


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


def pack_int4(values: Int8[torch.Tensor, " n"]) -> torch.Tensor:
    """Two signed 4-bit integers per byte, the first in the low half; uint8 [ceil(n / 2)]."""
    codes = torch.nn.functional.pad(values, (0, values.numel() % 2)).to(torch.int16) & 0xF
    return (codes[0::2] | (codes[1::2] << 4)).to(torch.uint8)


def unpack_int4(packed: torch.Tensor, count: int) -> Int8[torch.Tensor, " n"]:
    """The first `count` signed 4-bit integers of `pack_int4`'s bytes."""
    codes = torch.stack([packed & 0xF, packed >> 4], dim=1).reshape(-1)[:count].to(torch.int8)
    return torch.where(codes > 7, codes - 16, codes)
