"""A module as an ONNX model in memory, the variant's integers in it: what ONNX, ORT and OpenVINO files are made of."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from compress.errors import require
from compress.export._labels import Output, input_names, with_inputs
from compress.export._onnx_graph import Rewriter, name_and_strip, norms_spelled_out
from compress.export._onnx_half import to_half
from compress.export._overflow import refuse_overflow
from compress.export._sizes import free_axes
from compress.nn.batches import take
from compress.nn.qmodules import quantized
from compress.nn.surgery import float_twin
from compress.records import Inputs

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a format's options ask of the graph, and which extra brings the packages that write it."""

    extra: str
    opset: int = 21
    dynamic: bool = True
    precision: Literal["float32", "float16"] = "float32"
    unsigned: bool = False  # weights of layers with ranges as uint8 around 128, which no processor's kernels clip


def built(
    module: nn.Module, example: Inputs, form: Form, *, metadata: Mapping[str, str], output: Output
) -> "ModelProto":
    """The whole model, checked.

    Raises:
        UserError: a layer has no place in the traced graph; or float16 is asked for and does not hold the values.
        MissingExtra: onnx or onnxscript is not installed.
    """
    onnx = require("onnx", extra=form.extra, purpose=f"export.{form.extra}")
    require("onnxscript", extra=form.extra, purpose=f"export.{form.extra}")
    if form.precision == "float16":
        refuse_overflow(module, example)
    model = _traced(float_twin(module), take(example, 0, 1), form, output)
    norms_spelled_out(onnx, model.graph)
    scopes, layers = name_and_strip(model), quantized(module)
    if layers:
        Rewriter(onnx, model.graph, unsigned=form.unsigned).place(layers, scopes)
    if form.precision == "float16":
        to_half(onnx, model)
    model.producer_name, model.producer_version = "mdcompress", ""
    onnx.helper.set_model_props(model, with_inputs(metadata, input_names(module, example)))
    onnx.checker.check_model(model, full_check=True)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporter warns about packages that are none of ours."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _traced(module: nn.Module, example: Inputs, form: Form, output: Output) -> "ModelProto":
    axes = free_axes(module, example) if form.dynamic else None
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            external_data=False,
            opset_version=form.opset,
            input_names=input_names(module, example),
            output_names=[output],
            dynamic_shapes=axes,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return program.model_proto
