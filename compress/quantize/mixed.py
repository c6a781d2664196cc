"""Bits for each layer by itself: measured sensitivity, then the best choice under a budget of bytes, dB or time.

Source: HAWQ-V3 (Yao et al. 2021, arXiv:2011.10680): an integer programme over sensitivity and cost.
Differs: sensitivity is measured at the component's output and not taken from a Hessian's trace; every layer is rounded
alone and spared alone, because a layer that hurts little by itself may hurt more among others; layers that need care
(the ends, the shortcuts) are not named but found, and float is one of the options; a quality budget is checked on the
quantized component and tightened until it holds.
Cost: one pass of a few small inputs for each layer and option, and one more per layer; one of four whole inputs for the
biases; with `activation_bits` one of all; with `latency` some twenty runs of each distinct layer in ONNX Runtime.

The sensitivities are kept as the table "sensitivity": a row for each layer with its weights, MACs, "mse alone, OPTION"
(and "lpips alone, OPTION") for every option but float, "mse spared", and what it got: "bits" (32: float) and
"activation bits".
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from compress.components import kind_of
from compress.errors import UserError
from compress.nn import cost
from compress.nn.batches import central_crop, spread, take
from compress.nn.qmodules import FloatLayer
from compress.nn.surgery import replaced
from compress.quantize import _mixing as mixing
from compress.quantize._biases import averages_of, correct_biases
from compress.quantize._layers import achieved, chosen_layers, left_in_float
from compress.quantize._sensitivity import Option, Target, judge_of, measure, target_of
from compress.records import Achieved, Cell, Held, Needs, Prediction, Skipped, StageInput, StageResult, Table
from compress.schema import Schema

NEEDS = Needs.STATISTICS


class Config(Schema):
    """What a layer may get, the budget, and how sensitivity is measured. Exactly one budget is given."""

    bits: tuple[Literal[2, 3, 4, 5, 6, 7, 8], ...] = Field((4, 8), min_length=1, description="Bits per weight.")
    group_size: PositiveInt | None = Field(
        None, description="Inputs per scale below 8 bits, for layers whose inputs it divides; null: one per channel."
    )
    keep_float: bool = Field(True, description="Whether a layer may stay in float.")
    activation_bits: Literal[8] | None = Field(None, description="8: layers of 8 bits may have 8-bit activations too.")
    bytes_per_weight: float | None = Field(None, gt=0, lt=4, description="Budget: scales included, on average.")
    quality: float | None = Field(
        None, gt=0, lt=120, description="Budget: least dB to the float output (PSNR of pictures, SQNR of the rest)."
    )
    latency: float | None = Field(None, gt=0, lt=1, description="Budget: share of the layers' float time on this host.")
    minimise: Literal["mse", "lpips"] = Field("mse", description="What counts as damage under bytes and latency.")
    lpips: bool = Field(True, description="Measure LPIPS (st-alex) as well, where the output is a picture.")
    clip: bool = Field(True, description="Search the weights' clipping point with the least squared error.")
    bias_correction: bool = Field(True, description="Take the mean error of each output channel out of the bias.")
    samples: PositiveInt = Field(4, description="Calibration inputs that sensitivity is measured on.")
    latent_size: PositiveInt = Field(16, description="Side of the central crop of each of them.")
    batch: PositiveInt = Field(2, description="Calibration inputs run at once, for activation_bits.")
    exclude: tuple[str, ...] = Field((), description="Layers to leave in float: names with * and ? wildcards.")

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        budgets = (self.bytes_per_weight, self.quality, self.latency)
        if sum(budget is not None for budget in budgets) != 1:
            raise ValueError("give exactly one budget: bytes_per_weight, quality or latency")
        if self.activation_bits is not None and 8 not in self.bits:
            raise ValueError("activation_bits: 8 goes with weights of 8 bits; put 8 into bits")
        if self.latency is not None and self.activation_bits is None:
            raise ValueError("only integer kernels are faster: latency needs activation_bits: 8")
        if self.minimise == "lpips" and not (self.lpips and self.quality is None):
            raise ValueError("minimise: lpips needs lpips: true, and a budget of bytes or latency")
        return self

    def options(self) -> tuple[Option, ...]:
        """What a layer may get, from the coarsest to the finest."""
        return mixing.options(
            self.bits, group_size=self.group_size, activation_bits=self.activation_bits, keep_float=self.keep_float
        )


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Same architecture; each layer has one of the options.

    Raises:
        UserError: a layer has no option, the budget is below the least that the options need, or an exclude pattern
            matches nothing.
    """
    for arch in prediction.ends:
        with torch.device("meta"):
            _check(chosen_layers(kind_of(arch.kind).build(arch.config), config.exclude), config)
    held = [Held(bits=o.bits, granularity=o.granularity, activation_bits=o.activation_bits) for o in config.options()]
    first = min(held, key=lambda h: (h.activation_bits, h.bits))
    return replace(
        prediction,
        weight_bits=first.bits,
        activation_bits=first.activation_bits,
        granularity=first.granularity,
        others=tuple(h for h in held if h != first),
        bytes_per_weight=config.bytes_per_weight,
        in_float=config.exclude,
    )


def apply(stage: StageInput, config: Config) -> StageResult:
    """Measure, choose, and swap each layer for its twin with the bits that it got."""
    module = stage.variant.module
    layers = chosen_layers(module, config.exclude)
    _check(layers, config)
    few = central_crop(spread(stage.inputs, config.samples), config.latent_size)
    target = target_of(module, few)
    if config.minimise == "lpips" and not target.picture:
        raise UserError("quantize.mixed: LPIPS compares pictures of at least 32 pixels; use minimise: mse")
    judge = judge_of(target, lpips=config.lpips and target.picture)
    twins = mixing.twins_of(stage, layers, config.options(), clip=config.clip, batch=config.batch)
    found = measure(module, {n: list(row.values()) for n, row in twins.items()}, few, judge, stage.progress)

    seen = averages_of(module, layers, stage.inputs, config.batch) if config.bias_correction else None

    def made(choice: mixing.Choice) -> nn.Module:
        swaps = choice.swaps(twins)
        if seen is not None:
            correct_biases(layers, swaps, seen)
        return replaced(module, swaps).requires_grad_(False).eval()

    def error(choice: mixing.Choice) -> float:
        with torch.no_grad():
            return judge(made(choice)(*few))[0]

    measured = mixing.Measured(layers=layers, twins=twins, by=dict(zip(("mse", "lpips"), found, strict=False)))
    choice, budget = _within_budget(stage, config, measured, target, error)
    result = made(choice)
    decibels = target.decibels(error(choice))
    return StageResult(
        arch=stage.variant.arch,
        module=result,
        achieved=(*_by_bits(result, choice), budget),
        skipped=_in_float(result, choice, measured, config),
        notes=(
            f"{decibels:.2f} dB to the float output on the inputs that sensitivity was measured on",
            *_without(layers, config),
        ),
        tables=(_table(stage, measured, choice),),
    )


def _check(layers: Mapping[str, FloatLayer], config: Config) -> None:
    bare = [name for name, layer in layers.items() if not any(o.fits(layer) for o in config.options())]
    if bare:
        raise UserError(
            f"quantize.mixed: group_size {config.group_size} does not divide the inputs of {', '.join(bare)}, and they "
            "have no other option; put 8 into bits, allow keep_float, or exclude these layers"
        )
    weights = sum(layer.weight.numel() for layer in layers.values())
    least = sum(min(o.bytes_of(layer) for o in config.options() if o.fits(layer)) for layer in layers.values())
    if config.bytes_per_weight is not None and least > config.bytes_per_weight * weights:
        raise UserError(
            f"quantize.mixed: {config.bytes_per_weight:g} bytes per weight are asked for, and bits {list(config.bits)} "
            f"with their scales need at least {least / weights:.4f}; allow fewer bits or larger groups, or exclude less"
        )


def _without(layers: Mapping[str, FloatLayer], config: Config) -> list[str]:
    """Which layers had fewer options than the others."""
    return [
        f"not open to {', '.join(odd)}: {option.label}, whose groups of {config.group_size} do not divide their inputs"
        for option in config.options()
        if (odd := [name for name, layer in layers.items() if not option.fits(layer)])
    ]


def _within_budget(
    stage: StageInput,
    config: Config,
    measured: mixing.Measured,
    target: Target,
    error_of: Callable[[mixing.Choice], float],
) -> tuple[mixing.Choice, Achieved]:
    """The best choice, and the budget as what was to be gained: dB, or time or bytes saved."""
    damages = measured.damages(config.minimise)
    if config.quality is not None:
        allowed = target.power / 10 ** (config.quality / 10)
        choice, error = mixing.least_bytes(damages, measured.in_bytes().of, allowed, error_of)
        return choice, _gained("quality on calibration inputs", config.quality, target.decibels(error), "dB")
    if config.latency is not None:
        prices, share = measured.in_milliseconds(stage.variant.module, stage.inputs), config.latency
    else:
        prices, share = measured.in_bytes(), (config.bytes_per_weight or 0.0) / 4
    found = mixing.least_damage(damages, prices.of, share * prices.in_float)
    if found is None:
        least = sum(min(row.values()) for row in prices.of.values()) / prices.in_float
        raise UserError(
            f"quantize.mixed: {share:.0%} of the layers' {prices.unit} are asked for, and {least:.0%} is the least "
            "that the options need on this host; raise the budget"
        )
    used = sum(prices.of[name][option] for name, option in found.options.items())
    what = "time of layers saved" if prices.unit == "ms" else "bytes of weights saved"
    return found, _gained(what, (1 - share) * prices.in_float, prices.in_float - used, prices.unit)


def _gained(what: str, requested: float, reached: float, unit: str) -> Achieved:
    met = reached >= requested * (1 - 1e-9)
    return Achieved(what=what, requested=requested, achieved=reached, unit=unit, met=met)


def _by_bits(result: nn.Module, choice: mixing.Choice) -> list[Achieved]:
    bits = sorted({option.bits for option in choice.options.values()} - {32})
    return [achieved(result, [n for n, o in choice.options.items() if o.bits == count], count) for count in bits]


def _in_float(
    result: nn.Module, choice: mixing.Choice, measured: mixing.Measured, config: Config
) -> tuple[Skipped, ...]:
    """Layers that were left in float because rounding them hurt more than it saved, and what is never quantized."""
    by, rows = measured.by["mse"], []
    for name, option in choice.options.items():
        if option.granularity is None:
            share = by.alone[name][0] / by.whole if by.whole > 0 else 0.0
            coarsest = next(iter(measured.twins[name])).label
            rows.append(
                Skipped(
                    name=name,
                    reason=f"in float by choice: alone at {coarsest} it makes {share:.1%} of the squared error of all",
                )
            )
    chosen = {row.name for row in rows}
    return (*rows, *(row for row in left_in_float(result, config.exclude) if row.name not in chosen))


def _table(stage: StageInput, measured: mixing.Measured, choice: mixing.Choice) -> Table:
    macs = {c.name: c.macs for c in cost.measure(stage.variant.module, take(stage.inputs, 0, 1)).layers}
    options = list(dict.fromkeys(o for row in measured.twins.values() for o in row if o.granularity is not None))
    rows: list[tuple[Cell, ...]] = []
    for name, layer in measured.layers.items():
        places = {option: place for place, option in enumerate(measured.twins[name])}
        alone = [by.alone[name][places[o]] if o in places else None for by in measured.by.values() for o in options]
        got = choice.options[name]
        spared = measured.by["mse"].spared[name]
        rows.append((name, layer.weight.numel(), macs.get(name, 0), *alone, spared, got.bits, got.activation_bits))
    columns = [f"{measure} alone, {option.label}" for measure in measured.by for option in options]
    return Table(
        name="sensitivity",
        title="What rounding each layer costs, and the bits that it got",
        columns=("layer", "weights", "macs", *columns, "mse spared", "bits", "activation bits"),
        rows=tuple(rows),
    )
