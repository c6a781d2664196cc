"""Static quantization: integer weights per channel, activations on ranges measured once; convolutions included.

Source: Jacob et al. 2018, arXiv:1712.05877; the MSE range after OMSE (Choukroun et al. 2019, arXiv:1902.06822).
Differs: ranges come from histograms that are streamed, so memory does not grow with the number of samples; input and
output of every layer are quantized, so that runtimes can fuse an integer kernel; residual sums stay in float.
Cost: one pass of the calibration inputs through the variant; 16 kB per quantized layer.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from calibration import collect, observers
from compress.components import kind_of
from compress.nn.affine import (
    ActivationRange,
    PerChannel,
    QuantizedWeight,
    absmax_scale,
    activation_range,
    clipped_scale,
    round_to_scale,
)
from compress.nn.batches import split
from compress.nn.qmodules import QuantizedLayer, quantize_layer, quantized
from compress.nn.surgery import replaced
from compress.quantize._layers import achieved, chosen, left_in_float
from compress.records import Achieved, Needs, Prediction, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.STATISTICS
LARGEST_BIAS = 2.0**30  # of an integer bias: a power of two below the largest 32-bit integer


class Config(Schema):
    """Bits of weights and activations, and how activation ranges are chosen."""

    weight_bits: Literal[4, 8] = Field(8, description="Bits per weight, one scale per output channel.")
    activation_bits: Literal[8] = Field(8, description="Bits per activation, one range per tensor.")
    observer: Literal["min_max", "percentile", "mse"] = Field("mse", description="How a range is chosen.")
    percentile: float = Field(99.99, gt=50, le=100, description="For observer: percentile.")
    clip: bool = Field(True, description="Search the weights' clipping point with the least squared error.")
    batch: PositiveInt = Field(2, description="Calibration inputs run at once.")
    exclude: tuple[str, ...] = Field((), description="Layers to leave in float: names with * and ? wildcards.")


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Same architecture, fewer bits."""
    for arch in prediction.ends:
        with torch.device("meta"):
            chosen(kind_of(arch.kind).build(arch.config), config.exclude)
    return replace(
        prediction,
        weight_bits=config.weight_bits,
        activation_bits=config.activation_bits,
        granularity=PerChannel(),
        in_float=config.exclude,
    )


def apply(stage: StageInput, config: Config) -> StageResult:
    """Measure every chosen layer's input and output, then swap each for its quantized twin."""
    module = stage.variant.module
    layers = chosen(module, config.exclude)
    stage.progress(0, len(layers) + 1, "measuring activations")
    stats = collect.collect(module, split(stage.inputs, config.batch), list(layers))
    swaps = {}
    for done, (name, layer) in enumerate(layers.items()):
        stage.progress(done + 1, len(layers) + 1, name)
        given = choose_range(stats[name].input, config)
        spec = QuantizedLayer(
            bits=config.weight_bits,
            granularity=PerChannel(),
            input=given,
            output=choose_range(stats[name].output, config),
        )
        swaps[name] = quantize_layer(layer, spec, quantize_weight(layer, given, config))
    result = replaced(module, swaps).requires_grad_(False).eval()
    ranged = [q for q in quantized(result).values() if q.layer.input is not None and q.layer.output is not None]
    return StageResult(
        arch=stage.variant.arch,
        module=result,
        achieved=(
            achieved(result, swaps, config.weight_bits),
            Achieved(
                what=f"layers with {config.activation_bits}-bit activations",
                requested=len(layers),
                achieved=len(ranged),
                unit="layers",
                met=len(ranged) == len(layers),
            ),
        ),
        skipped=left_in_float(result, config.exclude),
    )


def quantize_weight(layer: nn.Conv2d | nn.Linear, given: ActivationRange, config: Config) -> QuantizedWeight:
    """The layer's weight, one scale per output channel, none so small that the integer bias would overflow.

    The bias is a 32-bit integer on the grid of input scale times weight scale, so a channel whose weights are (almost)
    nothing beside its bias needs a larger scale than its weights do.
    """
    weight = layer.weight.detach()
    search = clipped_scale if config.clip else absmax_scale
    scale = search(weight, bits=config.weight_bits, granularity=PerChannel())
    if layer.bias is not None:
        scale = scale.maximum(layer.bias.detach().abs() / (LARGEST_BIAS * given.scale))
    return round_to_scale(weight, scale, bits=config.weight_bits, granularity=PerChannel())


def choose_range(histogram: observers.Histogram, config: Config) -> ActivationRange:
    """The affine grid for one activation tensor."""
    match config.observer:
        case "min_max":
            low, high = observers.min_max(histogram)
        case "percentile":
            low, high = observers.percentile(histogram, config.percentile)
        case _:
            low, high = observers.mse(histogram, config.activation_bits)
    return activation_range(low, high, bits=config.activation_bits)
