"""torchao: static int8 of convolutions and linears through PT2E, or weight-only integers of linears.

Source: torchao 0.18, `quantization.pt2e` with X86InductorQuantizer; `IntxWeightOnlyConfig`.
Differs: integers, scales and ranges are read out, so every exporter can write them. `mode: weight_only` takes linears
alone, because torchao skips convolutions there without a word: a component that has any is refused when it is planned.
Cost: one exported graph and one pass of the calibration inputs; weight-only: one pass over the weights.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from compress.components import kind_of
from compress.errors import UserError, require
from compress.nn.affine import Granularity, PerChannel, PerGroup, QuantizedWeight
from compress.nn.surgery import twin
from compress.quantize import _backend, _pt2e
from compress.quantize._layers import chosen
from compress.quantize._quiet import quiet
from compress.records import Needs, Prediction, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.STATISTICS
PURPOSE = "quantize.torchao"


class Config(Schema):
    """Which of torchao's two ways, and their options."""

    mode: Literal["static", "weight_only"] = Field("static", description="static: 8 bits, convolutions too.")
    weight_bits: int = Field(8, ge=2, le=8, description="Bits per weight; static takes 8.")
    group_size: PositiveInt | None = Field(None, description="weight_only: one scale per so many inputs of a channel.")
    samples: PositiveInt = Field(32, description="static: calibration inputs to run.")
    exclude: tuple[str, ...] = Field((), description="Layers to leave in float: names with * and ? wildcards.")

    @model_validator(mode="after")
    def _fits(self) -> "Config":
        if self.mode == "static" and (self.weight_bits != 8 or self.group_size is not None):
            raise ValueError("mode: static has 8 bits per weight and one scale per channel; use mode: weight_only")
        return self

    @property
    def granularity(self) -> Granularity:
        """As the representation has it."""
        return PerChannel() if self.group_size is None else PerGroup(self.group_size)


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Same architecture, fewer bits.

    Raises:
        UserError: weight_only on a component with convolutions that are not excluded.
    """
    for arch in prediction.ends:
        with torch.device("meta"):
            _refuse_convolutions(chosen(kind_of(arch.kind).build(arch.config), config.exclude), config)
    return replace(
        prediction,
        weight_bits=config.weight_bits,
        activation_bits=8 if config.mode == "static" else 32,
        granularity=config.granularity,
        in_float=config.exclude,
    )


def apply(stage: StageInput, config: Config) -> StageResult:
    """Let torchao quantize a twin, read the result."""
    require("torchao", extra="torchao", purpose=PURPOSE)
    layers = chosen(stage.variant.module, config.exclude)
    _refuse_convolutions(layers, config)
    found = _static(stage, layers, config) if config.mode == "static" else _weight_only(layers, config)
    return _backend.adopted(stage, layers, found, config.exclude, config.weight_bits)


def _refuse_convolutions(layers: dict[str, nn.Conv2d | nn.Linear], config: Config) -> None:
    convolutions = [name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)]
    if config.mode == "weight_only" and convolutions:
        raise UserError(
            f"quantize.torchao: mode: weight_only leaves convolutions in float without a word, and {len(convolutions)} "
            f"are asked for ({', '.join(convolutions[:3])} ...): exclude them, or use quantize.rtn, quantize.gptq or "
            "quantize.adaround, which take them"
        )


def _static(stage: StageInput, layers: dict[str, nn.Conv2d | nn.Linear], config: Config) -> dict[str, _backend.Found]:
    with quiet():
        pt2e: Any = require("torchao.quantization.pt2e.quantize_pt2e", extra="torchao", purpose=PURPOSE)
        x86: Any = require(
            "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer", extra="torchao", purpose=PURPOSE
        )
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    graph = _pt2e.quantized_graph(stage, config.samples, lambda g: pt2e.prepare_pt2e(g, quantizer), pt2e.convert_pt2e)
    return _pt2e.read(graph, layers)


def _weight_only(layers: dict[str, nn.Conv2d | nn.Linear], config: Config) -> dict[str, _backend.Found]:
    quantization: Any = require("torchao.quantization", extra="torchao", purpose=PURPOSE)
    granularity = quantization.PerAxis(0) if config.group_size is None else quantization.PerGroup(config.group_size)
    mapping = quantization.MappingType.SYMMETRIC_NO_CLIPPING_ERR
    options = quantization.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{config.weight_bits}"), granularity=granularity, mapping_type=mapping
    )
    found = {}
    for name, layer in layers.items():
        holder = nn.Sequential(twin(layer))
        with quiet():
            quantization.quantize_(holder, options)
        weight: Any = holder[0].weight
        if hasattr(weight, "qdata"):
            qdata, clipped = _backend.symmetric(weight.qdata.short(), config.weight_bits)
            scale = weight.scale.float().reshape(len(weight.qdata), -1)
            found[name] = _backend.Found(
                weight=QuantizedWeight(
                    qdata=qdata,
                    scale=scale[:, 0] if config.group_size is None else scale,
                    bits=config.weight_bits,
                    granularity=config.granularity,
                ),
                clipped=clipped,
            )
    return found
