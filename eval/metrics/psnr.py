"""Peak signal-to-noise ratio of two images, in dB.

Source: 10 log10(peak^2 / MSE), the mean over channels and pixels of one image.
Differs: the peak is an argument, never read off an image; identical images give +inf (written as `exact` in records).
Cost: one pass over the pixels, summed in float64.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from eval.metrics import _images

UNIT = "dB"
HIGHER_IS_BETTER = True
RANGE = (0.0, float("inf"))
NEEDS_NET = False
TAKES = "images"
DEFINITION = "10 log10(1 / mean squared error over channels and pixels), images in [0, 1]"


def psnr_db(reference: Tensor, candidate: Tensor, *, peak: float = 1.0) -> Float[Tensor, " n"]:
    """PSNR of each pair of two batches [n, 3, h, w].

    Args:
        reference: Images in [0, peak].
        candidate: The same pictures at the same size.
        peak: The largest value an image can have. Values are checked against [0, 1] where this is 1.
    """
    check = _images.check_pair if peak == 1.0 else _images.check_shapes
    check(reference, candidate)
    error = (reference.double() - candidate.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(peak**2 / error)).to(_images.result_dtype(reference))


def measure(reference: Tensor, candidate: Tensor, *, net: str | None = None) -> Float[Tensor, " n"]:
    """PSNR of each pair of two batches [n, 3, h, w] in [0, 1]; `net` is not used."""
    return psnr_db(reference, candidate)
