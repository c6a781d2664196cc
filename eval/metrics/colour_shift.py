"""How far the colours of areas have moved: CIE 1976 colour difference of the means of 16x16 pixels.

Source: CIE 15:2004: sRGB (IEC 61966-2-1) through XYZ at D65 to L*a*b*, difference = Euclidean distance. About 2.3 is
just noticeable (Mahy et al. 1994).
Differs: means are of sRGB values and come first, so that detail and noise do not count as colour; what is left over at
the right and lower edge (less than 16 pixels) is not looked at. The mean over areas is given.
Cost: one pass over the pixels.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from eval.metrics import _images

UNIT = "dE"
HIGHER_IS_BETTER = False
RANGE = (0.0, float("inf"))
NEEDS_NET = False
TAKES = "images"
DEFINITION = "mean CIE76 difference of the sRGB means of 16x16 pixels, D65"
AREA = 16
WHITE = (0.95047, 1.0, 1.08883)
TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)


def colour_shift(reference: Tensor, candidate: Tensor) -> Float[Tensor, " n"]:
    """Colour difference of each pair of two batches [n, 3, h, w] in [0, 1]."""
    _images.check_pair(reference, candidate, smallest=AREA)
    one, other = (_lab(functional.avg_pool2d(images.double(), AREA)) for images in (reference, candidate))
    difference = (one - other).square().sum(1).sqrt()
    return difference.mean((1, 2)).to(_images.result_dtype(reference))


def _lab(images: Tensor) -> Tensor:
    """L*, a*, b* of [n, 3, h, w] in sRGB."""
    images = images.clamp(0, 1)
    linear = torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055) ** 2.4)
    matrix, white = (torch.tensor(table, dtype=images.dtype, device=images.device) for table in (TO_XYZ, WHITE))
    relative = torch.einsum("ij,njhw->nihw", matrix, linear) / white[:, None, None]
    root = torch.where(relative > (6 / 29) ** 3, relative ** (1 / 3), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), 1)


def measure(reference: Tensor, candidate: Tensor, *, net: str | None = None) -> Float[Tensor, " n"]:
    """Colour difference of each pair; `net` is not used."""
    return colour_shift(reference, candidate)
