"""Is a generated picture the one that was asked for? Its place among the nearest of a gallery of known pictures.

Distance: Euclidean between the pictures shrunk to 32x32 by averaging, to the picture or its mirror image, whichever is
nearer. It asks for colours and shapes in their places and forgives detail; of `n` pictures a random one is among the 10
nearest in 10 of `n` cases.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from eval.errors import EvalError

SIDE = 32


def ranks(
    candidates: Float[Tensor, "n 3 h w"], gallery: Float[Tensor, "m 3 h_m w_m"], right: Int[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """How many pictures of the gallery are nearer to each candidate than the right one; 0 is the best.

    A candidate that is not finite is behind the whole gallery. Pictures as near as the right one count as nearer, so
    that a flat gallery gives no credit.

    Raises:
        EvalError: sizes that cannot be shrunk to 32x32, or a right picture that is not in the gallery.
    """
    if candidates.shape[2] % SIDE or candidates.shape[3] % SIDE:
        raise EvalError(f"pictures of {tuple(candidates.shape[2:])} pixels; multiples of {SIDE} are needed")
    if len(right) and not 0 <= int(right.min()) <= int(right.max()) < len(gallery):
        raise EvalError(f"right pictures {int(right.min())} to {int(right.max())} of a gallery of {len(gallery)}")
    known = _shrunk(gallery)
    distances = torch.minimum(
        torch.cdist(_shrunk(candidates), known, compute_mode="donot_use_mm_for_euclid_dist"),
        torch.cdist(_shrunk(candidates.flip(3)), known, compute_mode="donot_use_mm_for_euclid_dist"),
    )
    own = distances.gather(1, right[:, None])
    found = (distances <= own).sum(dim=1) - 1
    return torch.where(_finite(candidates), found, len(gallery))


def shrunk(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 32 32"]:
    """What is compared, and all of a gallery that `ranks` needs."""
    return functional.adaptive_avg_pool2d(images.float(), SIDE)


def _shrunk(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n features"]:
    return shrunk(images).flatten(1)


def _finite(images: Float[Tensor, "n 3 h w"]) -> Bool[Tensor, " n"]:
    return images.isfinite().flatten(1).all(dim=1)
