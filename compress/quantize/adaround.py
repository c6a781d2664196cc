"""AdaRound, block by block: learn which way each weight rounds so that every block gives what the float one gives.

Source: Nagel et al. 2020, arXiv:2004.10568 (rounding learned against the output) on blocks as in BRECQ (Li et al. 2021,
arXiv:2102.05426, section 3.2), whose inputs come from the part that is quantized already.
Differs: rounding is learned through a straight-through estimator (Bengio et al. 2013, arXiv:1308.3432) on the weights
in units of their scale, not through a rectified sigmoid with a penalty: that gains more in some hundred steps, and a
weight may move by more than one integer. Towards the end weights are drawn to the integer that they are near
(dampening, Nagel et al. 2022, arXiv:2203.11086, section 4.1). A unit keeps what it learned only where that lowers the
error over all calibration inputs.
Cost: per unit two passes of the calibration inputs up to it, and `steps` times one forward and backward pass of the
unit on `batch` of them; its inputs and outputs for all samples, and five times its weights, are in memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import cos, isfinite, log10, pi
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call

from compress.components import kind_of
from compress.errors import UserError
from compress.files import write_tensors
from compress.nn.batches import spread
from compress.nn.surgery import replaced
from compress.quantize import _weight_grids as weight_grids
from compress.quantize._layers import chosen, left_in_float
from compress.quantize._units import Call, Unit, calls, cropped, results, units
from compress.records import Inputs, Needs, Prediction, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.STATISTICS


class Config(Schema):
    """Bits, scales, and how long each unit is learned."""

    bits: Literal[2, 3, 4, 8] = Field(4, description="Bits per weight.")
    group_size: PositiveInt | None = Field(None, description="Inputs per scale; null: one scale per output channel.")
    clip: bool = Field(True, description="Search the weights' clipping point with the least squared error.")
    unit: Literal["layer", "block"] = Field("block", description="What is learned at a time.")
    steps: PositiveInt = Field(300, description="Optimizer steps for each unit.")
    lr: float = Field(0.04, gt=0, lt=1, description="Largest learning rate (Adam, cosine), in units of the scales.")
    dampening: float = Field(0.1, ge=0, description="How much weights are drawn to the nearest integer at the end.")
    batch: PositiveInt = Field(2, description="Calibration inputs per step.")
    samples: PositiveInt = Field(32, description="Calibration inputs to use.")
    latent_size: PositiveInt = Field(16, description="Side of the central crop of each input.")
    eight_bits: tuple[str, ...] = Field((), description="Layers that get 8 bits, one scale per channel.")
    exclude: tuple[str, ...] = Field((), description="Layers to leave in float: names with * and ? wildcards.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How one unit is learned."""

    steps: int
    lr: float
    batch: int
    seed: int
    dampening: float = 0.0

    def lr_at(self, step: int) -> float:
        """Learning rate of one step: a cosine down to 1% of `lr`."""
        return self.lr * (0.01 + 0.99 * 0.5 * (1 + cos(pi * step / self.steps)))

    def dampening_at(self, step: int) -> float:
        """Weight of the distance to the nearest integers: from nothing to `dampening`."""
        return self.dampening * 0.5 * (1 - cos(pi * step / self.steps))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rounded:
    """A weight while its rounding is learned: `position * step` before rounding, in the weight's shape."""

    position: Tensor
    step: Tensor
    qmax: int

    def integers(self) -> Tensor:
        """What it rounds to; the gradient passes as if nothing were rounded."""
        clipped = self.position.clamp(-self.qmax, self.qmax)
        return clipped + (clipped.round() - clipped).detach()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learned:
    """Positions by layer, and the unit's mean squared error before and after."""

    positions: dict[str, Tensor]
    before: float
    after: float


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
    """Unit by unit, in the order in which they run: learn its rounding, go on behind it.

    Each finished unit is a file in the scratch folder, so a stage that was killed goes on with the next one.
    """
    module = replaced(stage.variant.module, {})
    layers = chosen(module, config.exclude)
    grids = _grids(layers, config)
    inputs = cropped(spread(stage.inputs, config.samples), config.latent_size)
    scales = {name: _scale(layer, grids[name], config) for name, layer in layers.items()}
    rounding = {name: _start(layer, grids[name], scales[name]) for name, layer in layers.items()}
    result, gains = module, {}
    todo = units(stage.variant.arch, module, layers, inputs, config.unit)
    for number, unit in enumerate(todo):
        stage.progress(number, len(todo), unit.name)
        schedule = _schedule(config, stage.seed * len(todo) + number)
        file = stage.scratch / f"unit-{number:03}.safetensors"
        if not file.exists():
            _write(file, _learn_unit(module, result, unit, inputs, rounding, schedule))
        learned = _read(file)
        rounding |= {n: replace(rounding[n], position=p) for n, p in learned.positions.items()}
        swaps = {n: weight_grids.swapped(layers[n], grids[n], rounding[n].integers(), scales[n]) for n in unit.layers}
        result = replaced(result, swaps)
        gains[unit.name] = 10 * log10(learned.before / learned.after) if learned.after > 0 else 0.0
    result = result.requires_grad_(False).eval()
    return StageResult(
        arch=stage.variant.arch,
        module=result,
        achieved=weight_grids.achieved_by_bits(result, grids),
        skipped=left_in_float(result, config.exclude),
        notes=(_note(gains),),
    )


def learn(
    part: nn.Module,
    rounding: Mapping[str, Rounded],
    given: Sequence[Call],
    wanted: Sequence[Float[Tensor, "..."]],
    schedule: Schedule,
) -> Learned:
    """Learn the positions of some weights of `part` so that it makes `wanted` of what it is given, sample by sample.

    Args:
        part: A float module; left as it was.
        rounding: The layers to round, by their name in `part`.
        given: Its arguments, one call per sample.
        wanted: What it should make of each.
        schedule: Steps, learning rate, batch, seed.
    """
    start = {n: r.position.clamp(-r.qmax, r.qmax) for n, r in rounding.items()}
    live = {n: replace(r, position=start[n].clone().requires_grad_(True)) for n, r in rounding.items()}

    def error(chosen: Sequence[int]) -> Tensor:
        weights = {f"{n}.weight".lstrip("."): r.integers() * r.step for n, r in live.items()}
        call = _together([given[i] for i in chosen])
        made = functional_call(part, weights, call.args, dict(call.kwargs))
        return (made - torch.cat([wanted[i] for i in chosen])).square().mean()

    def mean_error() -> float:
        with torch.no_grad():
            return sum(float(error([i])) for i in range(len(wanted))) / len(wanted)

    before = mean_error()
    if before > 0 and isfinite(before):
        _descend([r.position for r in live.values()], lambda chosen: error(chosen) / before, len(wanted), schedule)
    after = mean_error()
    if not after < before:
        return Learned(positions=start, before=before, after=before)
    return Learned(positions={n: r.position.detach() for n, r in live.items()}, before=before, after=after)


def _descend(
    positions: Sequence[Tensor], loss: Callable[[Sequence[int]], Tensor], samples: int, schedule: Schedule
) -> None:
    generator = torch.Generator().manual_seed(schedule.seed)
    optimizer = torch.optim.Adam(positions, lr=schedule.lr, betas=(0.9, 0.99))
    for step in range(schedule.steps):
        optimizer.param_groups[0]["lr"] = schedule.lr_at(step)
        chosen = torch.randint(samples, (schedule.batch,), generator=generator).tolist()
        optimizer.zero_grad(set_to_none=True)
        (loss(chosen) + schedule.dampening_at(step) * _distance(positions)).backward()
        optimizer.step()


def _distance(positions: Sequence[Tensor]) -> Tensor:
    """Mean squared distance to the nearest integer; 1 where all are as far as can be."""
    off = torch.stack([(p - p.detach().round()).square().sum() for p in positions]).sum()
    return 4 * off / sum(p.numel() for p in positions)


def _together(found: Sequence[Call]) -> Call:
    """One call for several samples; what has no sample axis is the same in all."""

    def joined(values: Sequence[Any]) -> Any:
        first = values[0]
        return torch.cat(list(values)) if isinstance(first, Tensor) and first.dim() and len(first) == 1 else first

    return Call(
        args=tuple(joined(values) for values in zip(*(call.args for call in found), strict=True)),
        kwargs={key: joined([call.kwargs[key] for call in found]) for key in found[0].kwargs},
    )


def _learn_unit(
    module: nn.Module,
    result: nn.Module,
    unit: Unit,
    inputs: Inputs,
    rounding: Mapping[str, Rounded],
    schedule: Schedule,
) -> Learned:
    """Targets from the float component, inputs from the part that is quantized already.

    Raises:
        UserError: the unit's error is not finite.
    """
    learned = learn(
        module.get_submodule(unit.name),
        {unit.inside(n): rounding[n] for n in unit.layers},
        calls(result, unit, inputs),
        results(module, unit, inputs),
        schedule,
    )
    if not isfinite(learned.before):
        raise UserError(
            f"quantize.adaround: the error of {unit.name} is not finite; check weights and calibration inputs"
        )
    return replace(learned, positions={n: learned.positions[unit.inside(n)] for n in unit.layers})


def _schedule(config: Config, seed: int) -> Schedule:
    return Schedule(steps=config.steps, lr=config.lr, batch=config.batch, seed=seed, dampening=config.dampening)


def _scale(layer: weight_grids.Layer, grid: weight_grids.Grid, config: Config) -> Tensor:
    return weight_grids.scale_for(layer.weight.detach(), grid, clip=config.clip)


def _start(layer: weight_grids.Layer, grid: weight_grids.Grid, scale: Tensor) -> Rounded:
    weight = layer.weight.detach()
    step = weight_grids.spread(scale, weight, grid)
    return Rounded(position=weight / step, step=step, qmax=grid.qmax)


def _write(file: Path, learned: Learned) -> None:
    errors = torch.tensor([learned.before, learned.after], dtype=torch.float64)
    write_tensors(file, {f"position.{n}": p for n, p in learned.positions.items()} | {"errors": errors})


def _read(file: Path) -> Learned:
    from safetensors.torch import load_file

    tensors = load_file(file)
    before, after = tensors.pop("errors").tolist()
    positions = {name.removeprefix("position."): p for name, p in tensors.items()}
    return Learned(positions=positions, before=before, after=after)


def _grids(layers: Mapping[str, weight_grids.Layer], config: Config) -> dict[str, weight_grids.Grid]:
    return weight_grids.grids(layers, bits=config.bits, group_size=config.group_size, eight_bits=config.eight_bits)


def _note(gains: Mapping[str, float]) -> str:
    mean, least = sum(gains.values()) / len(gains), min(gains, key=lambda name: gains[name])
    return (
        f"squared error of a unit on the calibration inputs: {mean:.1f} dB below that of round-to-nearest in the mean, "
        f"{gains[least]:.1f} dB in {least}"
    )
