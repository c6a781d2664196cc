"""LiteRT (.tflite): the variant for Android, with its own integers as weights, and LiteRT's interpreter on this host.

Maps are [1, h, w, c] in the file, inputs and outputs too, as Android's bitmaps are; sizes are those of the example.
Token ids are int32. The file is written operator by operator from torch.export's graph; no converter rewrites it, so
what is stored is the variant's, and the graph is made of operators that XNNPACK runs in one piece.

Source: TensorFlow Lite's schema, version 3, and its 8-bit quantization specification.
Differs: litert-torch lowers through StableHLO, moves every map between two layouts, and leaves the doubling of maps to
an operator that XNNPACK does not run (`benchmarks/litert_partitions.py`); it also quantizes anew, in another package.
Cost: one trace (seconds) and the file in memory. Weight-only layers are dequantized once, when the file is loaded: it
is smaller, not faster, and as large as float in memory. Only layers with input and output ranges run on integer
kernels. XNNPACK takes no convolution with packed 4-bit weights: each is a cut in the graph (`int4: bytes` avoids it).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from compress.errors import UserError
from compress.export._held import refuse_layers
from compress.export._labels import Output, input_names, require_image, with_inputs
from compress.export._litert_file import File, Grid
from compress.export._litert_ops import lowered
from compress.export._litert_reader import BLANK, FOURS, NOTE, SEAL, Runner, package, sealed, stored_weights
from compress.export._litert_writer import MAP, Value, Writer
from compress.export._overflow import refuse_overflow
from compress.files import write_bytes
from compress.nn.affine import Granularity, Half, Palette, PerGroup, QuantizedWeight
from compress.nn.batches import take
from compress.nn.qmodules import quantized
from compress.nn.surgery import float_twin
from compress.records import Inputs
from compress.schema import Schema

SUFFIX = ".tflite"
RUNTIME = "litert"
PACKAGES = ("ai_edge_litert",)
PURPOSE = "export.litert"


class Config(Schema):
    """What a recipe may say about the file."""

    precision: Literal["float32", "float16"] = Field(
        "float32", description="How float weights are stored; the phone chooses what it computes in."
    )
    layout: Literal["nhwc", "nchw"] = Field("nhwc", description="Of inputs and outputs with four axes.")
    pixels: Literal["float32", "uint8"] = Field("float32", description="Of pictures: [0, 1], or whole numbers 0..255.")
    int4: Literal["packed", "bytes"] = Field(
        "packed", description="Weights of 4 bits: two to a byte, or one, which is larger and what XNNPACK runs."
    )


def refuse(
    weight_bits: int, granularity: Granularity | None, activation_bits: int = 32, config: Config | None = None
) -> list[str]:
    """Why the format cannot hold such a quantization: nothing, or one sentence each. 32 bits mean float."""
    if isinstance(granularity, Half) and granularity.dtype == "float16":
        return []
    if isinstance(granularity, Half | Palette):
        kind = "palettes" if isinstance(granularity, Palette) else "bfloat16 weights"
        return [
            f"LiteRT's kernels read no {kind}: choose quantize.rtn, one scale per channel, or quantize.half, float16"
        ]
    reasons = []
    if isinstance(granularity, PerGroup):
        reasons.append(
            f"LiteRT has no operator that reads a scale for each {granularity.size} weights: choose granularity: "
            "per_channel, or format: onnx"
        )
    if weight_bits not in (4, 8, 32):
        reasons.append(f"LiteRT holds weights of 4 or 8 bits, not {weight_bits}: choose weight_bits 4 or 8")
    if activation_bits not in (8, 32):
        reasons.append(
            f"LiteRT computes on activations of 8 bits or float, not {activation_bits} bits: choose activation_bits 8, "
            "or quantize weights only"
        )
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
        config: precision of float weights, layout, and type of pictures.
        metadata: written into the file, sorted by key, with what is known of each input.
        output: what the component makes, and the output's name in the file.

    Raises:
        UserError: the format cannot hold a layer or an operator, or a layer has no place in the graph.
        MissingExtra: ai-edge-litert is not installed.
    """
    schema = package("schema_py_generated", PURPOSE)
    refuse_layers("LiteRT", module, refuse, config)
    if config.pixels == "uint8":
        require_image(output, "pixels: uint8")
    if config.precision == "float16":
        refuse_overflow(module, take(example, 0, 1))
    example, names = take(example, 0, 1), input_names(module, example)
    w = Writer(
        File(schema), quantized(module), half=config.precision == "float16", bytes_of_four=config.int4 == "bytes"
    )
    given = [_input(w, name, x, config) for name, x in zip(names, example, strict=True)]
    made = _output(w, lowered(w, float_twin(module), example, given), config)
    lost = sorted(set(w.layers) - w.placed)
    if lost:
        raise UserError(f"layers without a place in the LiteRT graph: {', '.join(lost)}; exclude them")
    w.file.tensors[made].name = output
    said = {"layout": config.layout, "pixels": config.pixels, **with_inputs(metadata, names)}
    if config.int4 == "bytes":
        said[FOURS] = " ".join(name for name, q in w.layers.items() if q.layer.bits == 4)
    notes = {NOTE: json.dumps(said, sort_keys=True), SEAL: BLANK.decode()}
    inputs = {name: x.tensor for name, x in zip(names, given, strict=True)}
    write_bytes(path, sealed(w.file.finish(inputs, {output: made}, notes)))


def load(path: Path, *, threads: int) -> Callable[..., torch.Tensor]:
    """The file as a function on the component's inputs, in LiteRT on the CPU; a batch runs sample by sample.

    Raises:
        UserError: the file is missing, damaged or not written by this exporter.
        MissingExtra: ai-edge-litert is not installed.
    """
    return Runner(path, threads=threads)


def read_back(path: Path) -> dict[str, QuantizedWeight]:
    """The integers and scales that the file holds, by layer name, as the variant had them.

    Raises:
        UserError: the file is missing, damaged or not written by this exporter.
    """
    return stored_weights(path)


def partitions(path: Path) -> int:
    """Into how many pieces XNNPACK and the operators that it leaves to others cut the graph on this host."""
    return Runner(path, threads=1).pieces()


def _input(w: Writer, name: str, x: torch.Tensor, config: Config) -> Value:
    order = MAP if x.dim() == 4 and config.layout == "nhwc" else tuple(range(x.dim()))
    laid = [x.shape[axis] for axis in order]
    kind = "FLOAT32" if x.is_floating_point() else "INT32"
    return Value(w.file.value(laid, kind, name), tuple(x.shape), order)  # type: ignore[arg-type]


def _output(w: Writer, made: Value, config: Config) -> int:
    """The network's output as the caller wants it."""
    w.scope = ""
    laid = w.arranged(made, MAP) if len(made.shape) == 4 and config.layout == "nhwc" else w.straight(made)
    if config.pixels == "float32":
        return laid.tensor
    grid = Grid(scale=(1 / 255,))
    return w.emit("QUANTIZE", [laid.tensor], laid.laid, kind="QuantizeOptions", type="UINT8", grid=grid)
