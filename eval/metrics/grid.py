"""The 8-pixel grid that decoders leave: what repeats every 8 pixels, and steps where 8x8 patches meet.

The error e = candidate - reference is looked at, so that a picture of a fence costs nothing. Two parts, in squared
values, are added and the root is given in steps of 8 bits:

pattern  the power of the 8x8 template that all patches have in common (patch means taken out, e cut to +-16/255). The
         part that chance leaves in a mean of k patches, variance / k, is taken off. A checkerboard of amplitude a: a.
steps    the mean squared difference of neighbours across the lines between patches, less that of the seven other
         columns (rows), a quarter of the sum over both axes, differences cut to +-16/255. Flat patches that are each
         off by an amount of standard deviation a: a.

Source: own; the fold by phase is that of Wang, Sheikh and Bovik 2002 (no-reference JPEG quality, ICIP), eq. (1) to (3).
Differs: each part is unbiased, then 0 where it comes out negative; cutting keeps one strong edge that happens to lie
on the grid from speaking for the picture.
Cost: a few passes over the pixels.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from eval.metrics import _images

UNIT = "/255"
HIGHER_IS_BETTER = False
RANGE = (0.0, 255.0)
NEEDS_NET = False
TAKES = "images"
DEFINITION = "power of the 8x8 template plus excess squared steps between patches of the error, cut at 16/255; root"
PERIOD = 8
SMALLEST = 3 * PERIOD
CUT = 16 / 255


def grid(reference: Tensor, candidate: Tensor) -> Float[Tensor, " n"]:
    """Grid artefacts of each pair of two batches [n, 3, h, w] in [0, 1]; the grid starts at the upper left corner."""
    _images.check_pair(reference, candidate, smallest=SMALLEST)
    height, width = (side - side % PERIOD for side in reference.shape[2:])
    error = (candidate.double() - reference.double())[..., :height, :width]
    power = _pattern(error).clamp_min(0) + _steps(error).clamp_min(0)
    return (255 * power.sqrt()).to(_images.result_dtype(reference))


def _pattern(error: Tensor) -> Tensor:
    patches = error.unflatten(3, (-1, PERIOD)).unflatten(2, (-1, PERIOD))  # [n, 3, rows, 8, columns, 8]
    patches = (patches - patches.mean((3, 5), keepdim=True)).clamp(-CUT, CUT)
    count = patches.shape[2] * patches.shape[4]
    template = patches.mean((2, 4)).square()
    by_chance = (patches.square().mean((2, 4)) - template) / (count - 1)
    return (template - by_chance).mean((1, 2, 3))


def _steps(error: Tensor) -> Tensor:
    excess = torch.zeros(len(error), dtype=error.dtype, device=error.device)
    for rows in (error, error.transpose(2, 3)):
        steps = rows.diff(dim=3).clamp(-CUT, CUT).square()
        crossing = torch.arange(steps.shape[3], device=error.device) % PERIOD == PERIOD - 1
        excess = excess + steps[..., crossing].mean((1, 2, 3)) - steps[..., ~crossing].mean((1, 2, 3))
    return excess / 4


def measure(reference: Tensor, candidate: Tensor, *, net: str | None = None) -> Float[Tensor, " n"]:
    """Grid artefacts of each pair, in steps of 8 bits; `net` is not used."""
    return grid(reference, candidate)
