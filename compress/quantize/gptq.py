"""GPTQ: round weights column by column, pushing each column's error onto the columns not yet rounded; convolutions too.

Source: Frantar et al. 2022, arXiv:2210.17323, Algorithm 1 (damping: section 3.3; order of columns: `act-order` of the
authors' code). The coordinate descent behind it is QuantEase's (Behdin et al. 2023, arXiv:2309.01885, Algorithm 1).
Differs: a convolution is a linear layer on its patches, a grouped one has a Hessian for each group of channels; scales
are fixed before the first column, so any order of columns keeps the groups; an input that is always 0 gets damping
and no error; a row that ends worse than round-to-nearest on the calibration inputs is rounded to nearest.
Cost: per unit one pass of the calibration inputs up to it; per layer O(columns^2) MACs per row of inputs and
O(columns^3) once; 4 * columns^2 bytes for each layer of the unit at hand, and five times 8 * columns^2 for one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log10
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from calibration.hessian import Hessian, collect_hessians
from compress.components import kind_of
from compress.nn.batches import spread
from compress.nn.surgery import replaced
from compress.quantize import _weight_grids as weight_grids
from compress.quantize._layers import chosen, left_in_float
from compress.quantize._units import Unit, calls, cropped, units
from compress.records import Inputs, Needs, Prediction, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.STATISTICS
LAZY = 128  # columns whose errors are pushed to the columns behind them in one product


class Config(Schema):
    """Bits, scales, and how the Hessian is used."""

    bits: Literal[2, 3, 4, 8] = Field(4, description="Bits per weight.")
    group_size: PositiveInt | None = Field(None, description="Inputs per scale; null: one scale per output channel.")
    clip: bool = Field(True, description="Search the weights' clipping point with the least squared error.")
    damping: float = Field(0.01, gt=0, lt=1, description="Added to the Hessian's diagonal, as a part of its mean.")
    act_order: bool = Field(True, description="Round the columns with the largest inputs first.")
    sweeps: NonNegativeInt = Field(4, description="Sweeps of coordinate descent afterwards, at most.")
    sequential: bool = Field(True, description="Take inputs behind the quantized part; else behind the float one.")
    unit: Literal["layer", "block"] = Field("block", description="What is quantized at a time.")
    samples: PositiveInt = Field(16, description="Calibration inputs to use.")
    latent_size: PositiveInt = Field(16, description="Side of the central crop of each input.")
    eight_bits: tuple[str, ...] = Field((), description="Layers that get 8 bits, one scale per channel.")
    exclude: tuple[str, ...] = Field((), description="Layers to leave in float: names with * and ? wildcards.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """How columns are rounded."""

    qmax: int
    damping: float = 0.01  # of the mean of the Hessian's diagonal
    order: bool = True  # columns with the largest inputs first
    sweeps: int = 0  # of coordinate descent behind GPTQ


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Same architecture, fewer bits; the bytes of layers with 8 bits are counted as float, so the size is a bound.

    Raises:
        UserError: a layer cannot hold the groups asked for, or a pattern matches nothing.
    """
    for arch in prediction.ends:
        with torch.device("meta"):
            _grids(chosen(kind_of(arch.kind).build(arch.config), config.exclude), config)
    return replace(
        prediction,
        weight_bits=config.bits,
        granularity=weight_grids.granularity(config.group_size),
        in_float=(*config.exclude, *config.eight_bits),
    )


def apply(stage: StageInput, config: Config) -> StageResult:
    """Unit by unit, in the order in which they run: sum up its layers' Hessians, round them, go on behind them."""
    module = stage.variant.module
    layers = chosen(module, config.exclude)
    grids = _grids(layers, config)
    inputs = cropped(spread(stage.inputs, config.samples), config.latent_size)
    result, errors = replaced(module, {}), _Errors(chosen=0.0, nearest=0.0)
    todo = units(stage.variant.arch, module, layers, inputs, config.unit)
    for done, unit in enumerate(todo):
        stage.progress(done, len(todo), unit.name)
        hessians = _hessians(result if config.sequential else module, unit, inputs)
        swaps = {}
        for name in unit.layers:
            weight, grid, hessian = layers[name].weight.detach(), grids[name], hessians[name].matrix
            scale = weight_grids.scale_for(weight, grid, clip=config.clip)
            step = weight_grids.spread(scale, weight, grid)
            integers = round_layer(weight, step, hessian, _rounding(grid, config))
            errors = errors.with_layer(weight, step, integers, hessian, grid.qmax)
            swaps[name] = weight_grids.swapped(layers[name], grid, integers, scale)
        result = replaced(result, swaps)
    result = result.requires_grad_(False).eval()
    return StageResult(
        arch=stage.variant.arch,
        module=result,
        achieved=weight_grids.achieved_by_bits(result, grids),
        skipped=left_in_float(result, config.exclude),
        notes=(errors.note(),),
    )


def damped(hessian: Float[Tensor, "c c"], damping: float) -> Float[Tensor, "c c"]:
    """In float64, positive definite whatever the inputs were; a column that was always 0 gets the mean diagonal."""
    full = hessian.double()
    diagonal = full.diagonal()
    mean = diagonal.mean()
    level = mean if mean > 0 else torch.ones_like(mean)
    dead = diagonal <= 0
    return full + torch.diag(damping * level + torch.where(dead, level, torch.zeros_like(level)))


def round_columns(
    weight: Float[Tensor, "r c"], scale: Float[Tensor, "r c"], hessian: Float[Tensor, "c c"], rounding: Rounding
) -> Float[Tensor, "r c"]:
    """Integers (as floats) in [-qmax, qmax]; `scale` is each weight's own, `hessian` that of the inputs."""
    h = damped(hessian, rounding.damping)
    order = h.diagonal().argsort(descending=True, stable=True) if rounding.order else torch.arange(h.shape[0])
    target, steps = (x.double().T[order].contiguous() for x in (weight, scale))  # [c, r]: a column is contiguous
    h = h[order][:, order].contiguous()
    integers = _gptq(target, steps, h, rounding.qmax)
    integers = _descend(integers, target, steps, h, rounding)
    return integers[order.argsort()].T.float()


def _gptq(target: Tensor, steps: Tensor, h: Tensor, qmax: int) -> Tensor:
    """Round column by column; push each column's error onto those not yet rounded."""
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    work, integers = target.clone(), torch.empty_like(target)
    for start in range(0, len(target), LAZY):
        stop = min(start + LAZY, len(target))
        errors = torch.empty_like(work[start:stop])
        for j in range(start, stop):
            integers[j] = (work[j] / steps[j]).round().clamp(-qmax, qmax)
            errors[j - start] = (work[j] - integers[j] * steps[j]) / inverse[j, j]
            work[j:stop] -= torch.outer(inverse[j, j:stop], errors[j - start])
        work[stop:] -= inverse[start:stop, stop:].T @ errors
    return integers


def _descend(integers: Tensor, target: Tensor, steps: Tensor, h: Tensor, rounding: Rounding) -> Tensor:
    """Set each column to its best integers with all others as they are, until nothing changes."""
    integers = integers.clone()
    for _ in range(rounding.sweeps):
        before = integers.clone()
        pull = h @ (integers * steps - target)  # half the gradient
        for start in range(0, len(target), LAZY):
            stop = min(start + LAZY, len(target))
            changes = torch.empty_like(pull[start:stop])
            for j in range(start, stop):
                best = (integers[j] - pull[j] / (h[j, j] * steps[j])).round().clamp(-rounding.qmax, rounding.qmax)
                changes[j - start] = (best - integers[j]) * steps[j]
                integers[j] = best
                pull[j:stop] += torch.outer(h[j, j:stop], changes[j - start])
            pull[stop:] += h[start:stop, stop:].T @ changes
        if torch.equal(before, integers):
            break
    return integers


def output_error(difference: Float[Tensor, "r c"], hessian: Float[Tensor, "c c"]) -> Float[Tensor, " r"]:
    """Squared output error of each row of a weight that is off by `difference`."""
    off = difference.double()
    return ((off @ hessian.double()) * off).sum(dim=1)


def round_layer(
    weight: Float[Tensor, "o ..."], scale: Float[Tensor, "o ..."], hessian: Float[Tensor, "g c c"], rounding: Rounding
) -> Float[Tensor, "o ..."]:
    """Integers for a layer's weight; a grouped convolution has a Hessian for each group of output channels.

    A row that would end with a larger output error than its round-to-nearest has the latter.
    """
    parts = []
    rows, steps = weight.flatten(1).chunk(len(hessian)), scale.flatten(1).chunk(len(hessian))
    for target, step, h in zip(rows, steps, hessian, strict=True):
        chosen = round_columns(target, step, h, rounding)
        nearest = (target / step).round().clamp(-rounding.qmax, rounding.qmax)
        worse = output_error(chosen * step - target, h) > output_error(nearest * step - target, h)
        parts.append(torch.where(worse[:, None], nearest, chosen))
    return torch.cat(parts).reshape(weight.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Errors:
    """Squared errors of all layers' outputs on the calibration inputs, as rounded here and to nearest."""

    chosen: float
    nearest: float

    def with_layer(self, weight: Tensor, step: Tensor, integers: Tensor, hessian: Tensor, qmax: int) -> "_Errors":
        nearest = (weight / step).round().clamp(-qmax, qmax)
        return _Errors(
            chosen=self.chosen + _layer_error(weight, step, integers, hessian),
            nearest=self.nearest + _layer_error(weight, step, nearest, hessian),
        )

    def note(self) -> str:
        better = 10 * log10(self.nearest / self.chosen) if self.chosen > 0 else 0.0
        return f"squared error of the layers' outputs: {better:.1f} dB below that of round-to-nearest"


def _layer_error(weight: Tensor, step: Tensor, integers: Tensor, hessian: Tensor) -> float:
    off = (integers * step - weight).flatten(1).chunk(len(hessian))
    return sum(float(output_error(part, h).sum()) for part, h in zip(off, hessian, strict=True))


def _hessians(through: nn.Module, unit: Unit, inputs: Inputs) -> dict[str, Hessian]:
    """The Hessians of a unit's layers, by their names in the component."""
    part, given = through.get_submodule(unit.name), calls(through, unit, inputs)

    def run() -> None:
        for call in given:
            part(*call.args, **call.kwargs)

    found = collect_hessians(part, run, [unit.inside(name) for name in unit.layers])
    return {name: found[unit.inside(name)] for name in unit.layers}


def _rounding(grid: weight_grids.Grid, config: Config) -> Rounding:
    return Rounding(qmax=grid.qmax, damping=config.damping, order=config.act_order, sweeps=config.sweeps)


def _grids(layers: Mapping[str, weight_grids.Layer], config: Config) -> dict[str, weight_grids.Grid]:
    return weight_grids.grids(layers, bits=config.bits, group_size=config.group_size, eight_bits=config.eight_bits)
