"""Which bits and scales each layer's weight gets, for methods that choose its integers with care."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from compress.errors import UserError
from compress.nn.affine import (
    Granularity,
    PerChannel,
    PerGroup,
    QuantizedWeight,
    absmax_scale,
    clipped_scale,
    dequantize,
    signed_qmax,
)
from compress.nn.qmodules import QuantizedLayer, QuantizedModule, quantize_layer
from compress.quantize._layers import achieved
from compress.records import Achieved

Layer = nn.Conv2d | nn.Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The bits of one layer's weight, and what shares a scale."""

    bits: int
    granularity: Granularity

    @property
    def qmax(self) -> int:
        """The largest integer."""
        return signed_qmax(self.bits)


def granularity(group_size: int | None) -> Granularity:
    """One scale per output channel, or per group of its inputs."""
    return PerChannel() if group_size is None else PerGroup(group_size)


def grids(
    layers: Mapping[str, Layer], *, bits: int, group_size: int | None, eight_bits: tuple[str, ...]
) -> dict[str, Grid]:
    """Each layer's grid; layers that match `eight_bits` have 8 bits and one scale per output channel.

    Raises:
        UserError: a pattern matches no layer, or a layer cannot hold the groups asked for.
    """
    for pattern in eight_bits:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise UserError(f"eight_bits: '{pattern}' matches no layer; layers are {', '.join(layers)}")
    fine = {n for n in layers if any(fnmatchcase(n, pattern) for pattern in eight_bits)}
    problems = []
    for name, layer in layers.items():
        inputs = layer.weight[0].numel()
        if name not in fine and group_size is not None and inputs % group_size:
            divisors = [d for d in range(2, inputs + 1) if inputs % d == 0]
            near = sorted(sorted(divisors, key=lambda d: abs(d - group_size))[:3])
            problems.append(f"group_size {group_size} does not divide the {inputs} inputs of '{name}'; near it: {near}")
    if problems:
        advice = "choose another size, or name these layers in exclude or eight_bits"
        raise UserError("\n  ".join([*problems, advice]))
    coarse = Grid(bits=bits, granularity=granularity(group_size))
    return {n: Grid(bits=8, granularity=PerChannel()) if n in fine else coarse for n in layers}


def scale_for(weight: torch.Tensor, grid: Grid, *, clip: bool) -> torch.Tensor:
    """Scales from the largest magnitudes, or with the clipping that has the least squared error of the weight."""
    return (clipped_scale if clip else absmax_scale)(weight, bits=grid.bits, granularity=grid.granularity)


def spread(scale: torch.Tensor, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The scale of every single weight, in the weight's shape; gradients pass."""
    ones = torch.ones_like(weight, dtype=torch.int8)
    return dequantize(QuantizedWeight(qdata=ones, scale=scale, bits=grid.bits, granularity=grid.granularity))


def swapped(layer: Layer, grid: Grid, integers: torch.Tensor, scale: torch.Tensor) -> QuantizedModule:
    """The layer with these integers for its weight."""
    qdata = integers.detach().to(torch.int8).reshape(layer.weight.shape).contiguous()
    weight = QuantizedWeight(qdata=qdata, scale=scale.detach().float(), bits=grid.bits, granularity=grid.granularity)
    return quantize_layer(layer, QuantizedLayer(bits=grid.bits, granularity=grid.granularity), weight)


def achieved_by_bits(module: nn.Module, wanted: Mapping[str, Grid]) -> tuple[Achieved, ...]:
    """One row for each number of bits."""

    def names(bits: int) -> Iterable[str]:
        return [name for name, grid in wanted.items() if grid.bits == bits]

    return tuple(achieved(module, names(bits), bits) for bits in sorted({grid.bits for grid in wanted.values()}))
