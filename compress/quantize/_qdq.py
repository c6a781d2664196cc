"""Reading the integers, scales and ranges that a backend wrote into a QDQ ONNX graph.

Source: ONNX operator specification, QuantizeLinear-21 and DequantizeLinear-21.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from compress.errors import UserError
from compress.nn.affine import ActivationRange, PerChannel, PerTensor, QuantizedWeight
from compress.quantize._backend import Found, symmetric, unsigned
from compress.quantize._float_onnx import OPERATIONS

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def read(
    onnx: Any, model: "ModelProto", layers: Mapping[str, nn.Conv2d | nn.Linear], bits: int = 8
) -> dict[str, Found]:
    """What the graph says of each layer, by module name; layers without integers are left out.

    Raises:
        UserError: a weight in a form that we do not hold.
    """
    graph = model.graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    constants |= {
        n.output[0]: onnx.numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"
    }
    makers = {value: node for node in graph.node for value in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    found = {}
    for node in graph.node:
        if node.op_type in OPERATIONS and node.name in layers:
            taken = _weight(node, makers, constants, layers[node.name], bits)
            if taken is not None:
                found[node.name] = Found(
                    weight=taken[0],
                    clipped=taken[1],
                    input=_before(node.input[0], makers, constants),
                    output=_after(node.output[0], readers, constants),
                    bias=_bias(node, constants),
                )
    return found


def _weight(
    node: "NodeProto",
    makers: Mapping[str, "NodeProto"],
    constants: Mapping[str, np.ndarray],
    layer: nn.Conv2d | nn.Linear,
    bits: int,
) -> tuple[QuantizedWeight, int] | None:
    maker, turned = makers.get(node.input[1]), False
    while maker is not None and maker.op_type in ("Transpose", "Reshape", "Cast"):
        turned ^= maker.op_type == "Transpose"
        maker = makers.get(maker.input[0])
    if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] not in constants:
        return None
    integers = torch.from_numpy(constants[maker.input[0]].astype(np.int16))
    if len(maker.input) > 2 and np.any(constants[maker.input[2]]):
        raise UserError(f"{node.name}: the backend chose a weight zero point; ask it for symmetric weights")
    if layer.weight.dim() == 2 and (turned or node.op_type == "MatMul" or tuple(integers.shape) != layer.weight.shape):
        integers = integers.T
    if tuple(integers.shape) != tuple(layer.weight.shape):
        return None
    scale = torch.from_numpy(np.atleast_1d(constants[maker.input[1]]).astype(np.float32).reshape(-1).copy())
    granularity = PerTensor() if len(scale) == 1 and len(integers) > 1 else PerChannel()
    qdata, clipped = symmetric(integers, bits)
    return QuantizedWeight(qdata=qdata, scale=scale, bits=bits, granularity=granularity), clipped


def _bias(node: "NodeProto", constants: Mapping[str, np.ndarray]) -> torch.Tensor | None:
    """A float bias; one that the backend rounded is rounded by our layers themselves."""
    held = constants.get(node.input[2]) if len(node.input) > 2 else None
    return None if held is None or held.dtype != np.float32 else torch.from_numpy(held.copy())


def _before(
    value: str, makers: Mapping[str, "NodeProto"], constants: Mapping[str, np.ndarray]
) -> ActivationRange | None:
    maker = makers.get(value)
    return _grid(maker, constants) if maker is not None and maker.op_type == "DequantizeLinear" else None


def _after(
    value: str, readers: Mapping[str, list["NodeProto"]], constants: Mapping[str, np.ndarray]
) -> ActivationRange | None:
    """The grid of an output, where everything that reads it reads it quantized."""
    nodes = readers.get(value, [])
    if not nodes or any(node.op_type != "QuantizeLinear" for node in nodes):
        return None
    return _grid(nodes[0], constants)


def _grid(node: "NodeProto", constants: Mapping[str, np.ndarray]) -> ActivationRange:
    zero = constants[node.input[2]] if len(node.input) > 2 else np.zeros((), dtype=np.uint8)
    signed = zero.dtype == np.int8
    return unsigned(float(constants[node.input[1]]), int(zero), signed=signed)
