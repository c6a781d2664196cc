"""ORT: the file of ONNX Runtime's mobile and minimal builds, optimized ahead of time, the variant's own integers in it.

The ONNX model is optimized as a session would optimize it, saved, and written again in one order of bytes. Inside, as
metadata: `required_operators`, the configuration for a minimal build of ONNX Runtime that runs this file and nothing
else (`build.py --include_ops_by_config`), and how tensors are read as layers.

Source: onnxruntime.tools.convert_onnx_models_to_ort at 1.31, style "Fixed", without one processor's blocked layout.
Differs: same module, same bytes. Weights of layers with ranges are unsigned, around 128: converted files keep what they
have, and x86 processors without VNNI instructions clip sums of signed ones. What ONNX Runtime converts into files that
it then cannot load (4-bit weights: the format has no such tensors) or that hold float32 (16-bit weights: they are cast
while converting) is refused beforehand.
Cost: that of `export.onnx`, and one session.
"""

import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from compress.errors import UserError, require
from compress.export._held import refuse_layers
from compress.export._labels import Output
from compress.export._layer_map import KEY, entries_of, layer_map, weight_from
from compress.export._onnx_model import Form, built
from compress.export._ort_format import (
    Record,
    constants,
    metadata_of,
    parsed,
    required_operators,
    with_metadata,
    written,
)
from compress.export._ort_session import options_of, runner, session
from compress.files import write_bytes
from compress.nn.affine import Granularity, Half, Palette, PerGroup, QuantizedWeight
from compress.records import Inputs
from compress.schema import Schema

SUFFIX = ".ort"
RUNTIME = "onnxruntime"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
REQUIRED = "required_operators"  # key of the metadata
ONE_MACHINES = ("NchwcTransformer",)  # optimizers whose result runs on one kind of processor


class Config(Schema):
    """What a recipe may say about the file."""

    opset: int = Field(21, ge=21, le=23, description="Of the ONNX model that is converted.")
    dynamic: bool = Field(True, description="Height and width of latents and pictures are free; else the example's.")


def refuse(
    weight_bits: int, granularity: Granularity | None, activation_bits: int = 32, config: Config | None = None
) -> list[str]:
    """Why the format cannot hold such a quantization: nothing, or one sentence each. 32 bits mean float."""
    if isinstance(granularity, Palette):
        return ["the ORT format has no palettes: choose quantize.rtn, quantize.gptq or quantize.static"]
    if isinstance(granularity, Half):
        return ["16-bit weights become float32 in the ORT format: choose weight_bits 8, or export onnx"]
    reasons = []
    if weight_bits not in (8, 32):
        reasons.append(f"the ORT format has no {weight_bits}-bit tensors: choose weight_bits 8, or export onnx")
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
        example: its inputs; the file takes a batch of 1 of their shapes.
        path: the file; replaced if it is there.
        config: whether height and width are free.
        metadata: written into the file, sorted by key, with what is known of each input and the required operators.
        output: what the component makes, and the output's name in the file.

    Raises:
        UserError: the format cannot hold a layer, or a layer has no place in the traced graph.
        MissingExtra: a package is not installed.
    """
    runtime = require("onnxruntime", extra="ort", purpose="export.ort")
    onnx = require("onnx", extra="ort", purpose="export.ort")
    refuse_layers("The ORT format", module, refuse, config)
    form = Form(extra="ort", opset=config.opset, dynamic=config.dynamic, unsigned=True)
    model = built(module, example, form, metadata=metadata, output=output)
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "model.ort"
        options = options_of(runtime, 1, exact=False)  # else the graph depends on this processor
        options.optimized_model_filepath = str(converted)
        options.add_session_config_entry("session.save_model_format", "ORT")
        session(runtime, model.SerializeToString(), options, name=path, disabled=ONE_MACHINES)
        record = parsed(converted.read_bytes())
    more = {KEY: layer_map(onnx, model.graph), REQUIRED: required_operators(record)}
    content = written(with_metadata(record, more))
    session(runtime, content, options_of(runtime, 1), name=path)  # what does not load does not appear
    write_bytes(path, content)


def load(path: Path, *, threads: int) -> Callable[..., torch.Tensor]:
    """The file as a function on the component's inputs, in ONNX Runtime on the CPU; a batch runs sample by sample.

    Raises:
        UserError: the file is missing, damaged or not of the ORT format.
        MissingExtra: onnxruntime is not installed.
    """
    require("onnxruntime", extra="ort", purpose=f"running {path.name}")
    _read(path)
    return runner(path, threads=threads, extra="ort")


def read_back(path: Path) -> dict[str, QuantizedWeight]:
    """The integers and scales that the file holds, by layer name, as the variant had them.

    Raises:
        UserError: the file is missing, damaged or not of the ORT format, or was not written here.
    """
    require("onnxruntime", extra="ort", purpose="reading an ORT file")  # and flatbuffers, which comes with it
    record = _read(path)
    tensors = constants(record)
    try:
        entries = entries_of(metadata_of(record)[KEY])
        return {name: weight_from(entry, *_stored(tensors, name, entry)) for name, entry in entries.items()}
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: its layers cannot be read ({error}); export the variant again") from error


def _read(path: Path) -> Record:
    try:
        return parsed(path.read_bytes())
    except (OSError, ValueError, IndexError, TypeError, struct.error) as error:
        raise UserError(f"{path}: not a readable ORT file ({error}); export the variant again") from error


def _stored(tensors: dict[str, Any], name: str, entry: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers and scales of a layer, in the order that the map tells."""
    if f"{name}.weight" in tensors:
        stored = tensors[f"{name}.weight"]
        return _signed(stored), tensors[f"{name}.weight.scale"]
    blocks, scale = tensors[f"{name}.weight_T"], tensors[f"{name}.weight.scale_T"]
    return _unblocked(blocks, scale, entry)


def _signed(stored: torch.Tensor) -> torch.Tensor:
    return (stored.to(torch.int16) - 128).to(torch.int8) if stored.dtype == torch.uint8 else stored


def _unblocked(blocks: torch.Tensor, scale: torch.Tensor, entry: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a product with blocked weights holds, [o, blocks, size] plus 128, with one scale a block."""
    rows, inputs = entry["shape"]
    qdata = _signed(blocks).reshape(rows, -1)[:, :inputs]
    scale = scale.reshape(rows, -1)
    if not isinstance(entry["granularity"], dict):
        if not bool((scale == scale[:, :1]).all()):
            raise ValueError("scales of one channel differ")
        scale = scale[:, 0] if entry["granularity"] == "per_channel" else scale[:1, 0]
    if not entry["turned"]:
        return qdata, scale
    return qdata.t(), scale.t() if scale.dim() == 2 else scale
