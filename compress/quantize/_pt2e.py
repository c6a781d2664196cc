"""Static quantization through PyTorch's PT2E flow, read back layer by layer.

Source: torchao.quantization.pt2e 0.18 (prepare_pt2e, convert_pt2e); `quantized_decomposed` operators of PyTorch.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import fx, nn

from compress.nn.affine import ActivationRange, PerChannel, PerTensor, QuantizedWeight
from compress.nn.batches import split, spread, take
from compress.quantize._backend import Found, symmetric, unsigned
from compress.quantize._quiet import quiet
from compress.records import StageInput

OPERATIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)


def quantized_graph(
    stage: StageInput, samples: int, prepare: Callable[[fx.GraphModule], Any], convert: Callable[[Any], Any]
) -> fx.GraphModule:
    """The variant exported, prepared, calibrated and converted."""
    inputs = spread(stage.inputs, samples)
    with quiet(), torch.no_grad():
        graph = torch.export.export(stage.variant.module, take(inputs, 0, 1), strict=False).module()
        prepared = prepare(graph)
        for done, part in enumerate(split(inputs, 1)):
            stage.progress(done, samples, "calibrating")
            prepared(*part)
        converted: fx.GraphModule = convert(prepared)
    return converted


def read(graph: fx.GraphModule, layers: Mapping[str, nn.Conv2d | nn.Linear], bits: int = 8) -> dict[str, Found]:
    """What the converted graph says of each layer, by module name; layers without integers are left out."""
    found = {}
    for node in graph.graph.nodes:
        name = _module_of(node)
        if node.target in OPERATIONS and name in layers:
            taken = _weight(graph, node.args[1], layers[name], bits)
            if taken is not None:
                bias = _constant(graph, node.args[2]) if len(node.args) > 2 else None
                found[name] = Found(
                    weight=taken[0], clipped=taken[1], input=_grid(node.args[0]), output=_after(node), bias=bias
                )
    return found


def _module_of(node: fx.Node) -> str:
    """The qualified name of the module that a node came from."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.replace("L['self'].", "").replace("L['self']", "").lstrip(".")


def _weight(
    graph: fx.GraphModule, node: fx.Node, layer: nn.Conv2d | nn.Linear, bits: int
) -> tuple[QuantizedWeight, int] | None:
    if "dequantize_per" not in str(node.target):
        return None
    args = node.args
    scale = _constant(graph, args[1])
    integers = _integers(graph, args[0], scale)
    if integers is None or integers.shape != layer.weight.shape:
        return None
    scale = torch.as_tensor(args[1] if scale is None else scale, dtype=torch.float32).reshape(-1)
    granularity = PerChannel() if "per_channel" in str(node.target) else PerTensor()
    qdata, clipped = symmetric(integers.short(), bits)
    return QuantizedWeight(qdata=qdata, scale=scale.clone(), bits=bits, granularity=granularity), clipped


def _integers(graph: fx.GraphModule, node: object, scale: torch.Tensor | None) -> torch.Tensor | None:
    """Integers as a constant, or a float constant that the graph rounds every time."""
    if isinstance(node, fx.Node) and "quantize_per" in str(node.target) and scale is not None:
        weight = _constant(graph, node.args[0])
        if weight is None:
            return None
        steps = scale.reshape(-1, *[1] * (weight.dim() - 1)) if scale.numel() > 1 else scale
        return (weight / steps).round().clamp(-128, 127).to(torch.int8)
    return _constant(graph, node)


def _grid(node: object) -> ActivationRange | None:
    if not isinstance(node, fx.Node) or "dequantize_per_tensor" not in str(node.target):
        return None
    return _grid_of(node)


def _after(node: fx.Node) -> ActivationRange | None:
    """The grid of an output, where everything that reads it reads it quantized."""
    users = list(node.users)
    if not users or any("quantize_per_tensor" not in str(u.target) or "dequantize" in str(u.target) for u in users):
        return None
    return _grid_of(users[0])


def _grid_of(node: fx.Node) -> ActivationRange:
    scale, zero_point, low = cast("tuple[float, int, int]", node.args[1:4])
    return unsigned(scale, zero_point, signed=low < 0)


def _constant(graph: fx.GraphModule, node: object) -> torch.Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = graph
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, torch.Tensor) else None
