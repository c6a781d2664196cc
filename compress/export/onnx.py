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

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from compress.errors import UserError, require
from compress.export._held import refuse_layers
from compress.export._labels import Output
from compress.export._onnx_graph import weights_of
from compress.export._onnx_model import Form, built
from compress.export._ort_session import runner
from compress.files import write_bytes
from compress.nn.affine import Granularity, Palette, PerGroup, QuantizedWeight
from compress.records import Inputs
from compress.schema import Schema

SUFFIX = ".onnx"
RUNTIME = "onnxruntime"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
WEIGHT_BITS = (4, 8, 16)


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
    refuse_layers("ONNX", module, refuse, config)
    form = Form(extra="onnx", opset=config.opset, dynamic=config.dynamic, precision=config.precision)
    model = built(module, example, form, metadata=metadata, output=output)
    write_bytes(path, model.SerializeToString(deterministic=True))


def load(path: Path, *, threads: int) -> Callable[..., torch.Tensor]:
    """The file as a function on the component's inputs, in ONNX Runtime on the CPU; a batch runs image by image.

    Raises:
        UserError: the file is missing, damaged or not an ONNX model.
        MissingExtra: onnxruntime is not installed.
    """
    return runner(path, threads=threads, extra="onnx")


def load_for_timing(path: Path, *, threads: int) -> Callable[..., torch.Tensor]:
    """As `load`, but with the fastest integer kernels that the processor has, whether they saturate or not."""
    return runner(path, threads=threads, extra="onnx", exact=False)


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
    return weights_of(onnx, graph)
