"""Structural similarity of two images: agreement of local means, contrasts and structure.

Source: Wang et al. 2004 (IEEE TIP 13(4)), eq. (13): 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, range 1.
Differs: each colour channel by itself, then the mean; windows that leave the image are not used (as scikit-image does
with gaussian_weights=True, use_sample_covariance=False).
Cost: ten one-axis filters of 11 taps per image, in float64: E[x^2] - E[x]^2 cancels too much of float32.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from eval.metrics import _images

UNIT = ""
HIGHER_IS_BETTER = True
RANGE = (-1.0, 1.0)
NEEDS_NET = False
TAKES = "images"
DEFINITION = "Wang 2004: 11x11 Gaussian window of sigma 1.5, K 0.01 and 0.03, range 1, channels apart, valid windows"
WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2


def ssim(reference: Tensor, candidate: Tensor) -> Float[Tensor, " n"]:
    """SSIM of each pair of two batches [n, 3, h, w] in [0, 1], 11 pixels or more on each side."""
    _images.check_pair(reference, candidate, smallest=WINDOW)
    luminance, structure = parts(reference.double(), candidate.double())
    return (luminance * structure).mean((1, 2, 3)).to(_images.result_dtype(reference))


def parts(
    reference: Float[Tensor, "n c h w"], candidate: Float[Tensor, "n c h w"]
) -> tuple[Float[Tensor, "n c rows columns"], Float[Tensor, "n c rows columns"]]:
    """The two factors of SSIM in every window that fits: agreement of means, and of contrasts with structure."""
    x, y = reference.flatten(0, 1)[:, None], candidate.flatten(0, 1)[:, None]
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    weights = (weights / weights.sum())[None, None]

    def local_mean(values: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(values, weights[..., None]), weights[:, :, None])

    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = local_mean(x * x) - mean_x.square()
    variance_y = local_mean(y * y) - mean_y.square()
    covariance = local_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
    structure = (2 * covariance + C2) / (variance_x + variance_y + C2)
    channels = reference.shape[:2]
    return luminance[:, 0].unflatten(0, channels), structure[:, 0].unflatten(0, channels)


def measure(reference: Tensor, candidate: Tensor, *, net: str | None = None) -> Float[Tensor, " n"]:
    """SSIM of each pair of two batches [n, 3, h, w] in [0, 1]; `net` is not used."""
    return ssim(reference, candidate)
