"""ONNX Runtime's static quantization (`quantize_static`, QDQ), its integers and ranges in our representation.

Source: onnxruntime.quantization 1.31; min-max, percentile and entropy calibration as there.
Differs: scales, zero points and integers are read out of its graph, so every exporter can write them; convolutions and
matrix products only (`operations: all` also quantizes what lies between, which costs quality and is not carried over).
Cost: one pass of the calibration inputs through ONNX Runtime; percentile and entropy hold every activation in memory,
so they are refused for more than `MEMORY_SAMPLES` calibration inputs: quantize.static streams histograms instead.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from compress.components import kind_of
from compress.errors import UserError, require
from compress.nn.affine import PerChannel
from compress.nn.batches import split, spread, take
from compress.quantize import _backend, _float_onnx, _qdq
from compress.quantize._layers import chosen
from compress.quantize._quiet import quiet
from compress.records import Needs, Prediction, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.STATISTICS
PURPOSE = "quantize.onnxruntime"
MEMORY_SAMPLES = 8


class Config(Schema):
    """What `quantize_static` is asked for."""

    calibrate: Literal["min_max", "percentile", "entropy"] = Field("min_max", description="How a range is chosen.")
    samples: PositiveInt = Field(32, description="Calibration inputs to run.")
    exclude: tuple[str, ...] = Field((), description="Layers to leave in float: names with * and ? wildcards.")


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Same architecture, 8 bits.

    Raises:
        UserError: a calibration that would hold every activation of many inputs in memory.
    """
    import torch

    _refuse_memory(config)
    for arch in prediction.ends:
        with torch.device("meta"):
            chosen(kind_of(arch.kind).build(arch.config), config.exclude)
    return replace(prediction, weight_bits=8, activation_bits=8, granularity=PerChannel(), in_float=config.exclude)


def apply(stage: StageInput, config: Config) -> StageResult:
    """Export the float variant, let ONNX Runtime quantize it, read the result."""
    onnx = require("onnx", extra="onnx", purpose=PURPOSE)
    quantization = require("onnxruntime.quantization", extra="onnx", purpose=PURPOSE)
    _refuse_memory(config)
    layers = chosen(stage.variant.module, config.exclude)
    stage.progress(0, 2, "exporting the float variant")
    model = _float_onnx.traced(stage.variant.module, take(stage.inputs, 0, 1), PURPOSE)
    methods = quantization.CalibrationMethod
    method = {"min_max": methods.MinMax, "percentile": methods.Percentile, "entropy": methods.Entropy}[config.calibrate]
    with tempfile.TemporaryDirectory() as folder, quiet():
        made = Path(folder) / "quantized.onnx"
        stage.progress(1, 2, "calibrating in ONNX Runtime")
        quantization.quantize_static(
            model,
            made,
            _Reader(quantization, model, stage, config.samples),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(_float_onnx.OPERATIONS),
            nodes_to_quantize=list(layers),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=method,
        )
        found = _qdq.read(onnx, onnx.load(made), layers)
    return _backend.adopted(stage, layers, found, config.exclude, 8)


def _refuse_memory(config: Config) -> None:
    if config.calibrate != "min_max" and config.samples > MEMORY_SAMPLES:
        raise UserError(
            f"quantize.onnxruntime: calibrate: {config.calibrate} holds every activation of all {config.samples} inputs"
            f" in memory (18 GB were seen); give samples of {MEMORY_SAMPLES} or fewer, or use quantize.static, "
            f"whose observer: {'percentile' if config.calibrate == 'percentile' else 'mse'} streams histograms"
        )


def _Reader(quantization: Any, model: Any, stage: StageInput, samples: int) -> Any:  # noqa: N802
    """ONNX Runtime wants an instance of its own class."""
    names = _float_onnx.input_names(model)
    arrays = (
        dict(zip(names, (x.numpy() for x in one), strict=True)) for one in split(spread(stage.inputs, samples), 1)
    )

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            return next(arrays, None)

    return Reader()
