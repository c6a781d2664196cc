"""Layers whose input has a first token far larger than all others: the start token of a text in cross-attention.

Source: BOS-aware quantization of MixDQ (Zhao et al. 2024, arXiv:2405.17873): the start token's features are an outlier
of the text embedding, so that one grid over all tokens leaves the others some few steps.
Differs: MixDQ precomputes that one token in float; here the layers that read it keep float activations and integer
weights. They are found by measuring, not by name. On a text of 77 tokens this is next to no work, and its result is the
same at every step of the sampling.
Cost: one pass of a few inputs where there are linear layers on tokens.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from calibration import collect
from compress.nn.qmodules import FloatLayer

OUTLIER = 4.0  # times as large as any other token, in every input: two bits of the others' grid


def first_token_outliers(
    module: nn.Module, layers: Mapping[str, FloatLayer], batches: Iterable[tuple[torch.Tensor, ...]]
) -> dict[str, float]:
    """Linear layers on [n, t, c] whose first token is an outlier -> how many times as large it is, at least."""
    found: dict[str, float] = {}

    def see(name: str, what: str, part: nn.Module, value: Any) -> None:
        if what != "input":
            return
        if not isinstance(value, torch.Tensor) or value.dim() != 3 or value.shape[1] < 2:
            found[name] = 0.0
            return
        peaks = value.abs().amax(dim=2)  # [n, t]
        ratio = float((peaks[:, 0] / peaks[:, 1:].amax(dim=1).clamp_min(1e-30)).min())
        found[name] = min(found.get(name, ratio), ratio)

    names = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    if names:
        collect.watch(module, batches, names, see)
    return {name: ratio for name, ratio in found.items() if ratio >= OUTLIER}
