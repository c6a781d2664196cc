"""NNCF's post-training quantization of an ONNX model, its integers and ranges in our representation.

Source: nncf 3.4, `nncf.quantize` on ONNX: min-max ranges with fast bias correction.
Differs: integers, scales and ranges are read out of its QDQ graph. It is given the ONNX model and not the torch module,
because quantized torch modules lose their int8 weights on the way to ONNX.
Cost: two passes of the calibration inputs through ONNX Runtime; activations of one layer at a time.
"""

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, PositiveInt

from compress.components import kind_of
from compress.errors import require
from compress.nn.affine import PerChannel
from compress.nn.batches import split, spread, take
from compress.quantize import _backend, _float_onnx, _qdq
from compress.quantize._layers import chosen
from compress.quantize._quiet import quiet
from compress.records import Needs, Prediction, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.STATISTICS
PURPOSE = "quantize.nncf"


class Config(Schema):
    """What `nncf.quantize` is asked for."""

    preset: Literal["performance", "mixed"] = Field("performance", description="Symmetric activations, or not.")
    samples: PositiveInt = Field(32, description="Calibration inputs to run.")
    fast_bias_correction: bool = Field(True, description="Off: the slow one, layer after layer.")
    exclude: tuple[str, ...] = Field((), description="Layers to leave in float: names with * and ? wildcards.")


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Same architecture, 8 bits."""
    import torch

    for arch in prediction.ends:
        with torch.device("meta"):
            chosen(kind_of(arch.kind).build(arch.config), config.exclude)
    return replace(prediction, weight_bits=8, activation_bits=8, granularity=PerChannel(), in_float=config.exclude)


def apply(stage: StageInput, config: Config) -> StageResult:
    """Export the float variant, let NNCF quantize it, read the result."""
    onnx = require("onnx", extra="onnx", purpose=PURPOSE)
    nncf = require("nncf", extra="nncf", purpose=PURPOSE)
    layers = chosen(stage.variant.module, config.exclude)
    stage.progress(0, 2, "exporting the float variant")
    model = _float_onnx.traced(stage.variant.module, take(stage.inputs, 0, 1), PURPOSE)
    named = {node.name for node in model.graph.node if node.op_type in _float_onnx.OPERATIONS}
    names = _float_onnx.input_names(model)
    batches = [
        dict(zip(names, (x.numpy() for x in one), strict=True))
        for one in split(spread(stage.inputs, config.samples), 1)
    ]
    stage.progress(1, 2, "calibrating in NNCF")
    with quiet():
        made = nncf.quantize(
            model,
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset(config.preset),
            subset_size=len(batches),
            fast_bias_correction=config.fast_bias_correction,
            ignored_scope=_ignored(nncf, sorted(named - set(layers))),
        )
    return _backend.adopted(stage, layers, _qdq.read(onnx, made, layers), config.exclude, 8)


def _ignored(nncf: Any, names: list[str]) -> Any:
    return nncf.IgnoredScope(names=names) if names else None
