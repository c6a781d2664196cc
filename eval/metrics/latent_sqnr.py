"""How far a sampler's latents leave the reference's way: SQNR after each step, in dB, of which the lowest counts.

Source: 10 log10(sum of squares of the reference / sum of squares of the difference), as of any tensor; taken over the
steps of one picture because errors of single predictions add up on the way, or cancel.
Differs: the first latents, which both start from, are left out.
Cost: one pass over all latents, summed in float64.
"""

from jaxtyping import Float
from torch import Tensor

from eval.metrics import _tensors
from eval.metrics.sqnr import sqnr_db

UNIT = "dB"
HIGHER_IS_BETTER = True
RANGE = (float("-inf"), float("inf"))
NEEDS_NET = False
TAKES = "latents"
DEFINITION = "lowest over the steps of 10 log10(sum of reference^2 / sum of difference^2), per picture"


def measure(
    reference: Float[Tensor, "n steps z h w"], candidate: Float[Tensor, "n steps z h w"], *, net: str | None = None
) -> Float[Tensor, " n"]:
    """The lowest SQNR on the way of each picture; `net` is not used."""
    _tensors.check_pair(reference, candidate)
    each = sqnr_db(reference.flatten(0, 1), candidate.flatten(0, 1))
    return each.view(len(reference), -1).amin(1)
