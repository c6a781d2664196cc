"""Agreement in direction of two sets of vectors, such as text embeddings: the mean cosine.

Source: cos(x, y) = x.y / (|x| |y|) along the last axis, the mean over all vectors of a sample.
Differs: vectors are compared one by one, so that one of great length (CLIP's first token is some 60 times as long as
the others) does not speak for all; two zero vectors agree (1), a zero vector and another do not (0).
Cost: one pass, in float64.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from eval.metrics import _tensors

UNIT = ""
HIGHER_IS_BETTER = True
RANGE = (-1.0, 1.0)
NEEDS_NET = False
TAKES = "tensors"
DEFINITION = "mean cosine of the vectors along the last axis, per sample"


def cosine(reference: Tensor, candidate: Tensor) -> Float[Tensor, " n"]:
    """The mean cosine of each pair of two batches [n, ..., d]."""
    _tensors.check_pair(reference, candidate)
    x, y = reference.double(), candidate.double()
    lengths = x.norm(dim=-1) * y.norm(dim=-1)
    same = (x == y).all(-1)
    found = torch.where(lengths > 0, (x * y).sum(-1) / lengths.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    found = torch.where(same, 1.0, found.clamp(-1, 1))
    return found.reshape(len(x), -1).mean(1).to(_tensors.result_dtype(reference))


def measure(reference: Tensor, candidate: Tensor, *, net: str | None = None) -> Float[Tensor, " n"]:
    """The mean cosine of each pair; `net` is not used."""
    return cosine(reference, candidate)
