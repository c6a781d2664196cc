"""The Android target against transcripts: what adb and the runtimes' programs print. No device has been used."""

import math
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.errors import UserError
from compress.targets import Phone, Request, _adb, android
from compress.targets._programs import PROGRAMS, Call
from eval.latency_outcome import outcome
from eval.metrics.latency import Sampling

DEVICES = """* daemon not running; starting now at tcp:5037
* daemon started successfully
List of devices attached
3A281FDJH0012A         device usb:1-4 product:shiba model:Pixel_8 device:shiba transport_id:1

"""
PERF_TEST = """Setting intra_op_num_threads to 1
Session creation time cost: 0.217932 s
First inference time cost: 196 ms
Total inference time cost: 0.49481 s
Total inference requests: {runs}
Average inference time cost total: 98.961997 ms
Total inference run time: 0.494854 s
Number of inferences per second: 10.104
Avg CPU usage: 11 %
Peak working set size: 271122432 bytes
Avg CPU usage:11
Peak working set size:271122432
Runs:{runs}
Min Latency: 0.0958204 s
Max Latency: 0.101519 s
P50 Latency: {seconds} s
P90 Latency: 0.101519 s
P95 Latency: 0.101519 s
P99 Latency: 0.101519 s
P999 Latency: 0.101519 s
"""
BENCHMARK_MODEL = """INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Min num runs: [20]
INFO: Num threads: [1]
INFO: Graph: [/data/local/tmp/m.tflite]
INFO: Loaded model /data/local/tmp/m.tflite
INFO: Initialized TensorFlow Lite runtime.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 3.06409
INFO: Initialized session in 92.318ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 600 seconds.
INFO: count=3 first=235158 curr=200386 min=199462 max=235158 avg=211669 std=16613 p5=199462 median=200386 p95=235158

INFO: Running benchmark for at least 20 iterations and at least 0 seconds but terminate if exceeding 600 seconds.
INFO: count=20 first=187533 curr=140990 min=140071 max=195121 avg=145528 std=13583 p5=140545 median=141253 p95=187533

INFO: Inference timings in us: Init: 92318, First inference: 235158, Warmup (avg): 211669, Inference (avg): 145528
INFO: Memory footprint delta from the start of the tool (MB): init=54.2852 overall=73.4102
"""
OLDER_BENCHMARK_MODEL = """count=12 first=156677 curr=33205 min=32578 max=156677 avg=43268.1 std=34197

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=33228 curr=33130 min=32687 max=33239 avg=33071.8 std=129

Inference timings in us: Init: 3501, First inference: 156677, Warmup (avg): 43268.1, Inference (avg): 33071.8
"""
RUNNER = "I 00:00:00.011904 executorch:executor_runner.cpp:412] "


def runner_log(each, *, iterations=True, prefix=RUNNER):
    rows = [f"{prefix}Iteration {k} of {len(each)}: {ms:f} ms" for k, ms in enumerate(each, 1)] if iterations else []
    return "\n".join([*rows, f"{prefix}Model executed successfully {len(each)} time(s) in {sum(each):f} ms."]) + "\n"


def program(name):
    return next(one for one in PROGRAMS if one.name == name)


def test_what_onnxruntime_perf_test_printed_is_read_by_its_median():
    read = program("onnxruntime_perf_test").seconds
    assert read(PERF_TEST.format(runs=5, seconds="0.0995086"), 5) == 0.0995086
    for wrong in (PERF_TEST.format(runs=4, seconds="0.09"), "failed to load model", ""):
        with pytest.raises(UserError, match="onnxruntime_perf_test did not print its timings"):
            read(wrong, 5)


def test_what_benchmark_model_printed_is_of_the_timed_runs_not_of_the_warm_up():
    read = program("benchmark_model").seconds
    assert read(BENCHMARK_MODEL, 20) == pytest.approx(0.141253)
    assert read(OLDER_BENCHMARK_MODEL, 50) == pytest.approx(0.0330718)  # has no median
    warm_up_only = BENCHMARK_MODEL[: BENCHMARK_MODEL.index("INFO: Running benchmark for at least 20")]
    for wrong in (warm_up_only, BENCHMARK_MODEL.replace("count=20", "count=7"), "Benchmarking failed."):
        with pytest.raises(UserError, match="benchmark_model did not print its timings"):
            read(wrong, 20)


def test_what_executor_runner_printed_is_read_without_its_first_runs():
    read = program("executor_runner").seconds
    each = [90.0, 40.0, *[10.0, 11.0, 12.0, 13.0, 14.0]]
    assert read(runner_log(each), 5) == pytest.approx(0.012)
    assert read(runner_log(each, iterations=False), 5) == pytest.approx(sum(each) / 7e3)  # all that it tells
    with pytest.raises(UserError, match="executor_runner did not print"):
        read(runner_log(each[:-1]), 5)


def test_command_lines():
    call = Call(model="/data/local/tmp/m", threads=2, runs=20, free={"w": 48, "h": 32})
    lines = {one.name: shlex.join(one.arguments(call)) for one in PROGRAMS}
    assert lines == {
        "onnxruntime_perf_test": "-e cpu -m times -r 20 -x 2 -y 1 -I -s -C "
        "'session.qdq_matmulnbits_accuracy_level|1' -f h:32 -f w:48 /data/local/tmp/m",
        "benchmark_model": "--graph=/data/local/tmp/m --num_threads=2 --num_runs=20 --min_secs=0 --max_secs=600 "
        "--use_xnnpack=true",
        "executor_runner": "--model_path=/data/local/tmp/m --num_executions=22 --cpu_threads=2",
    }


class Bridge:
    """adb with one device, on which a model takes the milliseconds that its bytes say."""

    def __init__(self, *, devices=DEVICES, printed=None, noise=0.02, log=False, has=True):
        self.devices, self.printed, self.noise, self.log, self.has = devices, printed, noise, log, has
        self.pushed, self.commands, self.now, self.logged = {}, [], 0.0, ""
        self.random = np.random.default_rng(0)

    def clock(self):
        return self.now

    def run(self, command, seconds):
        if command[1] == "devices":
            return _adb.Answer(code=0, text=self.devices)
        assert command[:3] == ["adb", "-s", "3A281FDJH0012A"]
        if command[3] == "push":
            self.pushed[command[5]] = float(Path(command[4]).read_text())
            return _adb.Answer(code=0, text="1 file pushed")
        words = shlex.split(command[4])
        if words[0] == "getprop":
            told = {
                "ro.build.version.release": "15",
                "ro.product.manufacturer": "Google",
                "ro.product.model": "Pixel 8",
            }
            return _adb.Answer(code=0, text=told.get(words[1], "") + "\n")
        if words[0] == "ls":
            there = words[1] in self.pushed if "mdcompress-" in words[1] else self.has
            return _adb.Answer(code=0 if there else 1, text="")
        if words[0] == "date":
            return _adb.Answer(code=0, text="11-25 20:00:00.000\n")
        if words[0] == "logcat":
            return _adb.Answer(code=0, text=self.logged)
        return self._timed(words)

    def _timed(self, words):
        self.commands.append(words)
        self.now += 2.0
        if self.printed is not None:
            return _adb.Answer(code=1, text=self.printed)
        model = next(ms for there, ms in self.pushed.items() if any(there in word for word in words))
        ms = model * math.exp(self.noise * self.random.standard_normal())
        if "executor_runner" in " ".join(words):
            text = runner_log([ms] * 22, prefix="" if self.log else RUNNER)
            if self.log:
                self.logged += text
            return _adb.Answer(code=0, text="" if self.log else text)
        return _adb.Answer(code=0, text=BENCHMARK_MODEL.replace("median=141253", f"median={1000 * ms}"))


@pytest.fixture
def request_of(tmp_path):
    def make(reference, candidate, suffix=".tflite", **phone):
        paths = [tmp_path / f"{name}{suffix}" for name in ("reference", "candidate")]
        for path, ms in zip(paths, (reference, candidate), strict=True):
            path.write_text(str(ms))
        return Request(
            reference=paths[0],
            candidate=paths[1],
            inputs=(torch.zeros(1, 8, 4, 4),),
            threads=1,
            sampling=Sampling(seconds=200.0, limits=(1.03,)),
            phone=Phone(**phone),
        )

    return make


@pytest.mark.parametrize(("suffix", "log"), [(".tflite", False), (".pte", False), (".pte", True)])
def test_two_files_are_timed_in_turns_on_the_device_and_the_figure_is_the_devices(request_of, suffix, log):
    bridge = Bridge(log=log)
    found = android.measure(request_of(100.0, 80.0, suffix), run=bridge.run, clock=bridge.clock)
    assert found.low <= 0.8 <= found.high
    assert found.ratio == pytest.approx(0.8, abs=0.03)
    assert found.medians_ms == pytest.approx((100.0, 80.0), rel=0.05)
    assert found.host == "Android 15, Google Pixel 8, chip not told"
    assert "not yet tried on hardware" in found.runtime
    assert (found.clock, found.settled) == ("device", False)
    assert bridge.now <= 200 + 2 * 4
    assert outcome(found, 1.03).state == "pass"
    names = [next(n for n, ms in bridge.pushed.items() if any(n in w for w in words)) for words in bridge.commands]
    first = [names.count(name) for name in bridge.pushed]
    assert first[1] >= android.FEWEST
    assert first[0] > first[1]  # the reference against itself, in between
    assert len(set(names[:6])) == 2


def test_a_file_is_copied_once_and_its_process_kept_on_the_cores_asked_for(request_of):
    bridge = Bridge()
    found = android.measure(request_of(10.0, 10.0, cpus="f0"), run=bridge.run, clock=bridge.clock)
    assert len(bridge.pushed) == 1  # the same bytes
    assert all(words[:2] == ["taskset", "f0"] for words in bridge.commands)
    assert found.cpus == (4, 5, 6, 7)
    with pytest.raises(UserError, match="hexadecimal mask"):
        android.measure(request_of(10.0, 10.0, cpus="big"), run=bridge.run, clock=bridge.clock)


PROBLEMS = {
    "no Android device": "List of devices attached\n\n",
    "2 Android devices: choose one with --device (3A281FDJH0012A, emulator-5554)": DEVICES.rstrip()
    + "\nemulator-5554          device product:sdk model:sdk transport_id:2\n",
    "'unauthorized': it does not trust this computer": DEVICES.replace(
        "device usb:1-4 product:shiba", "unauthorized usb"
    ),
    "'offline': it does not answer": DEVICES.replace("device usb:1-4 product:shiba", "offline usb"),
    "'no permissions (see http": "List of devices attached\n3A281FDJH0012A   no permissions (user in plugdev group; are "
    "your udev rules wrong?); see [http://developer.android.com/tools/device.html] usb:1-4 transport_id:1\n",
}


@pytest.mark.parametrize("text", PROBLEMS)
def test_a_device_that_cannot_be_used_is_named_with_the_cure(request_of, text):
    bridge = Bridge(devices=PROBLEMS[text])
    with pytest.raises(UserError) as caught:
        android.measure(request_of(1.0, 1.0), run=bridge.run, clock=bridge.clock)
    assert text in str(caught.value)


def test_another_device_no_adb_no_program_and_a_program_that_fails(request_of, monkeypatch):
    bridge = Bridge()
    with pytest.raises(UserError, match=r"no Android device 'abc' \(connected: 3A281FDJH0012A\)"):
        android.measure(request_of(1.0, 1.0, serial="abc"), run=bridge.run, clock=bridge.clock)
    monkeypatch.setattr(_adb.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="adb is not on PATH: install Android's platform-tools"):
        android.measure(request_of(1.0, 1.0))
    with pytest.raises(UserError, match="adb push benchmark_model /data/local/tmp/"):
        android.measure(request_of(1.0, 1.0), run=Bridge(has=False).run, clock=bridge.clock)
    failing = Bridge(printed="ERROR: Failed to load model\nBenchmarking failed.")
    with pytest.raises(
        UserError, match=r"benchmark_model on 3A281FDJH0012A ended with 1: ERROR: Failed to load model;"
    ):
        android.measure(request_of(1.0, 1.0), run=failing.run, clock=failing.clock)


def test_free_axes_of_an_onnx_file_get_their_sizes_from_the_inputs(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Relu", ["latents"], ["image"])],
        "g",
        [helper.make_tensor_value_info("latents", kind, [1, 8, "h", "w"])],
        [helper.make_tensor_value_info("image", kind, [1, 8, "h", "w"])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path)
    assert android._free(path, (torch.zeros(1, 8, 32, 48),)) == {"h": 32, "w": 48}
    for wrong in ((torch.zeros(1, 4, 32, 48),), (torch.zeros(8, 32, 48),), ()):
        with pytest.raises(UserError, match="takes inputs of shapes"):
            android._free(path, wrong)


def test_figures_of_two_devices_are_not_compared():
    """A baseline taken on this host says nothing of a phone."""
    from eval import baseline, gates
    from eval.metrics.latency import LatencyRatio

    here = baseline.Conditions(data="d", resolution="8x8", reference="r", host="Linux, a processor, 2 cores")
    taken = LatencyRatio(
        ratio=0.5, low=0.49, high=0.51, noise_floor=0.01, reference_ms=(2.0,) * 9, candidate_ms=(1.0,) * 9, pairs=9,
        threads=1, host=here.host, runtime="onnxruntime",
    )  # fmt: skip
    comparison = baseline.Comparison(stored=baseline.of_now(here, [], latency=taken), now=here)
    spec = gates.GateSpec(metric="latency", against="baseline", max_ratio=1.1)
    phone = replace(taken, host="Android 15, Google Pixel 8, Tensor G3")
    same, other = (
        gates.judge([spec], [], subject="onnx", latency=one, baseline=comparison)[0] for one in (taken, phone)
    )
    assert same.passed
    assert not other.passed
    assert "another device" in other.reason
