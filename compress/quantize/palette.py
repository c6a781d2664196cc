"""Palettes: each weight is one of 2 to 256 free values, kept in a table; activations stay in float.

Source: weight sharing of Deep Compression (Han et al. 2016, arXiv:1510.00149), section 3, as Core ML's `constexpr_lut`
holds it; the weighting by activation energy is the diagonal of the layer's Hessian (SqueezeLLM, Kim et al. 2023,
arXiv:2306.07629, there of the loss).
Differs: the clusters come from one-dimensional dynamic programming and not from random starts (`compress.nn.kmeans`),
so the same weights give the same table, and no table is worse than a uniform grid.
Cost: about 0.1 s per table of 64 entries and 300,000 weights on one core, and
one pass of the calibration inputs where `weighted`.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from calibration import collect
from compress.components import kind_of
from compress.nn.affine import Palette, QuantizedWeight
from compress.nn.batches import split
from compress.nn.kmeans import best_table, nearest
from compress.nn.qmodules import FloatLayer, QuantizedLayer, quantize_layer
from compress.nn.surgery import replaced
from compress.quantize._layers import achieved, chosen_layers, left_in_float
from compress.records import Needs, Prediction, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.STATISTICS


class Config(Schema):
    """How many values, who shares them, and what counts as near."""

    bits: Literal[2, 3, 4, 5, 6, 7, 8] = Field(6, description="Bits per weight: a table has 2^bits values.")
    channels: PositiveInt | None = Field(
        None, description="Output channels that share a table; left out, one table for a whole layer."
    )
    weighted: bool = Field(
        True, description="Weigh errors by the energy of the activation that each weight is multiplied with."
    )
    batch: PositiveInt = Field(2, description="Calibration inputs run at once, for weighted.")
    exclude: tuple[str, ...] = Field((), description="Layers to leave in float: names with * and ? wildcards.")


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Same architecture, fewer bits."""
    for arch in prediction.ends:
        with torch.device("meta"):
            chosen_layers(kind_of(arch.kind).build(arch.config), config.exclude)
    return replace(prediction, weight_bits=config.bits, granularity=Palette(config.channels), in_float=config.exclude)


def apply(stage: StageInput, config: Config) -> StageResult:
    """Swap every layer that is not excluded for its twin with a palette."""
    module = stage.variant.module
    layers = chosen_layers(module, config.exclude)
    energies = _energies(stage, layers, config) if config.weighted else {}
    spec = QuantizedLayer(bits=config.bits, granularity=Palette(config.channels))
    swaps = {}
    for done, (name, layer) in enumerate(layers.items()):
        stage.progress(done, len(layers), name)
        weight = layer.weight.detach()
        weights = None if name not in energies else _per_weight(energies[name], layer)
        stored = palettized(weight, bits=config.bits, channels=config.channels, weights=weights)
        swaps[name] = quantize_layer(layer, spec, stored)
    result = replaced(module, swaps).requires_grad_(False).eval()
    return StageResult(
        arch=stage.variant.arch,
        module=result,
        achieved=(achieved(result, swaps, config.bits),),
        skipped=left_in_float(result, config.exclude),
    )


def palettized(
    weight: torch.Tensor, *, bits: int, channels: int | None, weights: torch.Tensor | None = None
) -> QuantizedWeight:
    """The weight as codes into tables of 2^bits values.

    Args:
        weight: [o, ...].
        bits: of a code.
        channels: output channels per table; None for one table.
        weights: how much the error of each weight counts; the weight's shape, or None for all alike.
    """
    tables, codes = [], []
    parts = weight.split(channels or weight.shape[0])
    counts = [None] * len(parts) if weights is None else list(weights.split(channels or weight.shape[0]))
    for part, count in zip(parts, counts, strict=True):
        table = best_table(part.reshape(-1), 2**bits, weights=None if count is None else count.reshape(-1))
        tables.append(table)
        codes.append((nearest(part, table) - 2 ** (bits - 1)).to(torch.int8))
    return QuantizedWeight(qdata=torch.cat(codes), scale=torch.stack(tables), bits=bits, granularity=Palette(channels))


def _energies(stage: StageInput, layers: dict[str, FloatLayer], config: Config) -> dict[str, torch.Tensor]:
    """Mean square of each input channel; embeddings have none, every row counts alike."""
    names = [name for name, layer in layers.items() if not isinstance(layer, nn.Embedding)]
    stage.progress(0, len(layers), "measuring activations")
    stats = collect.channels(stage.variant.module, split(stage.inputs, config.batch), names)
    return {name: found.input.energy for name, found in stats.items()}


def _per_weight(energy: torch.Tensor, layer: FloatLayer) -> torch.Tensor:
    """The energy of the input channel that each weight is multiplied with; [o, i, ...], groups taken apart."""
    weight = layer.weight
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    rows = energy.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
    return rows.reshape(*rows.shape, *[1] * (weight.dim() - 2)).expand(weight.shape).float()
