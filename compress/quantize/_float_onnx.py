"""The float variant as an ONNX model for backends that quantize ONNX, and which of its nodes is which module."""

import ast
from typing import TYPE_CHECKING

import torch
from torch import nn

from compress.errors import require
from compress.quantize._quiet import quiet
from compress.records import Inputs

if TYPE_CHECKING:
    from onnx import ModelProto

OPERATIONS = ("Conv", "Gemm", "MatMul")  # what a Conv2d or Linear becomes


def traced(module: nn.Module, example: Inputs, purpose: str) -> "ModelProto":
    """The module at opset 21, nodes named after the modules that they came from.

    Opset 21 because backends write 4-bit and grouped integers into older opsets that cannot hold them.

    Raises:
        MissingExtra: onnx or onnxscript is not installed.
    """
    require("onnxscript", extra="onnx", purpose=purpose)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(module, example, dynamo=True, external_data=False, opset_version=21, verbose=False)
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model: ModelProto = program.model_proto
    taken: set[str] = set()
    for node in model.graph.node:
        scope = _scope(node.metadata_props)
        if node.op_type in OPERATIONS and scope and scope not in taken:
            node.name = scope
            taken.add(scope)
    return model


def input_names(model: "ModelProto") -> list[str]:
    """The names under which a runtime takes the inputs, in order."""
    return [given.name for given in model.graph.input]


def _scope(properties: object) -> str:
    for entry in properties:  # type: ignore[attr-defined]
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(entry.value)
            return str(scopes[-2]) if len(scopes) > 1 else ""
    return ""
