"""Which axes of a component's inputs may be free in a file: height and width, in steps that the network can halve."""

from typing import Any

import torch
from torch import nn

from compress.records import Inputs


def step_of(module: nn.Module, example: Inputs) -> int:
    """Height and width are multiples of this: how much smaller than the first input the smallest convolved map is."""
    sides = []

    def note(_: nn.Module, __: object, made: torch.Tensor) -> None:
        sides.append(made.shape[-1])

    hooks = [m.register_forward_hook(note) for m in module.modules() if isinstance(m, nn.Conv2d)]
    try:
        with torch.no_grad():
            module(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return max(1, -(-example[0].shape[-1] // min(sides, default=example[0].shape[-1])))


def free_axes(module: nn.Module, example: Inputs) -> tuple[dict[int, Any], ...] | None:
    """For `torch.export`: height and width of every input with four axes free, nothing else; None where there is none.

    Args:
        module: in float, so that its convolutions are `nn.Conv2d`.
        example: its inputs; those with four axes are of one size.
    """
    if all(x.dim() != 4 for x in example):
        return None
    step = step_of(module, example) if example[0].dim() == 4 else 1
    height, width = torch.export.Dim("h", min=1), torch.export.Dim("w", min=1)
    axes = {2: height if step == 1 else step * height, 3: width if step == 1 else step * width}
    return tuple(axes if x.dim() == 4 else {} for x in example)
