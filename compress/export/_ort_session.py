"""A file in ONNX Runtime on the CPU, as a function on the component's inputs; for ONNX and ORT files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compress.errors import UserError, require
from compress.nn.batches import split

NUMPY_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}  # of inputs


def options_of(runtime: Any, threads: int, *, exact: bool = True) -> Any:
    """Silent, on so many threads, and with nothing rounded that no recipe asked to round.

    `exact` forbids the kernels of x86 without VNNI, which add pairs of products in 16 bits and clip: a convolution was
    36 steps of its output off there. A phone's processors have exact kernels that are fast; this one may not.
    """
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    # left alone, products with integer weights round their activations to 8 bits, which no recipe asked for
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def session(runtime: Any, model: Path | bytes, options: Any, *, name: Path, disabled: tuple[str, ...] = ()) -> Any:
    """A session on the CPU.

    Raises:
        UserError: the file is damaged, or not a model.
    """
    state = runtime.capi.onnxruntime_pybind11_state
    damaged = (state.Fail, state.InvalidGraph, state.InvalidProtobuf, state.InvalidArgument, state.NotImplemented)
    try:
        return runtime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled)
        )
    except (*damaged, state.RuntimeException, state.NoModel) as error:
        raise UserError(
            f"{name}: ONNX Runtime {runtime.__version__} cannot load it ({error}); export the variant again, "
            "or fetch the file again if it was copied"
        ) from error


def runner(path: Path, *, threads: int, extra: str, exact: bool = True) -> Callable[..., torch.Tensor]:
    """The file as a function on the component's inputs; a batch runs sample by sample.

    Raises:
        UserError: the file is missing or damaged.
        MissingExtra: onnxruntime is not installed.
    """
    runtime = require("onnxruntime", extra=extra, purpose=f"running {path.name}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; export the variant again")
    made_of = session(runtime, path, options_of(runtime, threads, exact=exact), name=path)
    names = [given.name for given in made_of.get_inputs()]
    types = [NUMPY_TYPES[given.type] for given in made_of.get_inputs()]

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        made = []
        for one in split(inputs, 1):
            arrays = [x.detach().contiguous().numpy().astype(t, copy=False) for x, t in zip(one, types, strict=True)]
            made.append(torch.from_numpy(made_of.run(None, dict(zip(names, arrays, strict=True)))[0]))
        return torch.cat(made)

    return call
