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

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import nn

from compress.errors import UserError, require
from compress.export._held import refuse_layers
from compress.export._labels import Output, input_names, with_inputs
from compress.export._onnx_graph import Rewriter, half_of, name_and_strip, norms_spelled_out, turned_weights, weight_of
from compress.export._onnx_half import to_half
from compress.export._overflow import refuse_overflow
from compress.export._sizes import free_axes
from compress.files import write_bytes
from compress.nn.affine import Granularity, Palette, PerGroup, QuantizedWeight
from compress.nn.batches import split, take
from compress.nn.qmodules import quantized
from compress.nn.surgery import float_twin
from compress.records import Inputs
from compress.schema import Schema

if TYPE_CHECKING:
    from onnx import ModelProto

SUFFIX = ".onnx"
RUNTIME = "onnxruntime"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PURPOSE = "export.onnx"
WEIGHT_BITS = (4, 8, 16)
NUMPY_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}  # of inputs


class Config(Schema):
    """What a recipe may say about the file."""

    opset: int = Field(21, ge=21, le=23)  # older ones cannot hold 4-bit weights
    precision: Literal["float32", "float16"] = Field(
        "float32", description="What is computed in; inputs and outputs are float32 either way."
    )
    dynamic: bool = Field(True, description="Height and width of latents and pictures are free; else the example's.")


def refuse(
    weight_bits: int, granularity: Granularity | None, activation_bits: int = 32, config: Config | None = None
) -> list[str]:
    """Why the format cannot hold such a quantization: nothing, or one sentence each. 32 bits mean float."""
    reasons = []
    if isinstance(granularity, Palette):
        return ["ONNX has no palettes: choose quantize.rtn, quantize.gptq or quantize.static, or export coreml"]
    if config is not None and config.precision == "float16" and activation_bits != 32:
        reasons.append("integer kernels do not compute in float16: choose precision: float32, or quantize weights only")
    if weight_bits not in (*WEIGHT_BITS, 32):
        reasons.append(f"ONNX holds integer weights of 4 or 8 bits, not {weight_bits}: choose weight_bits 4 or 8")
    if activation_bits not in (8, 32):
        reasons.append(
            f"ONNX Runtime computes on activations of 8 bits or float, not {activation_bits} bits: "
            "choose activation_bits 8, or quantize weights only"
        )
    if isinstance(granularity, PerGroup) and granularity.size < 2:
        reasons.append(f"groups of {granularity.size} weights cannot be written as blocks: choose a size of 2 or more")
    return reasons


def export(
    module: nn.Module,
    example: Inputs,
    path: Path,
    config: Config,
    *,
    metadata: Mapping[str, str],
    output: Output = "image",
) -> None:
    """Write `module` as one file, or nothing.

    Args:
        module: in eval mode, any number of tensors in, one out; may hold quantized layers.
        example: its inputs, e.g. latents [n, c, h, w] alone; the file takes a batch of 1 of their shapes.
        path: the file; replaced if it is there.
        config: opset and whether height and width are free.
        metadata: written into the file, sorted by key, with what is known of each input.
        output: what the component makes, and the output's name in the file.

    Raises:
        UserError: the format cannot hold a layer, or a layer has no place in the traced graph.
        MissingExtra: onnx or onnxscript is not installed.
    """
    onnx = require("onnx", extra="onnx", purpose=PURPOSE)
    layers = quantized(module)
    refuse_layers("ONNX", module, refuse, config)
    if config.precision == "float16":
        refuse_overflow(module, example)
    model = _traced(float_twin(module), take(example, 0, 1), config, output)
    norms_spelled_out(onnx, model.graph)
    scopes = name_and_strip(model)
    if layers:
        Rewriter(onnx, model.graph).place(layers, scopes)
    if config.precision == "float16":
        to_half(onnx, model)
    model.producer_name, model.producer_version = "mdcompress", ""
    onnx.helper.set_model_props(model, with_inputs(metadata, input_names(module, example)))
    onnx.checker.check_model(model, full_check=True)
    write_bytes(path, model.SerializeToString(deterministic=True))


def load(path: Path, *, threads: int) -> Callable[..., torch.Tensor]:
    """The file as a function on the component's inputs, in ONNX Runtime on the CPU; a batch runs image by image.

    Raises:
        UserError: the file is missing, damaged or not an ONNX model.
        MissingExtra: onnxruntime is not installed.
    """
    runtime = require("onnxruntime", extra="onnx", purpose=f"running {path.name}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; export the variant again")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    # left alone, products with integer weights round their activations to 8 bits, which no recipe asked for
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = _session(runtime, path, options)
    names = [given.name for given in session.get_inputs()]
    types = [NUMPY_TYPES[given.type] for given in session.get_inputs()]

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        made = []
        for one in split(inputs, 1):
            arrays = [x.detach().contiguous().numpy().astype(t, copy=False) for x, t in zip(one, types, strict=True)]
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
    if not graph.node:
        raise UserError(f"{path}: not an ONNX model, or an empty one; export the variant again")
    tensors = {t.name: t for t in graph.initializer}
    weights = {}
    turned = turned_weights(graph)
    for node in graph.node:
        if not node.input or node.input[0] not in tensors or not node.input[0].endswith(".weight"):
            continue
        name, stored = node.input[0].removesuffix(".weight"), tensors[node.input[0]]
        if node.op_type == "DequantizeLinear":
            shape = tensors.get(f"{node.input[0]}.shape")
            parsed = weight_of(onnx, node, tensors, None if shape is None else onnx.numpy_helper.to_array(shape))
            weights[name] = parsed
        elif node.op_type == "Cast" and stored.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
            weights[name] = half_of(onnx, stored, turned=bool(turned & {*node.output, f"{node.output[0]}/float16"}))
    return weights


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


def _traced(module: nn.Module, example: Inputs, config: Config, output: Output) -> "ModelProto":
    require("onnxscript", extra="onnx", purpose=PURPOSE)
    axes = free_axes(module, example) if config.dynamic else None
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            external_data=False,
            opset_version=config.opset,
            input_names=input_names(module, example),
            output_names=[output],
            dynamic_shapes=axes,
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
