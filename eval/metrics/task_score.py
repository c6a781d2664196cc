"""Whether a drawn picture shows what was asked for: that picture is among its 10 nearest of a captioned folder.

Source: recall at 10, after the R-precision of text-to-image synthesis (Xu et al. 2018, arXiv:1711.10485).
Differs: among pictures rather than captions, by the distance of eval/neighbours.py rather than a network's, so it needs
a folder whose pictures the model was trained on, and sees colours and shapes, not details.
Cost: one distance to every picture of the folder, shrunk to 32x32.
"""

from jaxtyping import Float, Int
from torch import Tensor

from eval.neighbours import ranks

UNIT = ""
HIGHER_IS_BETTER = True
RANGE = (0.0, 1.0)
NEEDS_NET = False
TAKES = "asked"
NEAREST = 10
DEFINITION = "picture asked for among the 10 nearest of the folder: 1, else 0; Euclidean at 32x32, mirrored or not"


def measure(
    images: Float[Tensor, "n 3 h w"], gallery: Float[Tensor, "m 3 h_m w_m"], right: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """1 where the picture asked for is among the nearest, 0 where it is not; a picture of NaN is nowhere.

    Raises:
        EvalError: as `neighbours.ranks`.
    """
    return (ranks(images, gallery, right) < NEAREST).float()
