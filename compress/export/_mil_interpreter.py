"""Run a saved Core ML program where Core ML is not: its own operators on its own stored weights, in torch.

This checks the graph, the stored integers, scales and tables, and their types. Results of float16 operators are rounded
to float16, so an overflow shows as infinity. It is not Apple's runtime: not its kernels or their order of summation,
not the Neural Engine, not its choice of where each operator runs; and its speed says nothing.

Source: coremltools' own reader of the file (`milproto.load`), which also unfolds the `constexpr_*` operators.
Differs: float16 operators accumulate in float32 here.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.errors import UserError, require
from compress.export._coreml_import import quietly_imported
from compress.export._coreml_package import MODEL, WEIGHTS, check
from compress.export._mil_operators import OPERATORS, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A package as it lies on the disk: coremltools' program, and what the package says of itself."""

    program: Any
    metadata: Mapping[str, str]
    image: bool  # the output is a picture of whole numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    run: Callable[..., Any]
    inputs: Mapping[str, Any]  # a constant, the name of a value, or a list of both
    outputs: tuple[str, ...]
    halves: tuple[bool, ...]  # which outputs are float16
    done: tuple[str, ...]  # values that nobody reads afterwards


@dataclass(frozen=True, slots=True)
class _Name:
    name: str


def open_package(path: Path) -> Saved:
    """Read a package without running it.

    Raises:
        UserError: it is missing, damaged, or no ML program.
        MissingExtra: coremltools is not installed.
    """
    quietly_imported(f"reading {path.name}")
    proto = require("coremltools.proto.Model_pb2", extra="coreml", purpose=f"reading {path.name}")
    reader = require(
        "coremltools.converters.mil.frontend.milproto.load", extra="coreml", purpose=f"reading {path.name}"
    )
    wire = require("google.protobuf.message", extra="coreml", purpose=f"reading {path.name}")
    check(path)
    spec = proto.Model()
    try:
        spec.ParseFromString((path / MODEL).read_bytes())
        if spec.WhichOneof("Type") != "mlProgram":
            raise UserError(f"{path}: not an ML program; mdcompress reads packages for iOS 15 and newer")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = reader.load(spec, spec.specificationVersion, str((path / WEIGHTS).parent))
    except (
        wire.DecodeError,
        ValueError,
        KeyError,
        RuntimeError,
        AttributeError,
        TypeError,
        NotImplementedError,
    ) as error:
        raise UserError(f"{path}: not a readable Core ML package ({error}); export the variant again") from error
    described = spec.description.output[0].type.WhichOneof("Type") if spec.description.output else ""
    return Saved(
        program=program,
        metadata=dict(spec.description.metadata.userDefined),
        image=described == "imageType",
    )


def function(saved: Saved, path: Path) -> Callable[..., torch.Tensor]:
    """The program on its inputs, in their order, to its first output as float32.

    Raises:
        UserError: the program has an operator that is not known here.
    """
    main = saved.program.functions["main"]
    unknown = sorted({op.op_type for op in main.operations if not _known(op)})
    if unknown:
        raise UserError(f"{path}: no interpreter for the operators {', '.join(unknown)}; judge the package on a Mac")
    steps, result = _steps(main), main.outputs[0].name
    kinds = {name: var.dtype for name, var in main.inputs.items()}

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        values: dict[str, Value] = {}
        for (name, kind), x in zip(kinds.items(), inputs, strict=True):
            values[name] = x.float() if "fp" in kind.__name__ else x.to(torch.int32)
        for step in steps:
            made = step.run(**{key: _value(given, values) for key, given in step.inputs.items()})
            parts = made if isinstance(made, tuple | list) else (made,)
            for name, half, part in zip(step.outputs, step.halves, parts, strict=True):
                values[name] = part.half().float() if half else part
            for name in step.done:
                del values[name]
        return values[result].float()

    return run


def _known(op: Any) -> bool:
    return op.op_type == "const" or op.op_type.startswith("constexpr_") or op.op_type in OPERATORS


def _steps(main: Any) -> list[_Step]:
    """The operators in order, constants unfolded, with the last use of every value."""
    constants: dict[str, Value] = {}
    steps: list[_Step] = []
    for op in main.operations:
        if op.op_type == "const" or op.op_type.startswith("constexpr_"):
            value = op.val.val if op.op_type == "const" else op.materialized_val_inference()
            constants[op.outputs[0].name] = _constant(value)
            continue
        given = {key: _given(var, constants) for key, var in op.inputs.items() if var is not None}
        outputs = tuple(var.name for var in op.outputs)
        halves = tuple(var.dtype.__name__ == "fp16" for var in op.outputs)
        steps.append(_Step(run=OPERATORS[op.op_type], inputs=given, outputs=outputs, halves=halves, done=()))
    return _with_ends(steps, {var.name for var in main.outputs})


def _with_ends(steps: list[_Step], kept: set[str]) -> list[_Step]:
    alive, ended = set(kept), []
    for step in reversed(steps):
        named = {name for given in step.inputs.values() for name in _names(given)} | set(step.outputs)
        ended.append(
            _Step(
                run=step.run,
                inputs=step.inputs,
                outputs=step.outputs,
                halves=step.halves,
                done=tuple(sorted(named - alive)),
            )
        )
        alive |= named
    return ended[::-1]


def _names(given: Any) -> list[str]:
    parts = given if isinstance(given, list) else [given]
    return [part.name for part in parts if isinstance(part, _Name)]


def _given(var: Any, constants: Mapping[str, Value]) -> Any:
    if isinstance(var, list | tuple):
        return [_given(each, constants) for each in var]
    return constants[var.name] if var.name in constants else _Name(var.name)


def _value(given: Any, values: Mapping[str, Value]) -> Any:
    if isinstance(given, list):
        return [_value(each, values) for each in given]
    return values[given.name] if isinstance(given, _Name) else given


def _constant(value: Any) -> Value:
    """Floats as float32 tensors, whole numbers as int32 tensors, single truths and strings as they are."""
    if isinstance(value, str | bool | np.bool_):
        return value if isinstance(value, str) else bool(value)
    array = np.asarray(value)
    if array.dtype.kind == "U":
        return str(array)
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    return torch.from_numpy(np.array(array)) if array.dtype.kind == "b" else torch.from_numpy(array.astype(np.int32))
