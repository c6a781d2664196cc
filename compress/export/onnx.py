"""ONNX: one QDQ file that holds the variant's own integers, and its runtime on this host, ONNX Runtime.

The float twin is traced by PyTorch's exporter; then, layer by layer, the float weight is replaced by the integers,
scales and zero points of the variant behind a DequantizeLinear, and activation ranges become QuantizeLinear and
DequantizeLinear pairs. Nothing is quantized again. Batch is 1; the same module gives the same bytes.

Source: ONNX operator specification, QuantizeLinear-21 and DequantizeLinear-21 (blocks along one axis, 4-bit integers).
Differs: a group runs along a channel's flattened inputs, which no axis of a 4-d weight is; such weights are stored as
[o, i*kh*kw] and reshaped behind DequantizeLinear. Opsets below 21 are refused: they have no 4-bit integers, and tools
that write them there anyway produce files that run and give garbage; GroupNormalization is right from 21 on.
Cost: one trace (seconds) and twice the float weights in memory. Weight-only files are dequantized when they run: they
are smaller, not faster. Only 8-bit convolutions with input and output ranges run on integer kernels.
"""

import inspect
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import nn

from compress.errors import UserError, require
from compress.export._onnx_graph import Rewriter, name_and_strip, norms_spelled_out, weight_of
from compress.nn.affine import Granularity, Half, Palette, PerGroup, QuantizedWeight
from compress.nn.batches import split, take
from compress.nn.qmodules import QuantizedModule, quantized
from compress.nn.surgery import float_twin
from compress.records import Inputs
from compress.schema import Schema

if TYPE_CHECKING:
    from onnx import ModelProto

SUFFIX = ".onnx"
RUNTIME = "onnxruntime"
PURPOSE = "export.onnx"
WEIGHT_BITS = (4, 8)


class Config(Schema):
    """What a recipe may say about the file."""

    opset: int = Field(21, ge=21, le=23)  # older ones cannot hold 4-bit weights
    dynamic: bool = True  # height and width free; else those of the example


def refuse(weight_bits: int, granularity: Granularity, activation_bits: int = 32) -> list[str]:
    """Why the format cannot hold such a quantization: nothing, or one sentence each. 32 bits mean float."""
    reasons = []
    if isinstance(granularity, Palette | Half):
        kind = "palettes" if isinstance(granularity, Palette) else "half-precision weights beside float activations"
        return [f"this exporter writes no {kind}: choose quantize.rtn, quantize.gptq or quantize.static instead"]
    if weight_bits not in (*WEIGHT_BITS, 32):
        reasons.append(f"ONNX holds weights of 4 or 8 bits, not {weight_bits}: choose weight_bits 4 or 8")
    if activation_bits not in (8, 32):
        reasons.append(
            f"ONNX Runtime computes on activations of 8 bits or float, not {activation_bits} bits: "
            "choose activation_bits 8, or quantize weights only"
        )
    if isinstance(granularity, PerGroup) and granularity.size < 2:
        reasons.append(f"groups of {granularity.size} weights cannot be written as blocks: choose a size of 2 or more")
    return reasons


def export(module: nn.Module, example: Inputs, path: Path, config: Config, *, metadata: dict[str, str]) -> None:
    """Write `module` as one file, or nothing.

    Args:
        module: in eval mode, any number of tensors in, one out; may hold quantized layers.
        example: its inputs, e.g. latents [n, c, h, w] alone; the file takes a batch of 1 of their shapes.
        path: the file; replaced if it is there.
        config: opset and whether height and width are free.
        metadata: written into the file, sorted by key.

    Raises:
        UserError: the format cannot hold a layer, or a layer has no place in the traced graph.
        MissingExtra: onnx or onnxscript is not installed.
    """
    onnx = require("onnx", extra="onnx", purpose=PURPOSE)
    layers = quantized(module)
    _refuse_layers(layers)
    model = _traced(float_twin(module), take(example, 0, 1), config)
    norms_spelled_out(onnx, model.graph)
    scopes = name_and_strip(model)
    if layers:
        Rewriter(onnx, model.graph).place(layers, scopes)
    model.producer_name, model.producer_version = "mdcompress", ""
    onnx.helper.set_model_props(model, {key: metadata[key] for key in sorted(metadata)})
    onnx.checker.check_model(model, full_check=True)
    _write(path, model.SerializeToString(deterministic=True))


def load(path: Path, *, threads: int) -> Callable[..., torch.Tensor]:
    """The file as a function on the component's inputs, in ONNX Runtime on the CPU; a batch runs image by image.

    Raises:
        UserError: the file is missing, damaged or not an ONNX model.
        MissingExtra: onnxruntime is not installed.
    """
    return _loaded(path, threads=threads, exact=True)


def load_for_timing(path: Path, *, threads: int) -> Callable[..., torch.Tensor]:
    """As `load`, but with the fastest integer kernels that the processor has, whether they saturate or not."""
    return _loaded(path, threads=threads, exact=False)


def _loaded(path: Path, *, threads: int, exact: bool) -> Callable[..., torch.Tensor]:
    """The session; `exact` forbids the kernels of x86 without VNNI, which add pairs of products in 16 bits.

    A phone's processors have exact kernels that are fast; this one may have to choose.
    """
    runtime = require("onnxruntime", extra="onnx", purpose=f"running {path.name}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; export the variant again")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    # left alone, products with integer weights round their activations to 8 bits, which no recipe asked for
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = _session(runtime, path, options)
    names = [given.name for given in session.get_inputs()]

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        made = []
        for one in split(inputs, 1):
            arrays = [x.detach().contiguous().numpy() for x in one]
            made.append(torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0]))
        return torch.cat(made)

    return call


def read_back(path: Path) -> dict[str, QuantizedWeight]:
    """The integers and scales that the file holds, by layer name, as the variant had them.

    Raises:
        UserError: the file is missing, damaged or not an ONNX model.
    """
    onnx = require("onnx", extra="onnx", purpose="reading an ONNX file")
    decode_error = require("google.protobuf.message", extra="onnx", purpose="reading an ONNX file").DecodeError
    try:
        graph = onnx.load(path).graph
    except (OSError, decode_error) as error:
        raise UserError(f"{path}: not a readable ONNX file ({error}); export the variant again") from error
    tensors = {t.name: t for t in graph.initializer}
    shapes = {n.input[0]: tensors[n.input[1]] for n in graph.node if n.op_type == "Reshape" and n.input[1] in tensors}
    weights = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors and node.input[0].endswith(".weight"):
            shape = shapes.get(node.output[0])
            parsed = weight_of(onnx, node, tensors, None if shape is None else onnx.numpy_helper.to_array(shape))
            weights[node.input[0].removesuffix(".weight")] = parsed
    return weights


def _refuse_layers(layers: dict[str, QuantizedModule]) -> None:
    problems = []
    for name, q in layers.items():
        grids = [grid.bits for grid in (q.layer.input, q.layer.output) if grid is not None]
        reasons = refuse(q.layer.bits, q.layer.granularity, max(grids, default=32))
        problems += [f"{name}: {reason}" for reason in reasons]
    if problems:
        raise UserError("ONNX cannot hold this variant:\n" + "\n".join(problems))


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


def _traced(module: nn.Module, example: Inputs, config: Config) -> "ModelProto":
    require("onnxscript", extra="onnx", purpose=PURPOSE)
    if config.dynamic and example[0].dim() != 4:
        raise UserError(f"free height and width need an NCHW input, not {example[0].dim()} axes: set dynamic: false")
    axes = {2: torch.export.Dim("h", min=1), 3: torch.export.Dim("w", min=1)} if config.dynamic else None
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            external_data=False,
            opset_version=config.opset,
            input_names=list(inspect.signature(module.forward).parameters)[: len(example)],
            output_names=["image"],
            dynamic_shapes=None if axes is None else (axes, *(None for _ in example[1:])),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return program.model_proto


def _session(runtime: Any, path: Path, options: Any) -> Any:
    state = runtime.capi.onnxruntime_pybind11_state
    damaged = (state.Fail, state.InvalidGraph, state.InvalidProtobuf, state.InvalidArgument, state.NotImplemented)
    try:
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (*damaged, state.RuntimeException, state.NoModel) as error:
        raise UserError(
            f"{path}: ONNX Runtime {runtime.__version__} cannot load it ({error}); export the variant again, "
            "or fetch the file again if it was copied"
        ) from error


def _write(path: Path, content: bytes) -> None:
    """The whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
