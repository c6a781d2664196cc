"""OpenVINO: a folder with openvino_model.xml and openvino_model.bin, the variant's own integers in it, for desktops.

The ONNX model is read by OpenVINO's own reader in memory, simplified by the transformations of its converter, ovc, and
saved; integers stay integers, 4-bit ones packed. Inside, as metadata under `mdcompress`: the digest of the .bin that
belongs to the .xml, and how tensors are read as layers.

Source: OpenVINO 2026.4, `Core.read_model`, `save_model` and the IR format, version 11.
Differs: names that OpenVINO numbers by how often it was called are numbered anew, so that the same module gives the
same bytes. `import openvino` sends an event to its maker and leaves an identifier in the user's home; both are kept
from happening. Groups of weights must divide a layer's inputs (its reader takes no shorter last group) and be even at 4
bits: a linear layer of 10 inputs in groups of 5 came out as NaN on the CPU.
Cost: that of `export.onnx`. On the CPU, 8-bit convolutions with ranges run on integer kernels; linear layers compute on
8-bit and 4-bit weights without unpacking them all; convolutions with integer weights alone are dequantized when loaded.
"""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from compress.errors import UserError, require
from compress.export._held import refuse_layers
from compress.export._labels import Output
from compress.export._layer_map import KEY, entries_of, layer_map, weight_from
from compress.export._onnx_model import Form, built
from compress.export._openvino_import import quietly_imported as _runtime
from compress.files import sha256, write_folder_atomically
from compress.nn.affine import Granularity, Palette, PerGroup, QuantizedWeight
from compress.nn.batches import split
from compress.nn.pack import unpack
from compress.nn.qmodules import quantized
from compress.records import Inputs
from compress.schema import Schema

SUFFIX = ".openvino"
RUNTIME = "openvino"
PACKAGES = ("onnx", "onnxscript", "openvino")
XML, BIN = "openvino_model.xml", "openvino_model.bin"  # the names that optimum-intel gives them too
SPACE = "mdcompress"  # of the metadata
WEIGHTS = "weights_sha256"
BLANK = "0" * 64
FOLDS = frozenset({"Convert", "Reshape", "Subtract"})  # between a layer's tensors and where they are multiplied


class Config(Schema):
    """What a recipe may say about the model."""

    precision: Literal["float32", "float16"] = Field(
        "float32", description="What the graph is written in; inputs and outputs are float32 either way."
    )
    dynamic: bool = Field(True, description="Height and width of latents and pictures are free; else the example's.")


def refuse(
    weight_bits: int, granularity: Granularity | None, activation_bits: int = 32, config: Config | None = None
) -> list[str]:
    """Why the format cannot hold such a quantization: nothing, or one sentence each. 32 bits mean float."""
    if isinstance(granularity, Palette):
        return ["OpenVINO has no palettes: choose quantize.rtn, quantize.gptq or quantize.static, or export coreml"]
    reasons = []
    if config is not None and config.precision == "float16" and activation_bits != 32:
        reasons.append("integer kernels do not compute in float16: choose precision: float32, or quantize weights only")
    if weight_bits not in (4, 8, 16, 32):
        reasons.append(f"OpenVINO holds integer weights of 4 or 8 bits, not {weight_bits}: choose weight_bits 4 or 8")
    if activation_bits not in (8, 32):
        reasons.append(
            f"OpenVINO computes on activations of 8 bits or float, not {activation_bits} bits: "
            "choose activation_bits 8, or quantize weights only"
        )
    if isinstance(granularity, PerGroup) and granularity.size < 2:
        reasons.append(f"groups of {granularity.size} weights cannot be written as blocks: choose a size of 2 or more")
    elif isinstance(granularity, PerGroup) and weight_bits == 4 and granularity.size % 2:
        reasons.append(
            f"OpenVINO multiplies wrongly by 4-bit weights in groups of an odd size ({granularity.size}): "
            "choose an even size, or weight_bits 8"
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
    """Write `module` as one folder, or nothing.

    Args:
        module: in eval mode, any number of tensors in, one out; may hold quantized layers.
        example: its inputs; the model takes a batch of 1 of their shapes.
        path: the folder; replaced if it is there.
        config: precision, and whether height and width are free.
        metadata: written into the .xml, sorted by key, with what is known of each input.
        output: what the component makes, and the output's name in the model.

    Raises:
        UserError: the format cannot hold a layer, or a layer has no place in the traced graph.
        MissingExtra: a package is not installed.
    """
    ov = _runtime("export.openvino")
    onnx = require("onnx", extra="openvino", purpose="export.openvino")
    refuse_layers("OpenVINO", module, refuse, config)
    _refuse_short_groups(module)
    form = Form(extra="openvino", dynamic=config.dynamic, precision=config.precision)
    model = built(module, example, form, metadata=metadata, output=output)
    network = ov.Core().read_model(model.SerializeToString())
    layers = layer_map(onnx, model.graph)
    entries = entries_of(layers)
    _simplified(network, entries)
    _numbered(network, kept={f"{name}.weight{end}" for name in entries for end in ("", ".scale")})
    own = {p.key: p.value for p in model.metadata_props} | {KEY: layers, WEIGHTS: BLANK}
    for key in sorted(own):
        network.set_rt_info(own[key], [SPACE, key])
    write_folder_atomically(path, lambda folder: _save(ov, network, folder))


def load(path: Path, *, threads: int) -> Callable[..., torch.Tensor]:
    """The model as a function on the component's inputs, in OpenVINO on the CPU; a batch runs sample by sample.

    Raises:
        UserError: the folder is missing or damaged, or its two files do not belong together.
        MissingExtra: openvino is not installed.
    """
    ov = _runtime(f"running {path.name}")
    hints = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(_read(ov, path), "CPU", hints)
    types = [port.get_element_type().to_dtype() for port in compiled.inputs]
    request = compiled.create_infer_request()

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        made = []
        for one in split(inputs, 1):
            arrays = [x.detach().contiguous().numpy().astype(t, copy=False) for x, t in zip(one, types, strict=True)]
            found = request.infer(dict(enumerate(arrays)))
            made.append(torch.from_numpy(found[compiled.outputs[0]].copy()))
        return torch.cat(made)

    return call


def read_back(path: Path) -> dict[str, QuantizedWeight]:
    """The integers and scales that the folder holds, by layer name, as the variant had them.

    Raises:
        UserError: the folder is missing or damaged, or was not written here.
    """
    ov = _runtime("reading an OpenVINO model")
    network = _read(ov, path)
    held = {op.get_friendly_name(): op for op in network.get_ops() if op.get_type_name() == "Constant"}
    try:
        entries = entries_of(_own(network, KEY))
        return {
            name: weight_from(
                entry,
                _tensor(ov, held[f"{name}.weight"]),
                torch.zeros(0) if entry["bits"] == 16 else _tensor(ov, held[f"{name}.weight.scale"]),
            )
            for name, entry in entries.items()
        }
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: its layers cannot be read ({error}); export the variant again") from error


def _refuse_short_groups(module: nn.Module) -> None:
    problems = []
    for name, q in quantized(module).items():
        inputs = q.qdata[0].numel()
        if isinstance(q.layer.granularity, PerGroup) and inputs % q.layer.granularity.size:
            fits = ", ".join(str(size) for size in range(2, inputs + 1) if inputs % size == 0)
            problems.append(
                f"{name}: groups of {q.layer.granularity.size} do not divide its {inputs} inputs: choose of {fits}"
            )
    if problems:
        raise UserError("OpenVINO cannot hold this variant:\n" + "\n".join(problems))


def _simplified(network: Any, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """What ovc does before it saves: zero points of zero go, equal shapes are computed once, constants are reshaped.

    Folding takes their names from a layer's integers and scales, which get them back. It would also widen 16-bit
    weights: a model that has some is left as it is.
    """
    if any(entry["bits"] == 16 for entry in entries.values()):
        return
    from openvino._offline_transformations import apply_moc_transformations  # type: ignore[import-untyped]

    apply_moc_transformations(network, cf=False)
    made = {f"{name}.weight/{stage}": name for name in entries for stage in ("float", "reshaped")}
    for op in network.get_ordered_ops():
        product = _behind(op, FOLDS)
        if op.get_friendly_name() in made and product.get_type_name() == "Multiply":
            name = f"{made[op.get_friendly_name()]}.weight"
            integers, scales = (product.input_value(side).get_node() for side in (0, 1))
            _behind(integers, FOLDS).set_friendly_name(name)
            _behind(scales, FOLDS).set_friendly_name(f"{name}.scale")


def _behind(op: Any, kinds: frozenset[str]) -> Any:
    """The first operator on the way to a tensor's origin that is none of `kinds`."""
    while op.get_type_name() in kinds:
        op = op.input_value(0).get_node()
    return op


def _numbered(network: Any, kept: Collection[str]) -> None:
    """Give operators that OpenVINO named by a counter of its own the numbers of their order."""
    for number, op in enumerate(network.get_ordered_ops()):
        name = op.get_friendly_name()
        if name not in kept and re.fullmatch(r"[A-Z][A-Za-z]*_\d+(?:[/_].*)?", name):
            op.set_friendly_name(f"{op.get_type_name()}_{number}")


def _save(ov: Any, network: Any, folder: Path) -> None:
    ov.save_model(network, folder / XML, compress_to_fp16=False)
    text = (folder / XML).read_text(encoding="utf-8")
    (folder / XML).write_text(text.replace(BLANK, sha256(folder / BIN)), encoding="utf-8")


def _own(network: Any, key: str) -> str:
    """A value of our own metadata.

    Raises:
        KeyError: there is none.
    """
    if not network.has_rt_info([SPACE, key]):
        raise KeyError(key)
    return str(network.get_rt_info([SPACE, key]).astype(str))


def _read(ov: Any, path: Path) -> Any:
    for part in (XML, BIN):
        if not (path / part).is_file():
            raise UserError(f"{path}: has no {part}; an OpenVINO model is a folder with {XML} and {BIN}")
    try:
        network = ov.Core().read_model(path / XML, path / BIN)
    except RuntimeError as error:
        raise UserError(
            f"{path}: OpenVINO {ov.__version__} cannot read it ({error}); export the variant again"
        ) from error
    if network.has_rt_info([SPACE, WEIGHTS]) and _own(network, WEIGHTS) != sha256(path / BIN):
        raise UserError(f"{path}: {BIN} is not the one that belongs to {XML}, or is damaged; export the variant again")
    return network


def _tensor(ov: Any, constant: Any) -> torch.Tensor:
    """A constant's values; 4-bit ones as int8, 16-bit floats as they are."""
    kind = constant.get_element_type().get_type_name()
    if kind == "i4":
        packed = torch.from_numpy(constant.data.view("uint8").copy()).reshape(-1)
        return unpack(packed, 4, torch.Size(constant.shape).numel())
    if kind == "bf16":
        raw = torch.from_numpy(constant.data.view("int16").copy())
        return raw.view(torch.bfloat16)
    return torch.from_numpy(constant.data.copy())
