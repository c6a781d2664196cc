"""The benchmark programs that mobile runtimes bring: their command lines, and what they print.

Source: onnxruntime_perf_test (onnxruntime/test/perftest, README and performance_runner.cc); benchmark_model
(tensorflow/lite/tools/benchmark, benchmark_model.cc); executor_runner (executorch/examples/portable/executor_runner).
Differs: of several runs in one process the median is taken; where a version prints an average only, that.
Cost: every call is one process on the device that loads its model anew.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from compress.errors import UserError
from compress.targets._adb import last_lines

# as this project runs its files on the host: ONNX Runtime would round activations to 8 bits otherwise
ACCURACY = "session.qdq_matmulnbits_accuracy_level|1"
WARM_UP = 2  # runs that executor_runner makes before those that count; the other two programs warm up by themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One process that is to be started."""

    model: str  # path on the device
    threads: int
    runs: int
    free: dict[str, int]  # sizes of axes that the file leaves free, by their names


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A runtime's benchmark program."""

    name: str  # of the binary
    suffixes: tuple[str, ...]
    arguments: Callable[[Call], list[str]]
    seconds: Callable[[str, int], float]  # what was printed, how many runs -> seconds of one
    logs: bool = False  # whether a build for Android may print into the system's log instead


def _perf_test_arguments(call: Call) -> list[str]:
    free = [word for name, size in sorted(call.free.items()) for word in ("-f", f"{name}:{size}")]
    threads = ["-x", str(call.threads), "-y", "1"]
    return ["-e", "cpu", "-m", "times", "-r", str(call.runs), *threads, "-I", "-s", "-C", ACCURACY, *free, call.model]


def _perf_test_seconds(text: str, runs: int) -> float:
    """The median: "P50 Latency: 0.0995086 s"."""
    made = re.search(r"Total inference requests:\s*(\d+)", text)
    found = re.search(r"P50 Latency:\s*([\d.eE+-]+) s", text)
    if found is None or made is None or int(made[1]) != runs:
        raise _unreadable("onnxruntime_perf_test", text)
    return float(found[1])


def _benchmark_model_arguments(call: Call) -> list[str]:
    return [
        f"--graph={call.model}",
        f"--num_threads={call.threads}",
        f"--num_runs={call.runs}",
        "--min_secs=0",
        "--max_secs=600",
        "--use_xnnpack=true",
    ]


def _benchmark_model_seconds(text: str, runs: int) -> float:
    """The last statistics, those of the timed runs: "count=25 first=187533 ... median=141253 p95=187533", in us."""
    rows = re.findall(r"count=(\d+)[^\n]*", text)
    lines = [line for line in text.splitlines() if "count=" in line]
    ended = re.search(r"Inference \(avg\):\s*([\d.eE+-]+)", text)
    if len(rows) < 2 or ended is None or int(rows[-1]) < runs:
        raise _unreadable("benchmark_model", text)
    told = re.search(r"median=([\d.eE+-]+)", lines[-1])
    return 1e-6 * float((told or ended)[1])


def _executor_runner_arguments(call: Call) -> list[str]:
    return [f"--model_path={call.model}", f"--num_executions={call.runs + WARM_UP}", f"--cpu_threads={call.threads}"]


def _executor_runner_seconds(text: str, runs: int) -> float:
    """The median of "Iteration 3 of 22: 12.345678 ms"; of a version without these, the average of all."""
    ended = re.findall(r"Model executed successfully (\d+) time\(s\) in ([\d.]+) ms", text)
    if not ended or int(ended[-1][0]) != runs + WARM_UP:
        raise _unreadable("executor_runner", text)
    each = [float(took) for took in re.findall(rf"Iteration \d+ of {runs + WARM_UP}: ([\d.]+) ms", text)]
    return 1e-3 * (median(each[WARM_UP:]) if len(each) == runs + WARM_UP else float(ended[-1][1]) / int(ended[-1][0]))


def _unreadable(name: str, text: str) -> UserError:
    return UserError(f"{name} did not print its timings; the last that it said: {last_lines(text)}")


PROGRAMS: Sequence[Program] = (
    Program(
        name="onnxruntime_perf_test",
        suffixes=(".onnx", ".ort"),
        arguments=_perf_test_arguments,
        seconds=_perf_test_seconds,
    ),
    Program(
        name="benchmark_model",
        suffixes=(".tflite",),
        arguments=_benchmark_model_arguments,
        seconds=_benchmark_model_seconds,
    ),
    Program(
        name="executor_runner",
        suffixes=(".pte",),
        arguments=_executor_runner_arguments,
        seconds=_executor_runner_seconds,
        logs=True,
    ),
)
