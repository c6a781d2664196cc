"""Core ML: an ML program for iOS 18 and macOS 15 with the variant's own integers, scales and palettes.

The float twin is traced and converted by coremltools; then each layer's float weight is replaced by what the variant
stores, behind Core ML's own operators for compressed weights, and activation ranges become quantize and dequantize.
Nothing is quantized again. Batch is 1, sizes are fixed; the same module gives the same bytes.

Source: coremltools 9, `ct.convert` of a TorchScript trace; MIL operators of iOS 18.
Differs: parity is judged by an interpreter of the saved program, as Core ML itself runs on Apple's systems alone: it
checks graph, stored weights, types and float16 overflow, neither Apple's kernels nor the Neural Engine, and its speed
means nothing (`MEASURES_LATENCY`). In float16 the statistics of norms stay float32, whose squares overflow otherwise,
and scales and tables are rounded to float16, which is what Core ML multiplies with.
Cost: one trace and twice the float weights in memory.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from compress.errors import require
from compress.export import _coreml_graph
from compress.export._coreml_import import quietly_imported
from compress.export._coreml_package import settle
from compress.export._held import refuse_layers
from compress.export._labels import Output, input_names, require_image, with_inputs
from compress.export._mil_interpreter import function, open_package
from compress.files import write_folder_atomically
from compress.nn.affine import Granularity, Half, Palette, PerGroup, QuantizedWeight
from compress.nn.batches import split, take
from compress.nn.qmodules import quantized
from compress.nn.surgery import float_twin
from compress.records import Inputs
from compress.schema import Schema

SUFFIX = ".mlpackage"
RUNTIME = "an interpreter of the Core ML program (not Core ML)"
MEASURES_LATENCY = False  # an interpreter's speed is not the phone's
PACKAGES = ("coremltools",)
PURPOSE = "export.coreml"
LINEAR_BITS, PALETTE_BITS = (4, 8), (2, 3, 4, 6, 8)
ROOTS = ("sqrt", "rsqrt")
STATISTICS = ("reduce_mean", "square", *ROOTS)  # of norms: kept in float32


class Config(Schema):
    """What a recipe may say about the package."""

    precision: Literal["float32", "float16"] = Field(
        "float32", description="What the graph computes in; the Neural Engine needs float16."
    )
    pixels: Literal["float32", "uint8"] = Field(
        "float32", description="Pictures as arrays in [0, 1], or as an image (CVPixelBuffer, RGB)."
    )


class _Traced(nn.Module):
    """The component; its pictures in [0, 255] where Core ML's image output wants them."""

    def __init__(self, module: nn.Module, *, pixels: bool) -> None:
        super().__init__()
        self.module, self.pixels = module, pixels

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        made = self.module(*inputs)
        return made * 255.0 if self.pixels else made


def refuse(
    weight_bits: int, granularity: Granularity | None, activation_bits: int = 32, config: Config | None = None
) -> list[str]:
    """Why the format cannot hold such a quantization: nothing, or one sentence each. 32 bits mean float."""
    reasons = []
    if isinstance(granularity, Half):
        if granularity.dtype != "float16":
            reasons.append("Core ML has no bfloat16: choose dtype float16")
    elif isinstance(granularity, Palette):
        if weight_bits not in PALETTE_BITS:
            reasons.append(f"Core ML has palettes of 2, 3, 4, 6 or 8 bits, not {weight_bits}: choose one of those")
    elif weight_bits not in (*LINEAR_BITS, 32):
        reasons.append(
            f"Core ML holds integers of 4 or 8 bits, not {weight_bits}: choose weight_bits 4 or 8, or quantize.palette"
        )
    if activation_bits not in (8, 32):
        reasons.append(
            f"Core ML computes on activations of 8 bits or float, not {activation_bits} bits: "
            "choose activation_bits 8, or quantize weights only"
        )
    if isinstance(granularity, PerGroup) and granularity.size < 2:
        reasons.append(f"groups of {granularity.size} weights cannot be written as blocks: choose a size of 2 or more")
    return reasons


def refuse_shape(shape: torch.Size, granularity: Granularity) -> list[str]:
    """Why the format cannot hold a layer with a weight of this shape [o, i, ...]: nothing, or one sentence."""
    if isinstance(granularity, PerGroup) and _coreml_graph.block_of(shape, granularity.size) is None:
        return [_coreml_graph.no_block(shape, granularity.size)]
    return []


def export(
    module: nn.Module,
    example: Inputs,
    path: Path,
    config: Config,
    *,
    metadata: Mapping[str, str],
    output: Output = "image",
) -> None:
    """Write `module` as one package, or nothing.

    Args:
        module: in eval mode, any number of tensors in, one out; may hold quantized layers.
        example: its inputs, e.g. latents [n, c, h, w] alone; the package takes a batch of 1 of their shapes.
        path: the package, a folder; replaced if it is there.
        config: what the graph computes in, and how pictures come out.
        metadata: written into the package, sorted by key, with what is known of each input.
        output: what the component makes, and the output's name in the package.

    Raises:
        UserError: the format cannot hold a layer, or a layer has no place in the converted program.
        MissingExtra: coremltools is not installed.
    """
    if config.pixels == "uint8":
        require_image(output, "pixels: uint8")
    layers = quantized(module)
    refuse_layers("Core ML", module, refuse, config)
    names = input_names(module, example)
    with _quiet():
        tools = quietly_imported(PURPOSE)
        traced = _Traced(_twin(module), pixels=config.pixels == "uint8").eval()
        converted = _converted(tools, traced, take(example, 0, 1), names, config, output)
        program = converted._mil_program
        _coreml_graph.place(program, layers)
        model = _finished(program, converted) if layers else converted
        spec = model.get_spec()
        labels = with_inputs({**metadata, _coreml_graph.KEY: _coreml_graph.described(layers)}, names)
        spec.description.metadata.userDefined.clear()
        spec.description.metadata.userDefined.update(labels)
        write_folder_atomically(path, lambda folder: _fill(folder, model, spec))


def _twin(module: nn.Module) -> nn.Module:
    """The float network, with biases on the grids that integer kernels add them on."""
    twin = float_twin(module)
    named = dict(twin.named_modules())
    for name, q in quantized(module).items():
        bias = q.effective_bias()
        if bias is not None:
            named[name].bias = nn.Parameter(bias, requires_grad=False)
    return twin


def _fill(folder: Path, model: Any, spec: Any) -> None:
    inner = folder / "made.mlpackage"
    model.save(str(inner))
    settle(inner, spec)
    for part in list(inner.iterdir()):
        part.rename(folder / part.name)
    inner.rmdir()


def load(path: Path, *, threads: int) -> Callable[..., torch.Tensor]:
    """The package as a function on the component's inputs, run by the interpreter; a batch runs sample by sample.

    Raises:
        UserError: the package is missing, damaged, no ML program, or has operators that the interpreter does not know.
        MissingExtra: coremltools is not installed.
    """
    saved = open_package(path)
    run = function(saved, path)

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.no_grad():
                made = torch.cat([run(*one) for one in split(inputs, 1)])
        finally:
            torch.set_num_threads(before)
        return made.clamp(0.0, 255.0).round() / 255.0 if saved.image else made

    return call


def read_back(path: Path) -> dict[str, QuantizedWeight]:
    """The integers, scales and tables that the package holds, by layer name; in float16 scales are rounded to it.

    Raises:
        UserError: the package is missing, damaged or no ML program.
        MissingExtra: coremltools is not installed.
    """
    saved = open_package(path)
    return _coreml_graph.stored(saved.program, saved.metadata.get(_coreml_graph.KEY, ""))


@contextmanager
def _quiet() -> Iterator[None]:
    """The converter warns about versions and traces, and draws progress bars."""
    logger = logging.getLogger("coremltools")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


def _converted(tools: Any, module: nn.Module, example: Inputs, names: list[str], config: Config, output: str) -> Any:
    """The float model, its weights under names of their own."""
    with torch.no_grad():
        traced = torch.jit.trace(module, example, check_trace=False)
    given = [
        tools.TensorType(name=name, shape=tuple(x.shape), dtype=np.float32 if x.is_floating_point() else np.int32)
        for name, x in zip(names, example, strict=True)
    ]
    picture = config.pixels == "uint8"
    made = (
        tools.ImageType(name=output, color_layout=tools.colorlayout.RGB)
        if picture
        else tools.TensorType(name=output, dtype=np.float32)
    )
    half = tools.transform.FP16ComputePrecision(op_selector=_fits_float16)
    passes = tools.PassPipeline.DEFAULT
    passes.remove_passes({"common::const_deduplication"})  # equal weights keep a place each
    return tools.convert(
        traced,
        inputs=given,
        outputs=[made],
        convert_to="mlprogram",
        minimum_deployment_target=tools.target.iOS18,
        compute_precision=half if config.precision == "float16" else tools.precision.FLOAT32,
        pass_pipeline=passes,
        skip_model_load=True,
    )


def _fits_float16(op: Any) -> bool:
    """Not the mean of squares of a norm, on its way to the root."""
    readers = {reader.op_type for made in op.outputs for reader in made.child_ops}
    return op.op_type not in STATISTICS and not (op.op_type == "add" and readers & set(ROOTS))


def _finished(program: Any, converted: Any) -> Any:
    """The changed program as a model again."""
    converter = require("coremltools.converters.mil.converter", extra="coreml", purpose=PURPOSE)
    program.skip_all_passes = True
    spec = converted.get_spec()
    return converter.mil_convert(
        program,
        convert_to="mlprogram",
        convert_from="milinternal",
        specification_version=spec.specificationVersion,
        compute_units=converted.compute_unit,
        model_description=spec.description,
        skip_model_load=True,
    )
