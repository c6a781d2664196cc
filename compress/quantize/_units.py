"""The parts of a component that are quantized one after the other, and what goes into and comes out of each.

A unit is a block that the component names (a ResNet block, a transformer layer), or a layer outside all blocks; the
order is the order in which they run. Inputs and outputs are taken by running the component up to the unit, so one
unit's tensors are held at a time, whatever the depth.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from compress.components import kind_of
from compress.errors import UserError
from compress.nn.batches import split
from compress.records import Arch, Inputs

By = Literal["layer", "block"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A submodule and the layers in it, all named from the component; one layer alone is a unit of its own name."""

    name: str
    layers: tuple[str, ...]

    def inside(self, layer: str) -> str:
        """A layer's name as seen from the unit; empty for the unit itself."""
        return layer.removeprefix(self.name).removeprefix(".")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """The arguments of one call of a unit."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class _Reached(Exception):
    """The unit has run: the rest of the pass is not needed."""


def units(arch: Arch, module: nn.Module, layers: Iterable[str], inputs: Inputs, by: By) -> tuple[Unit, ...]:
    """The layers by unit, in the order in which the units are first called.

    Raises:
        UserError: a layer is never called, or more than once in a pass.
    """
    layers = tuple(layers)
    blocks = [block.name for block in kind_of(arch.kind).blocks(arch.config)] if by == "block" else []
    order = _calls_in_order(module, layers, inputs)
    grouped: dict[str, list[str]] = {}
    for layer in order:
        name = next((block for block in blocks if layer.startswith(f"{block}.")), layer)
        grouped.setdefault(name, []).append(layer)
    return tuple(Unit(name=name, layers=tuple(found)) for name, found in grouped.items())


def _calls_in_order(module: nn.Module, layers: Sequence[str], inputs: Inputs) -> list[str]:
    order: list[str] = []
    handles = [
        module.get_submodule(name).register_forward_pre_hook(lambda part, args, name=name: order.append(name))
        for name in layers
    ]
    try:
        with torch.no_grad():
            module(*next(split(inputs, 1)))
    finally:
        for handle in handles:
            handle.remove()
    odd = [name for name in layers if order.count(name) != 1]
    if odd:
        raise UserError(f"called never, or more than once in a pass: {', '.join(odd)}; name them in exclude")
    return order


def calls(module: nn.Module, unit: Unit, inputs: Inputs) -> list[Call]:
    """What the unit is given, sample by sample."""
    found: list[Call] = []

    def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(Call(args=args, kwargs=dict(kwargs)))
        raise _Reached

    handle = module.get_submodule(unit.name).register_forward_pre_hook(hook, with_kwargs=True)
    _run_up_to(module, inputs, handle)
    return found


def results(module: nn.Module, unit: Unit, inputs: Inputs) -> list[torch.Tensor]:
    """What the unit makes, sample by sample.

    Raises:
        UserError: that is not one tensor.
    """
    found: list[torch.Tensor] = []

    def hook(part: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, torch.Tensor):
            raise UserError(f"'{unit.name}' gives {type(output).__name__}, not one tensor; choose unit: layer")
        found.append(output)
        raise _Reached

    handle = module.get_submodule(unit.name).register_forward_hook(hook)
    _run_up_to(module, inputs, handle)
    return found


def _run_up_to(module: nn.Module, inputs: Inputs, handle: torch.utils.hooks.RemovableHandle) -> None:
    try:
        with torch.no_grad():
            for sample in split(inputs, 1):
                try:
                    module(*sample)
                except _Reached:
                    continue
    finally:
        handle.remove()


def cropped(inputs: Inputs, size: int) -> Inputs:
    """The middle of pictures and latents; text and time steps whole."""

    def crop(x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 4:
            return x
        top, left = (max(0, (side - size) // 2) for side in x.shape[-2:])
        return x[..., top : top + size, left : left + size]

    return tuple(crop(x) for x in inputs)
