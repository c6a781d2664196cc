"""What `quantize.mixed` chooses between, and the choice under each kind of budget."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from compress.nn.affine import PerChannel, PerGroup, absmax_scale, clipped_scale, round_to_scale
from compress.nn.qmodules import FloatLayer, QuantizedLayer, QuantizedModule, quantize_layer
from compress.quantize import _layer_latency as layer_latency
from compress.quantize._assignment import cheapest_options
from compress.quantize._ranges import Settings, static_twins, without_ranges
from compress.quantize._sensitivity import Option, Sensitivity
from compress.records import Inputs, StageInput

PURPOSE = "quantize.mixed"
TIGHTENINGS = 8  # of what the damages may add up to, until the quality asked for is measured
FLOAT = Option(bits=32, granularity=None)

Twins = Mapping[str, Mapping[Option, QuantizedModule | None]]  # layer -> how it may be held, the coarsest first
Figures = Mapping[str, Mapping[Option, float]]
Assignment = Mapping[str, Option]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The layers, how each may be held, and what that does to the output."""

    layers: Mapping[str, FloatLayer]
    twins: Twins
    by: Mapping[str, Sensitivity]  # "mse", and "lpips" where it was measured

    def damages(self, by: str) -> Figures:
        """What each option is expected to add to the error."""
        found = self.by[by].damages()
        return {name: dict(zip(row, found[name], strict=True)) for name, row in self.twins.items()}

    def in_bytes(self) -> "Prices":
        """Of the layers' weights."""
        of = {name: {o: float(o.bytes_of(self.layers[name])) for o in row} for name, row in self.twins.items()}
        return Prices(of=of, in_float=4.0 * sum(layer.weight.numel() for layer in self.layers.values()), unit="bytes")

    def in_milliseconds(self, module: nn.Module, inputs: Inputs) -> "Prices":
        """Of the layers in ONNX Runtime on this host; fewer bits per weight alone do not change them."""
        times = layer_latency.milliseconds(module, self.layers, inputs)
        of = {
            name: {o: times[name].on_floats if o.activation_bits == 32 else times[name].on_integers for o in row}
            if name in times
            else dict.fromkeys(row, 0.0)
            for name, row in self.twins.items()
        }
        return Prices(of=of, in_float=sum(time.on_floats for time in times.values()), unit="ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What each option of each layer costs, and what all layers in float do."""

    of: Figures
    in_float: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An option for each layer, and the error that their damages add up to."""

    options: Assignment
    expected: float

    def swaps(self, twins: Twins) -> dict[str, QuantizedModule]:
        """The chosen twins; shallow copies, so that a bias can be replaced."""
        chosen = {name: twins[name][option] for name, option in self.options.items()}
        return {name: copy.copy(twin) for name, twin in chosen.items() if twin is not None}


def options(
    bits: Sequence[int], *, group_size: int | None, activation_bits: int | None, keep_float: bool
) -> tuple[Option, ...]:
    """From the coarsest to the finest. Integer kernels take weights of 8 bits with one scale per channel."""
    found = []
    for count in sorted(set(bits)):
        grouped = group_size is not None and count < 8
        granularity = PerGroup(group_size) if group_size is not None and grouped else PerChannel()
        if activation_bits is not None and count == 8:
            found.append(Option(bits=8, granularity=granularity, activation_bits=activation_bits))
        found.append(Option(bits=count, granularity=granularity))
    return (*found, FLOAT) if keep_float else tuple(found)


def twins_of(
    stage: StageInput, layers: Mapping[str, FloatLayer], allowed: Sequence[Option], *, clip: bool, batch: int
) -> dict[str, dict[Option, QuantizedModule | None]]:
    """Every layer held in every way that it can be; embeddings, and layers with outlying tokens, have no ranges."""
    on_ranges: dict[str, QuantizedModule] = {}
    if any(option.activation_bits != 32 for option in allowed):
        settings = Settings(
            weight_bits=8,
            activation_bits=8,
            observer="mse",
            percentile=100.0,
            clip=clip,
            bias_correction=False,
            protect=0.0,
            batch=batch,
        )
        on_ranges = static_twins(stage.variant.module, layers, stage.inputs, settings, stage.progress).swaps
    found: dict[str, dict[Option, QuantizedModule | None]] = {}
    for name, layer in layers.items():
        found[name] = {}
        for option in allowed:
            if option.fits(layer) and option.activation_bits == 32:
                found[name][option] = _weights_only(layer, option, on_ranges.get(name), clip)
            elif option.fits(layer) and on_ranges[name].layer.input is not None:
                found[name][option] = on_ranges[name]
    return found


def _weights_only(
    layer: FloatLayer, option: Option, on_ranges: QuantizedModule | None, clip: bool
) -> QuantizedModule | None:
    if option.granularity is None:
        return None
    if on_ranges is not None and option.bits == 8:
        return without_ranges(on_ranges)
    weight = layer.weight.detach()
    scale = (clipped_scale if clip else absmax_scale)(weight, bits=option.bits, granularity=option.granularity)
    stored = round_to_scale(weight, scale, bits=option.bits, granularity=option.granularity)
    return quantize_layer(layer, QuantizedLayer(bits=option.bits, granularity=option.granularity), stored)


def least_damage(damages: Figures, prices: Figures, budget: float) -> Choice | None:
    """The least damage whose prices fit the budget; None where no choice fits."""
    return _solved(damages, prices, budget, damages)


def least_bytes(
    damages: Figures, prices: Figures, allowed: float, error_of: Callable[[Choice], float]
) -> tuple[Choice, float]:
    """The fewest bytes with at most this error, as measured; the best that there is where that is not enough.

    Damages do not quite add up, so what they may add up to is tightened by as much as the error turned out too large.
    """
    limit = allowed
    for _ in range(TIGHTENINGS):
        choice = _solved(prices, damages, limit, damages)
        if choice is None:
            break
        error = error_of(choice)
        if error <= allowed:
            return choice, error
        limit *= 0.95 * allowed / error
    finest = {name: min(row, key=row.__getitem__) for name, row in damages.items()}
    choice = _choice(finest, damages)
    return choice, error_of(choice)


def _solved(costs: Figures, prices: Figures, budget: float, damages: Figures) -> Choice | None:
    rows = [list(costs[name].values()) for name in costs]
    found = cheapest_options(
        rows, [[prices[name][o] for o in row] for name, row in costs.items()], budget, purpose=PURPOSE
    )
    if found is None:
        return None
    return _choice({name: list(costs[name])[place] for name, place in zip(costs, found, strict=True)}, damages)


def _choice(assignment: Assignment, damages: Figures) -> Choice:
    return Choice(options=assignment, expected=sum(damages[name][option] for name, option in assignment.items()))
