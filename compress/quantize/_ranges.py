"""Integer layers with measured activation ranges: what every static method does once it has decided what to measure.

Source: Jacob et al. 2018, arXiv:1712.05877; the MSE range after OMSE (Choukroun et al. 2019, arXiv:1902.06822).
Differs: ranges, outlying tokens and what biases need are measured in the same pass; a linear layer's output stays in
float, because runtimes have an integer kernel for that (ONNX Runtime's QGemm) and it loses nothing.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from calibration import collect, observers
from compress.nn import cost
from compress.nn.affine import (
    ActivationRange,
    PerChannel,
    QuantizedWeight,
    absmax_scale,
    activation_range,
    clipped_scale,
    round_to_scale,
)
from compress.nn.batches import central_crop, split, spread, take
from compress.nn.qmodules import FloatLayer, QEmbedding, QuantizedLayer, QuantizedModule, quantize_layer, quantized
from compress.nn.surgery import replaced
from compress.quantize._biases import Averages, correct_biases
from compress.quantize._layout import channels_last
from compress.quantize._tokens import FirstTokens
from compress.records import Achieved, Inputs

LARGEST_BIAS = 2.0**30  # of an integer bias: a power of two below the largest 32-bit integer
PROTECTION_SAMPLES, PROTECTION_SIZE = 2, 16  # the damage of a layer shows on the middle of few inputs,
PICTURE, LATENTS_OF_PICTURE = 64, 8  # and a decoder makes as wide a picture as is needed of even fewer latents
COUNTED = 1 << 18  # values of a tensor that one sample adds to its histogram: neighbours tell the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Bits, and how ranges are chosen."""

    weight_bits: int
    activation_bits: int
    observer: Literal["min_max", "percentile", "mse"]
    percentile: float
    clip: bool
    bias_correction: bool
    protect: float
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Integer twins by name, and the layers among them whose activations stayed in float, with the reason."""

    swaps: dict[str, QuantizedModule]
    protected: dict[str, str]


def static_twins(
    module: nn.Module,
    layers: Mapping[str, FloatLayer],
    inputs: Inputs,
    settings: Settings,
    progress: Callable[[int, int, str], None],
) -> Measured:
    """Measure every layer's input and output on `inputs`, and give each layer its quantized twin."""
    inputs = channels_last(module, inputs)
    names = [name for name, layer in layers.items() if not isinstance(layer, nn.Embedding)]
    total = len(layers) + 2
    progress(0, total, "measuring activations")
    tokens, averages = FirstTokens(), Averages(len(inputs[0]))
    also = [tokens.see, averages.see] if settings.bias_correction else [tokens.see]
    stats = collect.collect(module, split(inputs, settings.batch), names, most=COUNTED, also=also)
    swaps = {}
    for done, (name, layer) in enumerate(layers.items()):
        progress(done + 1, total, name)
        found = stats.get(name)
        given = None if found is None else choose_range(found.input, settings)
        spec = QuantizedLayer(
            bits=settings.weight_bits,
            granularity=PerChannel(),
            input=given,
            output=choose_range(found.output, settings) if found and isinstance(layer, nn.Conv2d) else None,
        )
        swaps[name] = quantize_layer(layer, spec, integer_weight(layer, given, settings))
    progress(len(layers) + 1, total, "protecting layers and correcting biases")
    protected = _spare_tokens(swaps, tokens)
    protected |= _protect(module, swaps, inputs, settings.protect)
    if settings.bias_correction:
        correct_biases(layers, swaps, averages)
    return Measured(swaps=swaps, protected=protected)


def ranged(module: nn.Module, swaps: Mapping[str, QuantizedModule], protected: set[str], bits: int) -> Achieved:
    """Layers that should have ranges (all but embeddings and protected ones) against those that have."""
    wanted = {name for name, twin in swaps.items() if not isinstance(twin, QEmbedding)} - protected
    done = {name for name, q in quantized(module).items() if q.layer.input is not None}
    return Achieved(
        what=f"layers with {bits}-bit activations",
        requested=len(wanted),
        achieved=len(done),
        unit="layers",
        met=wanted == done,
    )


def integer_weight(layer: FloatLayer, given: ActivationRange | None, settings: Settings) -> QuantizedWeight:
    """The layer's weight, one scale per output channel, none so small that the integer bias would overflow.

    The bias is a 32-bit integer on the grid of input scale times weight scale, so a channel whose weights are (almost)
    nothing beside its bias needs a larger scale than its weights do.
    """
    weight = layer.weight.detach()
    search = clipped_scale if settings.clip else absmax_scale
    scale = search(weight, bits=settings.weight_bits, granularity=PerChannel())
    if given is not None and not isinstance(layer, nn.Embedding) and layer.bias is not None:
        scale = scale.maximum(layer.bias.detach().abs() / (LARGEST_BIAS * given.scale))
    return round_to_scale(weight, scale, bits=settings.weight_bits, granularity=PerChannel())


def choose_range(histogram: observers.Histogram, settings: Settings) -> ActivationRange:
    """The affine grid for one activation tensor."""
    match settings.observer:
        case "min_max":
            low, high = observers.min_max(histogram)
        case "percentile":
            low, high = observers.percentile(histogram, settings.percentile)
        case _:
            low, high = observers.mse(histogram, settings.activation_bits)
    return activation_range(low, high, bits=settings.activation_bits)


def _spare_tokens(swaps: dict[str, QuantizedModule], tokens: FirstTokens) -> dict[str, str]:
    """Give back float activations to the layers whose first token would take the grid for itself; into `swaps`."""
    found = tokens.outliers()
    for name in found:
        swaps[name] = without_ranges(swaps[name])
    return {
        name: f"activations left in float: its first token is {ratio:.1f} times as large as any other"
        for name, ratio in found.items()
    }


def _protect(module: nn.Module, swaps: dict[str, QuantizedModule], inputs: Inputs, share: float) -> dict[str, str]:
    """Give back float activations to the layers whose ranges hurt the most per MAC, within `share` of all MACs.

    Damage is the squared error of one layer's ranges alone: layers that read the same tensor have errors that hide each
    other. A layer is worth it when its damage is more than an average layer's part of what is left. The weights stay
    integers. Written into `swaps`.
    """
    few = _middle(module, spread(inputs, PROTECTION_SAMPLES))
    macs = {layer.name: layer.macs for layer in cost.measure(module, few).layers}
    budget = share * sum(macs.values())
    candidates = [n for n, q in swaps.items() if q.layer.input is not None and macs.get(n, 0) <= budget]
    if not candidates:
        return {}
    freed = {name: without_ranges(twin) for name, twin in swaps.items()}
    with torch.no_grad():
        expected = replaced(module, freed)(*few)

        def damage(on_ranges: Mapping[str, QuantizedModule]) -> float:
            return float((replaced(module, freed | dict(on_ranges))(*few) - expected).square().mean())

        whole = damage(swaps)
        alone = {name: damage({name: swaps[name]}) for name in candidates}
    protected, left = {}, whole
    for name in sorted(candidates, key=lambda n: alone[n] / max(macs.get(n, 0), 1), reverse=True):
        if alone[name] > left / len(swaps) and macs.get(name, 0) <= budget:
            budget, left = budget - macs.get(name, 0), left - alone[name]
            swaps[name] = freed[name]
            protected[name] = (
                f"activations left in float: alone they make {alone[name] / whole:.1%} of the squared error"
            )
    return protected


def _middle(module: nn.Module, inputs: Inputs) -> Inputs:
    """The middle of the inputs: as much as a layer's damage shows on."""
    small = central_crop(inputs, LATENTS_OF_PICTURE)
    with torch.no_grad():
        made = module(*take(small, 0, 1))
    return small if made.dim() == 4 and made.shape[-1] >= PICTURE else central_crop(inputs, PROTECTION_SIZE)


def without_ranges(twin: QuantizedModule) -> QuantizedModule:
    """The same layer on float activations; shares its tensors."""
    free = copy.copy(twin)
    free.layer = replace(twin.layer, input=None, output=None)
    return free
