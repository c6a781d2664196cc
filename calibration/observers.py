"""Streaming histograms of activations, and the clipping ranges that quantizers choose from them.

Source: the range choosers are those of Nagel et al. 2021 (arXiv:2106.08295), section 3.1; error is minimised over a
grid of ranges as in Banner et al. 2019 (arXiv:1810.05723), but on the histogram and for an affine grid.
Differs: bins are powers of two wide and lie on multiples of their width, so the histogram is a function of the values
alone: merging adds counts, widening adds two bins into one, and neither the order nor the batches change a bit. The
quantization error is the exact integral over values spread evenly in each bin, rounding and clipping included.
Cost: O(bins) memory per tensor for any number of batches; `mse` tries some 1,300 ranges, 10 ms.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor

from calibration.errors import DataError

BINS = 2048
HALF = (
    BINS // 2
)  # a window starts at a multiple of half its width: the finest bins that still order-free merging allows
JOINED = 8  # bins taken as one while a range is searched for roughly
CHUNK = 1 << 16  # values binned at a time: what stays in a cache on the way from value to count
FINEST_BITS = 22  # bins no finer than this many bits below the largest value: float32 has no more to tell
SMALLEST_EXPONENT = -140
SMALLEST_WIDTH = 2.0**-96  # of a range: below it, scales leave float32's normal numbers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histogram:
    """Counts of values in equal bins over [low, high), with the exact extremes."""

    counts: Int64[Tensor, " 2048"]
    low: float
    high: float
    minimum: float
    maximum: float
    count: int  # of what was counted: fewer than all values where `most` said so

    @property
    def width(self) -> float:
        """Width of one bin, a power of two."""
        return (self.high - self.low) / BINS


class Range(NamedTuple):
    """A clipping range that holds zero and is wider than zero."""

    low: float
    high: float


def start(tensor: Num[Tensor, "..."], *, most: int | None = None, name: str = "the tensor") -> Histogram:
    """The histogram of one tensor, counted in float32.

    Args:
        tensor: Any shape, any numbers.
        most: Count at most so many values, evenly spread over the tensor; the extremes are those of all values.
        name: What to call the tensor in a message.

    Raises:
        DataError: the tensor is empty, or holds NaN or infinity; the message has `name`.
    """
    values = _flat(tensor.detach())
    if values.numel() == 0:
        raise DataError(f"{name} is empty; run the module on inputs with at least one value")
    values = values.float()
    minimum, maximum = (float(extreme) for extreme in values.aminmax())
    if not (math.isfinite(minimum) and math.isfinite(maximum)):
        raise DataError(f"{name} holds NaN or infinity; check the weights and the inputs of the module")
    exponent, first = _window(minimum, maximum)
    counts = torch.zeros(BINS, dtype=torch.int64)
    for chunk in _thinned(values, most).split(CHUNK):
        # Multiplying by a power of two is exact, and so is all that follows; beyond, float32 might over- or underflow.
        exact = chunk if -100 <= exponent <= 0 else chunk.double()
        bins = (exact * 2.0**-exponent).floor_().sub_(first).to(torch.int32)  # counted ten times as fast as int64
        counts += torch.bincount(bins, minlength=BINS).cpu()
    return _histogram(counts, exponent, first, minimum, maximum)


def update(histogram: Histogram, tensor: Num[Tensor, "..."], *, name: str = "the tensor") -> Histogram:
    """The histogram with the values of one more tensor.

    Raises:
        DataError: as `start`.
    """
    return merge(histogram, start(tensor, name=name))


def merge(a: Histogram, b: Histogram) -> Histogram:
    """The histogram of both together: exactly what one pass over all values would have counted."""
    minimum, maximum = min(a.minimum, b.minimum), max(a.maximum, b.maximum)
    exponent, first = _window(minimum, maximum)
    counts = torch.zeros(BINS, dtype=torch.int64)
    for part in (a, b):
        own_exponent = _exponent(part.width)
        bins = torch.arange(BINS) + round(part.low / part.width)
        coarser = bins >> min(exponent - own_exponent, 62)
        filled = part.counts > 0
        counts.index_add_(0, (coarser - first)[filled], part.counts[filled])
    return _histogram(counts, exponent, first, minimum, maximum)


def min_max(histogram: Histogram) -> Range:
    """From the smallest to the largest value."""
    return _range(histogram.minimum, histogram.maximum)


def percentile(histogram: Histogram, p: float) -> Range:
    """The narrowest bin edges that leave at most (100 - p) percent of the values beyond each end.

    Raises:
        ValueError: p is not in (50, 100].
    """
    if not 50 < p <= 100:
        raise ValueError(f"p is {p}; it must be above 50 and at most 100")
    allowed = int((100 - p) / 100 * histogram.count + 1e-6)  # 0.1 % of 2000 is 2, in floating point a little less
    below = int((histogram.counts.cumsum(0) <= allowed).sum())
    above = int((histogram.counts.flip(0).cumsum(0) <= allowed).sum())
    low = histogram.low + below * histogram.width
    high = histogram.high - above * histogram.width
    return _range(max(low, histogram.minimum), min(high, histogram.maximum))


def mse(histogram: Histogram, bits: int = 8) -> Range:
    """The clipping range whose unsigned affine grid of 2^bits levels has the least expected squared error.

    A coarse grid of shrunken ends (both, each by up to 2^-8) on bins joined `JOINED` at a time, then the whole range
    and three finer grids around the best, on all bins.

    Raises:
        ValueError: bits is not in [2, 16].
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits is {bits}; it must be from 2 to 16")
    full = min_max(histogram)
    if histogram.minimum == histogram.maximum:
        return full  # one value: an end of the range, which every grid holds
    fractions, step = 2.0 ** (-torch.arange(33, dtype=torch.float64) / 4), 2.0**0.25
    best = torch.ones(2, dtype=torch.float64)
    for joined in (JOINED, 1, 1, 1):
        below = _shrunk(best[0], fractions) if full.low < 0 else torch.ones(1, dtype=torch.float64)
        above = _shrunk(best[1], fractions) if full.high > 0 else torch.ones(1, dtype=torch.float64)
        pairs = torch.cat([torch.cartesian_prod(below, above), torch.ones(1, 2, dtype=torch.float64)])
        errors = expected_mse(histogram, pairs[:, 0] * full.low, pairs[:, 1] * full.high, bits, joined=joined)
        best = pairs[int(errors.argmin())]
        fractions = step ** torch.linspace(-1, 1, 9, dtype=torch.float64)
        step = step**0.25
    return _range(float(best[0]) * full.low, float(best[1]) * full.high)


def expected_mse(
    histogram: Histogram, low: Float[Tensor, " n"], high: Float[Tensor, " n"], bits: int, *, joined: int = 1
) -> Float[Tensor, " n"]:
    """Mean squared error of quantizing the histogram's values on each of n ranges (low <= 0 <= high, low < high).

    The grid is that of hardware: scale (high - low) / (2^bits - 1), zero point round(-low / scale). With `joined` bins
    taken as one it is rougher, and quicker.
    """
    counts, width = histogram.counts.view(-1, joined).sum(1), histogram.width * joined
    filled = counts.nonzero().squeeze(1)
    weights = counts[filled].double() / histogram.count
    left = histogram.low + filled.double() * width
    right = (left + width).clamp(max=histogram.maximum)
    left = left.clamp(min=histogram.minimum)
    # The minimum or maximum sits on its bin's edge: take the whole bin, whose width is far below any scale.
    right = torch.where(right > left, right, left + width)
    parts = [
        ((_error_integral(right, a, b, bits) - _error_integral(left, a, b, bits)) / (right - left)) @ weights
        for a, b in zip(low.double().split(128), high.double().split(128), strict=True)
    ]
    return torch.cat(parts)


def _error_integral(
    edges: Float[Tensor, " e"], low: Float[Tensor, " n"], high: Float[Tensor, " n"], bits: int
) -> Float[Tensor, "n e"]:
    """Antiderivative, at each edge, of (t - quantized t)^2 on the grid of each range."""
    levels = 2**bits - 1
    scale = ((high - low) / levels)[:, None]
    zero_point = (-low[:, None] / scale).round().clamp(0, levels)
    steps = edges / scale
    nearest = torch.minimum(torch.maximum(steps.round(), -zero_point), levels - zero_point)
    return scale.pow(3) * (nearest / 12 + (steps - nearest).pow(3) / 3)


def _flat(tensor: Tensor) -> Tensor:
    """All values, as they lie in memory where channels come last: no copy either way."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(-1)


def _thinned(values: Tensor, most: int | None) -> Tensor:
    """Every so manyth value, in step with no axis of the tensor, so that no channel or column is passed over."""
    count = values.numel()
    if most is None or count <= most:
        return values
    step = -(-count // most)
    while math.gcd(step, count) > 1:
        step += 1
    return values[::step]


def _shrunk(best: Float[Tensor, ""], fractions: Float[Tensor, " f"]) -> Float[Tensor, " distinct"]:
    return (best * fractions).clamp(max=1.0).unique()


def _exponent(power_of_two: float) -> int:
    return math.frexp(power_of_two)[1] - 1


def _window(minimum: float, maximum: float) -> tuple[int, int]:
    """Exponent of the bin width and index of the first bin, from the extremes alone.

    The finest width for which two half windows in a row, aligned to half a window, hold both extremes. Wider extremes
    never ask for finer bins, and a coarser window starts on a bin of the finer one: so two bins go into one.
    """
    largest = max(-minimum, maximum)
    exponent = max(_exponent(largest) - FINEST_BITS if largest > 0 else SMALLEST_EXPONENT, SMALLEST_EXPONENT)
    while True:
        first, last = (math.floor(extreme * 2.0**-exponent) // HALF for extreme in (minimum, maximum))
        if last - first <= 1:
            return exponent, first * HALF
        exponent += 1


def _histogram(counts: Tensor, exponent: int, first: int, minimum: float, maximum: float) -> Histogram:
    width = 2.0**exponent
    return Histogram(
        counts=counts,
        low=first * width,
        high=(first + BINS) * width,
        minimum=minimum,
        maximum=maximum,
        count=int(counts.sum()),
    )


def _range(low: float, high: float) -> Range:
    """With zero inside. A tensor of zeros (or of values too small for a float32 scale) gets a width of one."""
    low, high = min(0.0, low), max(0.0, high)
    return Range(low=low, high=high if high - low >= SMALLEST_WIDTH else low + 1.0)
