"""Exported files as functions on NumPy arrays, for devices and scripts without torch; one runtime per suffix.

A network here takes and gives what the torch module does (NCHW float32, whole numbers as ids), one sample at a time,
whatever the file has: inputs are matched by their number of axes, which a text encoder, a UNet and a decoder all tell
apart; NHWC maps and uint8 pictures are turned back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import UserError, require
from compress.export._openvino_import import quietly_imported

Shape = tuple[int | None, ...]  # None: free
Raw = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """An input or the output of a file."""

    shape: Shape
    dtype: Any = np.float32


@dataclass(frozen=True, slots=True, kw_only=True)
class FileNetwork:
    """A file in its runtime."""

    path: Path
    runtime: str
    inputs: tuple[Slot, ...]
    output: Slot
    run: Raw  # arrays in the file's own order, layout and types

    def call(self, *arrays: np.ndarray, channels: int | None = None) -> np.ndarray:
        """One sample; `channels` of the output, where it is a map, tell NHWC from NCHW."""
        order = self._order(arrays)
        given = [self._laid_out(arrays[i], slot) for i, slot in zip(order, self.inputs, strict=True)]
        made = self.run(given)
        if made.dtype == np.uint8:
            made = made.astype(np.float32) / 255
        if made.ndim == 4 and channels is not None and made.shape[1] != channels and made.shape[3] == channels:
            made = made.transpose(0, 3, 1, 2)
        return made.astype(np.float32, copy=False)

    def _order(self, arrays: Sequence[np.ndarray]) -> list[int]:
        """For each input of the file, which array goes there."""
        wanted, given = [len(slot.shape) for slot in self.inputs], [a.ndim for a in arrays]
        if sorted(wanted) != sorted(given):
            raise UserError(f"{self.path} takes inputs of {wanted} axes, not {given}: it is another component's file")
        return list(range(len(given))) if wanted == given else [given.index(axes) for axes in wanted]

    def _laid_out(self, array: np.ndarray, slot: Slot) -> np.ndarray:
        if array.ndim == 4 and not _fits(array.shape, slot.shape):
            array = array.transpose(0, 2, 3, 1)
        if not _fits(array.shape, slot.shape):
            raise UserError(f"{self.path} takes an input of {list(slot.shape)}, not {list(array.shape)}")
        return np.ascontiguousarray(array, dtype=slot.dtype)


def _fits(shape: Sequence[int], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(b is None or a == b for a, b in zip(shape, wanted, strict=True))


def channels_of(slot: Slot) -> int | None:
    """Channels of a map [1, c, h, w] or [1, h, w, c]: the axis that differs from two equal ones; None: not told."""
    if len(slot.shape) != 4:
        return None
    _, first, middle, last = slot.shape
    if middle == last:
        return first
    return last if first == middle else None


def side_of(slot: Slot) -> int | None:
    """Height and width of a square map; None: free."""
    return slot.shape[2] if len(slot.shape) == 4 else None


def suffixes() -> tuple[str, ...]:
    """Of the files that can be run, in the order in which they are looked for."""
    return tuple(_RUNNERS)


def load(path: Path, *, threads: int = 1) -> FileNetwork:
    """The file in its runtime.

    Raises:
        UserError: missing, of no known format, or damaged.
        MissingExtra: its runtime is not installed.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; export the variant first")
    if path.suffix not in _RUNNERS:
        raise UserError(f"{path}: cannot be run; known are {', '.join(_RUNNERS)}")
    try:
        return _RUNNERS[path.suffix](path, threads)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable {path.suffix} file ({error}); export the variant again") from error


def _shape(sizes: Sequence[Any]) -> Shape:
    return tuple(size if isinstance(size, int) and size > 0 else None for size in sizes)


def _onnx(path: Path, threads: int) -> FileNetwork:
    runtime = require("onnxruntime", extra="onnx", purpose=f"running {path.name}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")  # both as exporters are judged
    options.add_session_config_entry("session.x64quantprecision", "1")
    state = runtime.capi.onnxruntime_pybind11_state
    damaged = (state.Fail, state.InvalidGraph, state.InvalidProtobuf, state.InvalidArgument, state.NotImplemented)
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (*damaged, state.RuntimeException, state.NoModel) as error:
        raise ValueError(str(error).splitlines()[0]) from error
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
    slots = tuple(Slot(shape=_shape(i.shape), dtype=types.get(i.type, np.float32)) for i in session.get_inputs())
    names = [i.name for i in session.get_inputs()]

    def run(arrays: Sequence[np.ndarray]) -> np.ndarray:
        made: np.ndarray = session.run(None, dict(zip(names, arrays, strict=True)))[0]
        return made

    output = Slot(shape=_shape(session.get_outputs()[0].shape))
    return FileNetwork(path=path, runtime="ONNX Runtime", inputs=slots, output=output, run=run)


def _litert(path: Path, threads: int) -> FileNetwork:
    runtime = require("ai_edge_litert.interpreter", extra="litert", purpose=f"running {path.name}")
    interpreter = runtime.Interpreter(model_path=str(path), num_threads=threads)
    inputs, (made, *_) = interpreter.get_input_details(), interpreter.get_output_details()
    slots = tuple(Slot(shape=_shape([int(s) for s in i["shape_signature"]]), dtype=i["dtype"]) for i in inputs)

    def run(arrays: Sequence[np.ndarray]) -> np.ndarray:
        for detail, array in zip(inputs, arrays, strict=True):
            interpreter.resize_tensor_input(detail["index"], array.shape)
        interpreter.allocate_tensors()
        for detail, array in zip(inputs, arrays, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        found: np.ndarray = interpreter.get_tensor(made["index"])
        return found

    output = Slot(shape=_shape([int(s) for s in made["shape_signature"]]))
    return FileNetwork(path=path, runtime="LiteRT", inputs=slots, output=output, run=run)


def _openvino(path: Path, threads: int) -> FileNetwork:
    core = quietly_imported(f"running {path.name}").Core()
    model = core.read_model(str(path / "openvino_model.xml" if path.is_dir() else path))
    compiled = core.compile_model(
        model, "CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    )

    def slot(port: Any) -> Slot:
        sizes = [d.get_length() if d.is_static else 0 for d in port.get_partial_shape()]
        return Slot(shape=_shape(sizes), dtype=port.get_element_type().to_dtype().type)

    def run(arrays: Sequence[np.ndarray]) -> np.ndarray:
        made: np.ndarray = compiled(list(arrays))[0]
        return made.copy()

    slots = tuple(slot(port) for port in compiled.inputs)
    return FileNetwork(path=path, runtime="OpenVINO", inputs=slots, output=slot(compiled.outputs[0]), run=run)


def _executorch(path: Path, threads: int) -> FileNetwork:
    runtime = require("executorch.runtime", extra="executorch", purpose=f"running {path.name}")
    torch = require("torch", extra="executorch", purpose=f"running {path.name}")
    method = runtime.Runtime.get().load_program(path).load_method("forward")
    told = method.metadata
    inputs = [told.input_tensor_meta(i) for i in range(told.num_inputs())]
    # ExecuTorch's numbers for types that networks take: 3 int32, 4 int64, 6 float32
    types = {3: np.int32, 4: np.int64, 6: np.float32}
    slots = tuple(Slot(shape=_shape(list(i.sizes())), dtype=types.get(int(i.dtype()), np.float32)) for i in inputs)

    def run(arrays: Sequence[np.ndarray]) -> np.ndarray:
        made: np.ndarray = method.execute([torch.from_numpy(a) for a in arrays])[0].numpy().copy()
        return made

    output = Slot(shape=_shape(list(told.output_tensor_meta(0).sizes())))
    return FileNetwork(path=path, runtime="ExecuTorch", inputs=slots, output=output, run=run)


_RUNNERS: dict[str, Callable[[Path, int], FileNetwork]] = {
    ".onnx": _onnx,
    ".ort": _onnx,
    ".tflite": _litert,
    ".openvino": _openvino,
    ".xml": _openvino,
    ".pte": _executorch,
}
