"""Signal to quantization noise of two tensors, such as latents, in dB.

Source: 10 log10(sum of squares of the reference / sum of squares of the difference), over one sample.
Differs: of tensors of any shape and range; identical ones give +inf, and a reference of zeros that is not met -inf.
Cost: one pass, summed in float64.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from eval.metrics import _tensors

UNIT = "dB"
HIGHER_IS_BETTER = True
RANGE = (float("-inf"), float("inf"))
NEEDS_NET = False
TAKES = "tensors"
DEFINITION = "10 log10(sum of reference^2 / sum of difference^2) per sample"


def sqnr_db(reference: Tensor, candidate: Tensor) -> Float[Tensor, " n"]:
    """SQNR of each pair of two batches [n, ...]."""
    _tensors.check_pair(reference, candidate)
    signal = reference.double().flatten(1).square().sum(1)
    noise = (reference.double() - candidate.double()).flatten(1).square().sum(1)
    ratio = torch.where(noise == 0, torch.inf, signal / noise.clamp_min(torch.finfo(torch.float64).tiny))
    return (10 * torch.log10(ratio)).to(_tensors.result_dtype(reference))


def measure(reference: Tensor, candidate: Tensor, *, net: str | None = None) -> Float[Tensor, " n"]:
    """SQNR of each pair; `net` is not used."""
    return sqnr_db(reference, candidate)
