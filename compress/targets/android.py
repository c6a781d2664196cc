"""An Android device through adb, by the runtimes' own benchmark programs. Not yet tried on hardware.

Every call is one process on the device, which loads the model, warms up and reports the median of its runs; processes
of the two models alternate like the calls of a host's pairs, so what differs from process to process is in the
interval. Inputs are what the programs make up, of the shapes given.

Source: compress.targets._programs, compress.targets._adb.
Cost: one process a call, two calls a pair; `min_pairs` pairs even where the budget is over.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from compress.errors import UserError, require
from compress.records import Inputs
from compress.targets import Phone, Request, _adb
from compress.targets._programs import PROGRAMS, Call, Program
from eval.metrics import latency

SUFFIXES = tuple(suffix for program in PROGRAMS for suffix in program.suffixes)
UNTESTED = "not yet tried on hardware"
FEWEST = 8  # pairs: a process each, so there will not be many
LOG_TAG = "ExecuTorch"


def measure(
    request: Request, *, run: _adb.Run = _adb.run, clock: Callable[[], float] = time.monotonic
) -> latency.LatencyRatio:
    """Both files on one device.

    Args:
        request: What to time; its `phone` says on which device and with which program.
        run: What runs adb.
        clock: What the budget is counted in.

    Raises:
        UserError: no adb, no device, no program on it, or nothing in its output that could be read.
    """
    program = next(one for one in PROGRAMS if request.reference.suffix in one.suffixes)
    device = _adb.find(request.phone.serial, run)
    binary = request.phone.binary or f"{_adb.FOLDER}/{program.name}"
    if device.shell(["ls", binary], seconds=60.0).code:
        raise UserError(
            f"{binary} is not on {device.serial}: build {program.name} for Android, and copy it there with "
            f"adb push {program.name} {_adb.FOLDER}/ and adb shell chmod 755 {binary}; or name another with --binary"
        )
    spent = [0.0]

    def work(path: Path) -> Callable[[], object]:
        there = device.push(path)
        free = _free(path, request.inputs) if path.suffix == ".onnx" else {}
        call = Call(model=there, threads=request.threads, runs=request.phone.runs, free=free)

        def once() -> None:
            spent[0] += _once(device, program, binary, call, request.phone)

        return once

    found = latency.paired_ratio(
        work(request.reference),
        work(request.candidate),
        sampling=replace(request.sampling, min_pairs=FEWEST, max_warmup=1),
        clock=lambda: spent[0],
        runtime=f"{program.name} through adb ({UNTESTED})",
        threads=request.threads,
        budget=clock,
        tell=request.tell,
    )
    return replace(found, host=device.description, clock="device", cpus=_cores(request.phone.cpus))


def _once(device: _adb.Device, program: Program, binary: str, call: Call, phone: Phone) -> float:
    """Seconds of one run of the model, from one process."""
    pinned = ["taskset", phone.cpus] if phone.cpus else []
    since = device.shell(["date", "+%m-%d %H:%M:%S.000"], seconds=60.0).text.strip() if program.logs else ""
    answer = device.shell([*pinned, binary, *program.arguments(call)])
    if answer.code:
        raise UserError(f"{program.name} on {device.serial} ended with {answer.code}: {_adb.last_lines(answer.text)}")
    text = answer.text
    if program.logs and "Model executed successfully" not in text:
        text += device.shell(["logcat", "-d", "-v", "raw", "-T", since, "-s", LOG_TAG], seconds=60.0).text
        text = _last_process(text)
    return program.seconds(text, call.runs)


def _last_process(text: str) -> str:
    """The lines of the last run in a log that may hold those of an earlier one in the same second."""
    head, mark, tail = text.rpartition("Iteration 1 of ")
    return mark + tail if mark else head + tail


def _free(path: Path, inputs: Inputs) -> dict[str, int]:
    """Sizes of the axes that an ONNX file leaves free, from the inputs that it is to be timed on.

    Raises:
        UserError: the file takes other inputs.
    """
    onnx = require("onnx", extra="onnx", purpose=f"reading the inputs of {path.name}")
    graph = onnx.load(path, load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    given = [one for one in graph.input if one.name not in stored]
    shapes = [[axis.dim_param or axis.dim_value for axis in one.type.tensor_type.shape.dim] for one in given]
    if [len(shape) for shape in shapes] != [one.dim() for one in inputs]:
        raise UserError(f"{path} takes inputs of shapes {shapes}, not {[list(one.shape) for one in inputs]}")
    sizes = [pair for shape, one in zip(shapes, inputs, strict=True) for pair in zip(shape, one.shape, strict=True)]
    wrong = [(said, size) for said, size in sizes if not isinstance(said, str) and said != size]
    if wrong:
        raise UserError(f"{path} takes inputs of shapes {shapes}, not {[list(one.shape) for one in inputs]}")
    return {said: size for said, size in sizes if isinstance(said, str)}


def _cores(mask: str | None) -> tuple[int, ...]:
    """The cores of a mask as taskset takes it.

    Raises:
        UserError: it is no mask.
    """
    if mask is None:
        return ()
    try:
        bits = int(mask, 16)
    except ValueError as error:
        raise UserError(f"--cpus {mask}: give a hexadecimal mask, such as f0 for cores 4 to 7") from error
    return tuple(core for core in range(bits.bit_length()) if bits >> core & 1)
