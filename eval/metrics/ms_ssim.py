"""Structural similarity at five scales: contrast and structure at each, luminance at the coarsest.

Source: Wang, Simoncelli and Bovik 2003 (Asilomar), eq. (7) with the weights of its table: 0.0448, 0.2856, 0.3001,
0.2363, 0.1333; each scale is the mean of 2x2 pixels of the one before.
Differs: the data range is 1 and never read off an image; a scale that comes out negative counts as 0, where a power
of it would be NaN; channels are averaged at each scale. As in torchmetrics, windows that leave the image are not used,
but at the coarsest scale, where they see its reflection.
Cost: a third more than SSIM, in float64. Needs 176 pixels on each side: 11 at the coarsest scale.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from eval.metrics import _images
from eval.metrics.ssim import WINDOW, parts

UNIT = ""
HIGHER_IS_BETTER = True
RANGE = (0.0, 1.0)
NEEDS_NET = False
TAKES = "images"
DEFINITION = "Wang 2003: five scales, SSIM's window, range 1, negatives to 0, coarsest scale reflected at the edge"
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SMALLEST = WINDOW * 2 ** (len(WEIGHTS) - 1)


def ms_ssim(reference: Tensor, candidate: Tensor) -> Float[Tensor, " n"]:
    """MS-SSIM of each pair of two batches [n, 3, h, w] in [0, 1], 176 pixels or more on each side."""
    _images.check_pair(reference, candidate, smallest=SMALLEST)
    x, y = reference.double(), candidate.double()
    product = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for scale, weight in enumerate(WEIGHTS):
        last = scale == len(WEIGHTS) - 1
        if last:
            x, y = (functional.pad(image, [WINDOW // 2] * 4, "reflect") for image in (x, y))
        luminance, structure = parts(x, y)
        local = luminance * structure if last else structure
        product = product * local.mean((1, 2, 3)).clamp_min(0) ** weight
        x, y = functional.avg_pool2d(x, 2), functional.avg_pool2d(y, 2)
    return product.to(_images.result_dtype(reference))


def measure(reference: Tensor, candidate: Tensor, *, net: str | None = None) -> Float[Tensor, " n"]:
    """MS-SSIM of each pair of two batches [n, 3, h, w] in [0, 1]; `net` is not used."""
    return ms_ssim(reference, candidate)
