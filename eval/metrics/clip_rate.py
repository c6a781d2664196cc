"""The share of values that are stuck at an end of the range where the original's are not.

Source: what a clamp behind a decoder hides: an output whose scale or offset is off runs into 0 or 1.
Differs: a value that the original has within 4/255 of the same end is no clipping, so a white sky costs nothing.
Cost: one pass over the pixels.
"""

from jaxtyping import Float
from torch import Tensor

from eval.metrics import _images

UNIT = ""
HIGHER_IS_BETTER = False
RANGE = (0.0, 1.0)
NEEDS_NET = False
TAKES = "images"
DEFINITION = "share of values that round to 0 or 255 of 255 where the original is 4/255 or more inside of that end"
END = 0.5 / 255  # what rounds to the end in eight bits
INSIDE = 4 / 255


def clip_rate(reference: Tensor, candidate: Tensor) -> Float[Tensor, " n"]:
    """The share of newly clipped values of each pair of two batches [n, 3, h, w] in [0, 1]."""
    _images.check_pair(reference, candidate)
    x, y = reference.double(), candidate.double()
    low = (y <= END) & (x >= INSIDE)
    high = (y >= 1 - END) & (x <= 1 - INSIDE)
    return (low | high).double().mean((1, 2, 3)).to(_images.result_dtype(reference))


def measure(reference: Tensor, candidate: Tensor, *, net: str | None = None) -> Float[Tensor, " n"]:
    """The share of newly clipped values of each pair; `net` is not used."""
    return clip_rate(reference, candidate)
