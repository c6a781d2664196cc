"""Intel Neural Compressor's static int8 (PT2E), its integers and ranges in our representation.

Source: neural-compressor 3.10 (neural_compressor.torch.quantization.StaticQuantConfig), on torchao's PT2E flow.
Differs: integers, scales and ranges are read out, so every exporter can write them. Its GPTQ, SmoothQuant and AutoRound
do not run with the packages it comes with; quantize.gptq, quantize.smooth and quantize.adaround are ours.
Cost: one exported graph and one pass of the calibration inputs.
"""

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, PositiveInt

from compress.components import kind_of
from compress.errors import require
from compress.nn.affine import PerChannel
from compress.quantize import _backend, _pt2e
from compress.quantize._layers import chosen
from compress.quantize._quiet import quiet
from compress.records import Needs, Prediction, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.STATISTICS
PURPOSE = "quantize.neural_compressor"


class Config(Schema):
    """What `StaticQuantConfig` is asked for."""

    activations: Literal["minmax", "kl"] = Field("kl", description="How a range is chosen.")
    samples: PositiveInt = Field(32, description="Calibration inputs to run.")
    exclude: tuple[str, ...] = Field((), description="Layers to leave in float: names with * and ? wildcards.")


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Same architecture, 8 bits."""
    import torch

    for arch in prediction.ends:
        with torch.device("meta"):
            chosen(kind_of(arch.kind).build(arch.config), config.exclude)
    return replace(prediction, weight_bits=8, activation_bits=8, granularity=PerChannel(), in_float=config.exclude)


def apply(stage: StageInput, config: Config) -> StageResult:
    """Let Neural Compressor quantize an exported twin, read the result."""
    layers = chosen(stage.variant.module, config.exclude)
    with quiet():
        nc: Any = require("neural_compressor.torch.quantization", extra="neural-compressor", purpose=PURPOSE)
        options = nc.StaticQuantConfig(w_dtype="int8", act_dtype="uint8", act_sym=False, act_algo=config.activations)
    graph = _pt2e.quantized_graph(
        stage, config.samples, lambda g: nc.prepare(_marked(g), quant_config=options), nc.convert
    )
    return _backend.adopted(stage, layers, _pt2e.read(graph, layers), config.exclude, 8)


def _marked(graph: Any) -> Any:
    """Neural Compressor looks for the marks that its own export leaves."""
    graph._exported, graph.dynamic_shapes = True, None
    return graph
