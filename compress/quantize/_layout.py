"""Inputs with their channels last in memory: the values are the same, and convolutions on a CPU are faster so.

Cost: one pass of the middle of one input.
"""

import torch
from torch import nn

from compress.nn.batches import central_crop, take
from compress.records import Inputs

GLANCE = 16  # side of the latents that show it: not of one pixel after three halvings, where any layout is both


def channels_last(module: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs so laid out; as they are for a module that views its tensors as if channels came first."""
    try:
        with torch.no_grad():
            module(*map(_turned, central_crop(take(inputs, 0, 1), GLANCE)))
    except RuntimeError as error:
        if "view" not in str(error):
            raise
        return inputs
    return tuple(map(_turned, inputs))


def _turned(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
