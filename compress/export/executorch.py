"""ExecuTorch: a program for XNNPACK on Android and iOS, with the variant's own integers, and its runtime on this host.

The variant is exported with its integers as PyTorch's quantize and dequantize operators; layers that XNNPACK has no
operator for are written in those that it has (`_xnnpack_ops`), so that the graph is handed over in one piece or few.
Nothing is quantized again. Batch is 1, sizes are fixed; the same module gives the same bytes.

Source: executorch 1.5, `to_edge_transform_and_lower` with `XnnpackPartitioner`.
Differs: XNNPACK multiplies 8-bit weights with 8-bit activations alone. Layers of a static variant that keep float
activations, and embeddings, have their integers in the file and are dequantized whenever it runs; weight-only variants,
4 bits, palettes and half precision are refused.
Cost: one export; the lowering takes seconds, most of them in executorch's own passes.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.errors import UserError, require
from compress.export._decomposed import one_for_each_reader, without_repeats
from compress.export._executorch_file import File, arranged, constants, opened, text_of, weights
from compress.export._executorch_fold import fold
from compress.export._executorch_layers import spelled_out
from compress.export._hushed import lines_without, loggers_without_warnings
from compress.export._labels import Output, input_names, with_inputs
from compress.export._xnnpack_ops import table
from compress.files import write_bytes
from compress.nn.affine import Granularity, Half, Palette, PerChannel, PerGroup, PerTensor, QuantizedWeight
from compress.nn.batches import split, take
from compress.nn.qmodules import QConv2d, QuantizedModule, quantized
from compress.records import Inputs
from compress.schema import Schema

SUFFIX = ".pte"
RUNTIME = "executorch"
PACKAGES = ("executorch",)
PURPOSE = "export.executorch"
REMARKS = (  # of the runtime on the processor, whose kind it looks up where only phones have it
    r"\[cpuinfo_utils\.cpp:\d+\] (Reading file|Failed to open midr file|CPU info and manual query)",
    r"\[threadpool\.cpp:\d+\] Resetting threadpool to",
)
METADATA = "metadata"  # a method without inputs that gives the metadata as JSON


class Config(Schema):
    """The format has no options: sizes are the example's, numbers are what the variant has."""


def refuse(
    weight_bits: int, granularity: Granularity | None, activation_bits: int = 32, config: Config | None = None
) -> list[str]:
    """Why the format cannot hold such a quantization: nothing, or one sentence each. 32 bits mean float."""
    reasons = []
    if isinstance(granularity, Palette | Half | PerGroup):
        kind = {Palette: "palettes", Half: "half-precision weights", PerGroup: "groups of weights"}[type(granularity)]
        return [f"XNNPACK multiplies no {kind} with what this writes: choose quantize.static, one scale per channel"]
    if weight_bits not in (8, 32):
        reasons.append(f"XNNPACK multiplies weights of 8 bits, not {weight_bits}: choose weight_bits 8")
    if activation_bits not in (8, 32):
        reasons.append(
            f"XNNPACK multiplies activations of 8 bits or float, not {activation_bits}: choose activation_bits 8"
        )
    if weight_bits == 8 and activation_bits == 32:
        reasons.append(
            "XNNPACK multiplies 8-bit weights with 8-bit activations alone: choose quantize.static, or another format"
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
        config: nothing so far.
        metadata: written into the file as the result of its method `metadata`, with what is known of each input.
        output: what the component makes.

    Raises:
        UserError: the format cannot hold a layer.
        MissingExtra: executorch is not installed.
    """
    require("executorch", extra="executorch", purpose=PURPOSE)
    layers = quantized(module)
    _refuse_layers(layers)
    labels = with_inputs(metadata, input_names(module, example)) | {"makes": output}
    described = json.dumps({"metadata": labels, "layers": _described(layers)}, sort_keys=True)
    with _quiet(), torch.no_grad():
        content = _lowered(spelled_out(module), take(example, 0, 1), described)
    write_bytes(path, content)


def _lowered(module: nn.Module, example: Inputs, described: str) -> bytes:
    exir, xnnpack = (
        require(name, extra="executorch", purpose=PURPOSE)
        for name in ("executorch.exir", "executorch.backends.xnnpack.partition.xnnpack_partitioner")
    )
    require("executorch.kernels.quantized", extra="executorch", purpose=PURPOSE)  # registers what dequantizes
    program = torch.export.export(module, example, strict=False).run_decompositions(table())
    fold(program)
    without_repeats(program.graph_module)
    one_for_each_reader(program.graph_module)  # executorch's passes lay a shared one out as one of its readers wants it
    partitioner = [xnnpack.XnnpackPartitioner()]
    edge = exir.to_edge_transform_and_lower(program, partitioner=partitioner, constant_methods={METADATA: described})
    return bytes(edge.to_executorch().buffer)


def load(path: Path, *, threads: int) -> Callable[..., torch.Tensor]:
    """The file as a function on the component's inputs, in ExecuTorch's runtime; a batch runs sample by sample.

    Raises:
        UserError: the file is missing, damaged or no ExecuTorch program; when called, that it cannot be run.
        MissingExtra: executorch is not installed.
    """
    purpose = f"running {path.name}"
    require("executorch", extra="executorch", purpose=purpose)
    data, _ = opened(path)
    with _quiet(), lines_without(*REMARKS):
        runtime = require("executorch.runtime", extra="executorch", purpose=purpose)
        native = require("executorch.extension.pybindings.portable_lib", extra="executorch", purpose=purpose)
        require("executorch.kernels.quantized", extra="executorch", purpose=purpose)
        native._threadpool_get_thread_count()  # makes the pool
    loaded = _Loaded(path, data, runtime, native, threads)
    kinds = loaded.kinds()

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        made = []
        for one in split(inputs, 1):
            given = tuple(x.detach().contiguous().to(kind) for x, kind in zip(one, kinds, strict=True))
            try:
                made.append(loaded.method().execute(given)[0].clone())
            except RuntimeError as error:
                raise UserError(f"{path}: ExecuTorch cannot run it ({error}); export another format") from error
        return torch.cat(made)

    return call


class _Loaded:
    """A program and its method; loaded again where the pool of threads that it was loaded with is gone.

    A method keeps the address of the process's only pool, and a pool of another size is another pool.
    """

    resets = 0  # of the pool, in this process

    def __init__(self, path: Path, data: bytes, runtime: Any, native: Any, threads: int) -> None:
        self.path, self.data, self.runtime, self.native, self.threads = path, data, runtime, native, threads
        self.seen = -1
        self.program: Any = None

    def method(self) -> Any:
        if self.native._threadpool_get_thread_count() != self.threads:
            with lines_without(*REMARKS):
                self.native._unsafe_reset_threadpool(self.threads)
            _Loaded.resets += 1
        if self.program is None or self.seen != _Loaded.resets:
            self.program, self.seen = self._read(), _Loaded.resets
        return self.program.load_method("forward")  # the same one every time; the program must outlive it

    def _read(self) -> Any:
        try:
            program = self.runtime.Runtime.get().load_program(self.data)
            program.load_method("forward")
        except (RuntimeError, KeyError) as error:
            raise UserError(f"{self.path}: ExecuTorch cannot load it ({error}); export the variant again") from error
        return program

    def kinds(self) -> list[torch.dtype]:
        """The types of the inputs."""
        metadata = self.method().metadata
        return [_kind(metadata.input_tensor_meta(index).dtype()) for index in range(metadata.num_inputs())]


def _kind(number: int) -> torch.dtype:
    """The type of an input, by its number in ExecuTorch's ScalarType."""
    return {3: torch.int32, 4: torch.int64, 6: torch.float32}[number]


def partitions(path: Path) -> int:
    """Into how many pieces the graph was cut for XNNPACK.

    Raises:
        UserError: the file is missing, damaged or no ExecuTorch program.
    """
    return len(opened(path)[1].delegates)


def read_back(path: Path) -> dict[str, QuantizedWeight]:
    """The integers and scales that the file's nodes multiply with, by layer name.

    Raises:
        UserError: the file is missing, damaged or no ExecuTorch program.
        MissingExtra: executorch is not installed.
    """
    require("executorch", extra="executorch", purpose=f"reading {path.name}")
    _, file = opened(path)
    named, held = file.named, {}
    used = {(w.key, _digest(w.scale)): w for delegate in file.delegates for w in weights(delegate, named)}
    apart = constants(file)
    for name, entry in _entries(path, file).items():
        shape = tuple(entry["shape"])
        found = used.get((entry["weight"], entry["scale"]))
        integers, scale = (arranged(found, shape), found.scale) if found else _apart(apart, entry)
        if integers is not None and scale is not None:
            kind: Granularity = PerChannel() if entry["per_channel"] else PerTensor()
            held[name] = QuantizedWeight(qdata=integers, scale=scale, bits=8, granularity=kind)
    return held


def _entries(path: Path, file: File) -> dict[str, Any]:
    """What the file says of its quantized layers; nothing where it is not ours."""
    try:
        return dict(json.loads(text_of(file, METADATA) or "{}").get("layers", {}))
    except (ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: its metadata is not readable ({error}); export the variant again") from error


def _apart(stored: Mapping[str, tuple[torch.dtype, bytes]], entry: Mapping[str, Any]) -> tuple[Any, Any]:
    """Integers and scale of a layer that is dequantized when the file runs."""
    if entry["loose"] not in stored or (entry["per_channel"] and entry["scale"] not in stored):
        return None, None
    kind, octets = stored[entry["loose"]]
    integers = torch.frombuffer(bytearray(octets), dtype=kind).reshape(entry["shape"])
    if not entry["per_channel"]:
        return integers, torch.tensor([entry["one_scale"]], dtype=torch.float32)
    kind, octets = stored[entry["scale"]]
    return integers, torch.frombuffer(bytearray(octets), dtype=kind)


def _described(layers: Mapping[str, QuantizedModule]) -> dict[str, Any]:
    """Where each layer's integers are to be found in the file, by the digests of their bytes."""
    return {
        name: {
            "shape": list(q.qdata.shape),
            "per_channel": isinstance(q.layer.granularity, PerChannel),
            "weight": _digest(_channels_last(q)),
            "loose": _digest(q.qdata),
            "scale": _digest(q.scale),
            "one_scale": float(q.scale[0]),
        }
        for name, q in sorted(layers.items())
    }


def _channels_last(q: QuantizedModule) -> torch.Tensor:
    """The integers in XNNPACK's order."""
    if q.qdata.dim() != 4:
        return q.qdata
    depthwise = isinstance(q, QConv2d) and q.qdata.shape[1] == 1 and q.groups > 1
    return q.qdata.permute(1, 2, 3, 0) if depthwise else q.qdata.permute(0, 2, 3, 1)


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def _refuse_layers(layers: Mapping[str, QuantizedModule]) -> None:
    """As `refuse`, for layers that there are: some of a static variant may keep float activations, not all."""
    problems = []
    for name, q in layers.items():
        grids = [grid.bits for grid in (q.layer.input, q.layer.output) if grid is not None]
        problems += [f"{name}: {why}" for why in refuse(q.layer.bits, q.layer.granularity, max(grids, default=8))]
    if layers and not any(q.layer.input is not None for q in layers.values()):
        problems += refuse(8, PerChannel(), 32)
    if problems:
        raise UserError("ExecuTorch cannot hold this variant:\n" + "\n".join(problems))


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of deprecations in each other, and what they import of libraries for other processors."""
    with warnings.catch_warnings(), loggers_without_warnings("torchao", "torch.utils._pytree"):
        warnings.simplefilter("ignore")
        yield
