"""A module with other sizes than its author gave it: tensors of new shapes, attributes that follow, blocks left out.

The original is not touched. Tensors of the state dict come out with arbitrary values on the default device; what is no
part of the state dict is copied.
"""

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


class Removed(nn.Module):
    """In the place of a block that was taken out: gives its first input back."""

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return x


def stand_in(module: nn.Module, sizes: Mapping[str, tuple[int, ...]], removed: Collection[str]) -> nn.Module:
    """A copy of `module` with these shapes of its tensors and without these submodules, in eval mode."""
    names = {id(tensor): name for name, tensor in module.state_dict(keep_vars=True).items()}
    memo: dict[int, Any] = {id(module.get_submodule(name)): Removed() for name in removed}
    for tensor in (*module.parameters(), *module.buffers()):
        name = names.get(id(tensor))
        if name is None:
            blank = tensor.detach().clone().to(torch.get_default_device())
        else:
            blank = torch.zeros(sizes.get(name, tuple(tensor.shape)), dtype=tensor.dtype)
        memo[id(tensor)] = nn.Parameter(blank) if isinstance(tensor, nn.Parameter) else blank
    made = copy.deepcopy(module, memo)
    for part in made.modules():
        restate(part)
    return made.eval()


def restate(part: nn.Module) -> None:
    """Let the attributes of one of torch's own layers follow the shapes of its tensors."""
    weight = getattr(part, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return
    match part:
        case _ConvNd():
            _restate_convolution(part, weight)
        case nn.Linear():
            part.out_features, part.in_features = weight.shape
        case nn.GroupNorm():
            part.num_channels = weight.shape[0]
        case nn.LayerNorm() | nn.RMSNorm():
            part.normalized_shape = tuple(weight.shape)
        case _NormBase():
            part.num_features = weight.shape[0]
        case nn.PReLU():
            part.num_parameters = weight.shape[0]


def _restate_convolution(part: _ConvNd, weight: torch.Tensor) -> None:
    depthwise = part.groups > 1 and part.groups == part.in_channels
    multiplier = part.out_channels // part.in_channels
    if isinstance(part, _ConvTransposeNd):
        part.groups = weight.shape[0] if depthwise else part.groups
        part.in_channels, part.out_channels = weight.shape[0], weight.shape[1] * part.groups
    else:
        part.groups = weight.shape[0] // multiplier if depthwise else part.groups
        part.in_channels, part.out_channels = weight.shape[1] * part.groups, weight.shape[0]
