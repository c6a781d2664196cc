"""How long each layer takes in ONNX Runtime on this host, on floats and on 8-bit integers: graphs of one layer each.

Source: the latency tables of HAWQ-V3 (Yao et al. 2021, arXiv:2011.10680), section 3.4, there of a GPU's kernels.
Differs: the integer layer is timed between a QuantizeLinear and a DequantizeLinear, because norms and sums around it
stay in float; both graphs run in turns. Layers of one shape are timed once. A host's figure is that host's, and changes
from run to run.
Cost: 2 * (`ROUNDS` + 1) runs of each shape.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from calibration import collect
from compress.errors import require
from compress.nn.batches import take
from compress.nn.qmodules import FloatLayer
from compress.records import Inputs

ROUNDS = 9
PURPOSE = "timing layers in ONNX Runtime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Milliseconds:
    """Medians of one layer."""

    on_floats: float
    on_integers: float


def milliseconds(
    module: nn.Module,
    layers: Mapping[str, FloatLayer],
    inputs: Inputs,
    *,
    threads: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Milliseconds]:
    """The times of every convolution and linear layer on the first input, at its full size.

    Raises:
        MissingExtra: onnx or onnxruntime is not installed.
    """
    onnx, runtime = (require(name, extra="onnx", purpose=PURPOSE) for name in ("onnx", "onnxruntime"))
    known: dict[tuple[Any, ...], Milliseconds] = {}
    found = {}
    for name, shape in _shapes(module, layers, inputs).items():
        layer = layers[name]
        key = (shape, tuple(layer.weight.shape), *_attributes(layer).items())
        if key not in known:
            sessions = [_session(runtime, _graph(onnx, layer, shape, integers), threads) for integers in (False, True)]
            known[key] = _in_turns(sessions, np.zeros(shape, dtype=np.float32), clock)
        found[name] = known[key]
    return found


def _shapes(module: nn.Module, layers: Mapping[str, FloatLayer], inputs: Inputs) -> dict[str, tuple[int, ...]]:
    names = [name for name, layer in layers.items() if not isinstance(layer, nn.Embedding)]
    shapes: dict[str, tuple[int, ...]] = {}

    def see(name: str, what: str, part: nn.Module, value: Any) -> None:
        if what == "input":
            shapes[name] = tuple(value.shape)

    collect.watch(module, [take(inputs, 0, 1)], names, see)
    return {name: shapes[name] for name in names}


def _in_turns(sessions: list[Any], x: Any, clock: Callable[[], float]) -> Milliseconds:
    taken: list[list[float]] = [[], []]
    for number in range(ROUNDS + 1):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            started = clock()
            sessions[which].run(None, {"x": x})
            taken[which].append(1000 * (clock() - started))
    floats, integers = (statistics.median(times[1:]) for times in taken)  # the first calls warm up
    return Milliseconds(on_floats=floats, on_integers=integers)


def _attributes(layer: FloatLayer) -> dict[str, Any]:
    if not isinstance(layer, nn.Conv2d):
        return {}
    shape: dict[str, Any] = {"strides": layer.stride, "dilations": layer.dilation, "group": layer.groups}
    if isinstance(layer.padding, str):
        return shape | {"auto_pad": "SAME_UPPER" if layer.padding == "same" else "VALID"}
    return shape | {"pads": (*layer.padding, *layer.padding)}


def _graph(onnx: Any, layer: FloatLayer, shape: tuple[int, ...], integers: bool) -> bytes:
    """One layer as a model; its values do not matter, its shapes do. Products have their transposed weight."""
    make, weight = onnx.helper, torch.zeros(layer.weight.shape, dtype=torch.int8 if integers else torch.float32)
    convolution = isinstance(layer, nn.Conv2d)
    tensors: dict[str, Any] = {"w": (weight if convolution else weight.T.contiguous()).numpy()}
    nodes, given, kernel = [], "x", "w"
    if integers:
        tensors |= {
            "scale": np.float32(0.1),
            "zero": np.uint8(128),
            "w.scale": np.full(len(weight), 0.1, dtype=np.float32),
            "w.zero": np.zeros(len(weight), dtype=np.int8),
        }
        nodes += [
            make.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
            make.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xf"]),
            make.make_node("DequantizeLinear", ["w", "w.scale", "w.zero"], ["wf"], axis=0 if convolution else 1),
        ]
        given, kernel = "xf", "wf"
    output = "yf" if integers and convolution else "y"  # an integer convolution has a range of its output as well
    kind = "Conv" if convolution else "MatMul"
    nodes.append(make.make_node(kind, [given, kernel], [output], **_attributes(layer)))
    if output == "yf":
        nodes += [
            make.make_node("QuantizeLinear", ["yf", "scale", "zero"], ["yq"]),
            make.make_node("DequantizeLinear", ["yq", "scale", "zero"], ["y"]),
        ]
    value = make.make_tensor_value_info
    graph = make.make_graph(
        nodes,
        "layer",
        [value("x", onnx.TensorProto.FLOAT, shape)],
        [value("y", onnx.TensorProto.FLOAT, [None] * len(shape))],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    model: bytes = make.make_model(graph, opset_imports=[make.make_opsetid("", 21)], ir_version=10).SerializeToString()
    return model


def _session(runtime: Any, model: bytes, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
