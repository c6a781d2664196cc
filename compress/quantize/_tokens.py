"""Layers whose input has a first token far larger than all others: the start token of a text in cross-attention.

Source: BOS-aware quantization of MixDQ (Zhao et al. 2024, arXiv:2405.17873): the start token's features are an outlier
of the text embedding, so that one grid over all tokens leaves the others some few steps.
Differs: MixDQ precomputes that one token in float; here the layers that read it keep float activations and integer
weights. They are found by measuring, not by name. On a text of 77 tokens this is next to no work, and its result is the
same at every step of the sampling.
Cost: none of its own; it looks on in the pass that measures ranges.
"""

from typing import Any

import torch
from torch import nn

OUTLIER = 4.0  # times as large as any other token, in every input: two bits of the others' grid


class FirstTokens:
    """How outlying first tokens are, gathered while somebody watches a module (`calibration.collect.See`)."""

    def __init__(self) -> None:
        self.ratios: dict[str, float] = {}

    def see(self, name: str, what: str, part: nn.Module, value: Any) -> None:
        """The input of a linear layer, [n, t, c]; all else is passed over."""
        if what != "input" or not isinstance(part, nn.Linear):
            return
        if not isinstance(value, torch.Tensor) or value.dim() != 3 or value.shape[1] < 2:
            self.ratios[name] = 0.0
            return
        peaks = value.abs().amax(dim=2)  # [n, t]
        ratio = float((peaks[:, 0] / peaks[:, 1:].amax(dim=1).clamp_min(1e-30)).min())
        self.ratios[name] = min(self.ratios.get(name, ratio), ratio)

    def outliers(self) -> dict[str, float]:
        """Layers whose first token is an outlier -> how many times as large it is, at least."""
        return {name: ratio for name, ratio in self.ratios.items() if ratio >= OUTLIER}
