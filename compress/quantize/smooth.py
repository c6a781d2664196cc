"""SmoothQuant: large activation channels made small and their weights large, then quantized.

Source: Xiao et al. 2022, arXiv:2211.10438: channel j is divided by max|X_j|^alpha / max|W_j|^(1 - alpha).
Differs: the division goes into any norm, convolution or linear layer that feeds the layer directly or through a ReLU
(between two convolutions it is the cross-layer equalisation of Nagel et al. 2019, arXiv:1906.04721), found and proved
on the network itself (`compress.nn.balance`). Behind SiLU or GELU no such move is exact: these layers are quantized as
they are and named. Attention's values and its output projection are not balanced either.
Cost: that of `quantize.static`, and one pass of the calibration inputs more.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from calibration import collect
from compress.components import kind_of
from compress.nn.affine import PerChannel
from compress.nn.balance import Seam, column_peaks, moved, seams
from compress.nn.batches import split, take
from compress.nn.qmodules import FloatLayer, QuantizedLayer, QuantizedModule, quantize_layer
from compress.nn.surgery import replaced
from compress.quantize._layers import achieved, chosen_layers, left_in_float
from compress.quantize._ranges import Settings, integer_weight, ranged, static_twins
from compress.records import Needs, Prediction, Skipped, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.STATISTICS
LARGEST = 2.0**20  # of a scale, and its inverse the smallest: a channel that is next to nothing stays a normal number


class Config(Schema):
    """How far the weights take over from the activations, and what is quantized then."""

    alpha: float = Field(0.5, ge=0, le=1, description="0 leaves activations alone, 1 makes all their channels alike.")
    weight_bits: Literal[4, 8] = Field(8, description="Bits per weight, one scale per output channel.")
    activation_bits: Literal[8] | None = Field(8, description="Bits per activation; null quantizes weights alone.")
    observer: Literal["min_max", "percentile", "mse"] = Field("mse", description="How a range is chosen.")
    percentile: float = Field(99.99, gt=50, le=100, description="For observer: percentile.")
    clip: bool = Field(True, description="Search the weights' clipping point with the least squared error.")
    bias_correction: bool = Field(True, description="Take the mean error of each output channel out of the bias.")
    protect: float = Field(
        0.01, ge=0, le=1, description="Share of the MACs that may keep float activations where those hurt the most."
    )
    batch: PositiveInt = Field(2, description="Calibration inputs run at once.")
    exclude: tuple[str, ...] = Field((), description="Layers to leave in float: names with * and ? wildcards.")


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Same architecture, fewer bits."""
    for arch in prediction.ends:
        with torch.device("meta"):
            chosen_layers(kind_of(arch.kind).build(arch.config), config.exclude)
    return replace(
        prediction,
        weight_bits=config.weight_bits,
        activation_bits=config.activation_bits or prediction.activation_bits,
        granularity=PerChannel(),
        in_float=config.exclude,
    )


def apply(stage: StageInput, config: Config) -> StageResult:
    """Balance what can be balanced, then quantize every layer that is not excluded."""
    chosen_layers(stage.variant.module, config.exclude)
    found, left = seams(stage.variant.module, take(stage.inputs, 0, 1))
    module = smoothed(stage.variant.module, found, stage, config)
    layers = chosen_layers(module, config.exclude)
    settings = Settings(**config.model_dump(exclude={"exclude", "alpha", "activation_bits"}), activation_bits=8)
    if config.activation_bits is None:
        swaps, protected = _weights_only(layers, settings), dict[str, str]()
    else:
        measured = static_twins(module, layers, stage.inputs, settings, stage.progress)
        swaps, protected = measured.swaps, measured.protected
    result = replaced(module, swaps).requires_grad_(False).eval()
    done = [achieved(result, layers, config.weight_bits)]
    if config.activation_bits is not None:
        done.append(ranged(result, swaps, set(protected), config.activation_bits))
    unbalanced = {name: f"quantized, but not balanced: {why}" for name, why in left.items() if name in layers}
    return StageResult(
        arch=stage.variant.arch,
        module=result,
        achieved=tuple(done),
        skipped=(
            *(Skipped(name=name, reason=reason) for name, reason in (*protected.items(), *unbalanced.items())),
            *left_in_float(result, config.exclude),
        ),
        notes=(f"balanced {len(layers.keys() - left.keys())} layers behind {len(found)} others",),
    )


def smoothed(module: nn.Module, found: tuple[Seam, ...], stage: StageInput, config: Config) -> nn.Module:
    """The same function with balanced seams; a module that shares every other tensor with `module`."""
    if not found:
        return module
    stage.progress(0, 1, "measuring channels")
    stats = collect.channels(module, split(stage.inputs, config.batch), [seam.readers[0] for seam in found])
    scales = {
        seam: smoothing_scale(stats[seam.readers[0]].input.peak.float(), column_peaks(module, seam), config.alpha)
        for seam in found
    }
    return moved(module, scales)


def smoothing_scale(activations: torch.Tensor, weights: torch.Tensor, alpha: float) -> torch.Tensor:
    """What to divide each channel by, from its peaks [c] and [c]; 1 for a channel that one side never uses."""
    scale = activations.pow(alpha) / weights.pow(1 - alpha)
    alive = (activations > 0) & (weights > 0)
    return torch.where(alive, scale, torch.ones_like(scale)).clamp(1 / LARGEST, LARGEST)


def _weights_only(layers: dict[str, FloatLayer], settings: Settings) -> dict[str, QuantizedModule]:
    spec = QuantizedLayer(bits=settings.weight_bits, granularity=PerChannel())
    return {name: quantize_layer(layer, spec, integer_weight(layer, None, settings)) for name, layer in layers.items()}
