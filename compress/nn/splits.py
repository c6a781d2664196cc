"""Convolutions that read a concatenation, taken apart: one convolution for each part, each with ranges of its own.

A skip and the stream that it joins have different ranges; one grid over both wastes most of its steps on the smaller
one. The parts are ordinary convolutions: whoever saves, counts or exports them sees their names and nothing else.

Source: the split quantization of shortcuts of Q-Diffusion (Li et al. 2023, arXiv:2302.04304).
Differs: where a concatenation is read is found by watching one forward pass; a norm in between makes one range of both
again, so only what reads the concatenation itself is taken apart.
Cost: one forward pass on one input; an addition per part when it runs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.nn.surgery import replaced
from compress.records import Inputs

aten = torch.ops.aten


class SplitConv2d(nn.Module):
    """The sum of convolutions, each over a run of the input's channels; [n, c_in, h, w] to [n, c_out, h', w']."""

    def __init__(self, parts: Sequence[nn.Module], widths: Sequence[int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.widths = tuple(widths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        runs = x.split(self.widths, dim=1)
        total = self.parts[0](runs[0])
        for part, run in zip(list(self.parts)[1:], runs[1:], strict=True):
            total = total + part(run)
        return total


def split_conv(conv: nn.Conv2d, widths: Sequence[int]) -> SplitConv2d:
    """The same function; the first part has the bias.

    Raises:
        ValueError: the convolution is grouped, or the widths do not add up to its channels.
    """
    if conv.groups != 1 or sum(widths) != conv.in_channels:
        raise ValueError(f"{conv} cannot be taken apart into {list(widths)} channels")
    parts = []
    for number, weight in enumerate(conv.weight.detach().split(tuple(widths), dim=1)):
        with torch.device("meta"):
            part = nn.Conv2d(
                weight.shape[1],
                conv.out_channels,
                conv.kernel_size,  # type: ignore[arg-type]
                stride=conv.stride,  # type: ignore[arg-type]
                padding=conv.padding,  # type: ignore[arg-type]
                dilation=conv.dilation,  # type: ignore[arg-type]
                bias=conv.bias is not None and number == 0,
            )
        part.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        if part.bias is not None and conv.bias is not None:
            part.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
        parts.append(part)
    return SplitConv2d(parts, widths).eval()


def split(module: nn.Module, widths: Mapping[str, Sequence[int]]) -> nn.Module:
    """A twin in which the named convolutions are taken apart.

    Raises:
        ValueError: a name is not that of such a convolution.
    """
    parts = dict(module.named_modules())
    odd = [name for name in widths if not isinstance(parts.get(name), nn.Conv2d)]
    if odd:
        raise ValueError(f"no convolutions: {', '.join(odd)}")
    convolutions = {name: part for name in widths if isinstance(part := parts[name], nn.Conv2d)}
    return replaced(module, {name: split_conv(conv, widths[name]) for name, conv in convolutions.items()})


def splits(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The convolutions that were taken apart, and the channels of their parts."""
    return {name: part.widths for name, part in module.named_modules() if isinstance(part, SplitConv2d)}


class _Watch(TorchDispatchMode):
    """The widths of every concatenation of channels, by its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: dict[int, tuple[int, ...]] = {}
        self.held: list[torch.Tensor] = []  # so that no memory is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        axis = args[1] if len(args) > 1 else (kwargs or {}).get("dim", 0)
        if func.overloadpacket is aten.cat and output.dim() == 4 and axis in (1, -3):
            self.widths[output.untyped_storage().data_ptr()] = tuple(x.shape[1] for x in args[0] if x.numel())
            self.held.append(output)
        return output


def concatenations(module: nn.Module, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """The convolutions without groups whose input is a concatenation, and the channels of what was joined.

    Args:
        module: A float network in eval mode.
        inputs: One call's, e.g. a single sample.
    """
    watch, handles = _Watch(), []
    found: dict[str, tuple[int, ...]] = {}

    def before(name: str, part: nn.Conv2d, x: torch.Tensor) -> None:
        widths = watch.widths.get(x.untyped_storage().data_ptr(), ())
        if len(widths) > 1 and part.groups == 1 and sum(widths) == part.in_channels and x.dim() == 4:
            found[name] = widths

    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            handles.append(
                part.register_forward_pre_hook(lambda _, args, name=name, part=part: before(name, part, args[0]))
            )
    try:
        with torch.no_grad(), watch:
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
