"""Static quantization: integer weights per channel, activations on ranges measured once; convolutions included.

Source: Jacob et al. 2018, arXiv:1712.05877; the MSE range after OMSE (Choukroun et al. 2019, arXiv:1902.06822); bias
correction after Nagel et al. 2019 (arXiv:1906.04721).
A convolution that reads a concatenation (the 1x1 shortcut behind a UNet's skip) is taken apart, so that both halves
have ranges of their own (Q-Diffusion, Li et al. 2023, arXiv:2302.04304), and a layer whose first token is an outlier,
as in cross-attention to a text, keeps float activations (MixDQ, Zhao et al. 2024, arXiv:2405.17873).
Differs: ranges come from histograms that are streamed, so memory does not grow with the number of samples; input and
output of every convolution are quantized, so that runtimes can fuse an integer kernel; residual sums stay in float, and
so do the activations of the few layers that do the most damage for the least work (`protect`). Embeddings have integer
weights alone.
Cost: one pass of the calibration inputs through the variant, and one of the middle of two inputs for each layer that is
small enough to be protected (8x8 of a decoder's latents); 32 kB and up to 1 MB of activations per quantized layer.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, PositiveInt

from compress.components import kind_of
from compress.nn.affine import PerChannel
from compress.nn.batches import central_crop, take
from compress.nn.qmodules import quantizable
from compress.nn.splits import concatenations, split
from compress.nn.surgery import replaced
from compress.quantize._layers import achieved, chosen_layers, left_in_float
from compress.quantize._ranges import Settings, ranged, static_twins
from compress.records import Needs, Prediction, Skipped, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.STATISTICS
GLANCE = 8  # side of the latents that show where a network joins what it reads


class Config(Schema):
    """Bits of weights and activations, and how activation ranges are chosen."""

    weight_bits: Literal[4, 8] = Field(8, description="Bits per weight, one scale per output channel.")
    activation_bits: Literal[8] = Field(8, description="Bits per activation, one range per tensor.")
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
        activation_bits=config.activation_bits,
        granularity=PerChannel(),
        in_float=config.exclude,
    )


def apply(stage: StageInput, config: Config) -> StageResult:
    """Measure every chosen layer's input and output, then swap each for its quantized twin."""
    wanted = chosen_layers(stage.variant.module, config.exclude)
    joined = concatenations(stage.variant.module, central_crop(take(stage.inputs, 0, 1), GLANCE))
    apart = {name: widths for name, widths in joined.items() if name in wanted}
    module = split(stage.variant.module, apart)
    layers = {n: m for n, m in quantizable(module).items() if n in wanted or n.rpartition(".parts.")[0] in apart}
    settings = Settings(**config.model_dump(exclude={"exclude"}))
    measured = static_twins(module, layers, stage.inputs, settings, stage.progress)
    result = replaced(module, measured.swaps).requires_grad_(False).eval()
    return StageResult(
        arch=stage.variant.arch,
        module=result,
        achieved=(
            achieved(result, layers, config.weight_bits),
            ranged(result, measured.swaps, set(measured.protected), config.activation_bits),
        ),
        skipped=(
            *(Skipped(name=name, reason=reason) for name, reason in measured.protected.items()),
            *left_in_float(result, config.exclude),
        ),
        notes=tuple(
            f"{name} reads a concatenation: taken apart, with ranges for its {' + '.join(map(str, widths))} channels"
            for name, widths in apart.items()
        ),
    )
