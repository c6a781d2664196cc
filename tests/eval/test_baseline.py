import math
from dataclasses import replace

import pytest

from eval import baseline, gates
from eval.compare import Measurement
from eval.errors import EvalError
from eval.gates import GateSpec
from eval.metrics.latency import LatencyRatio

HERE = baseline.Conditions(data="d" * 64, resolution="256x256", reference="r" * 64, host="Linux, a processor, 2 cores")
SPEC = GateSpec(metric="psnr", against="baseline", max_drop=0.2, max_gain=1.0)


def measured(values, **changes):
    one = Measurement(
        metric="psnr",
        net=None,
        unit="dB",
        higher_is_better=True,
        of="candidate",
        against="ground_truth",
        values=tuple(values),
        problems=(None,) * len(values),
        definition="as ever",
    )
    return replace(one, **changes)


def timed(ratio=0.5, **changes):
    one = LatencyRatio(
        ratio=ratio,
        low=ratio - 0.005,
        high=ratio + 0.005,
        noise_floor=0.01,
        reference_ms=(10.0, 10.0),
        candidate_ms=(5.0, 5.0),
        pairs=2,
        threads=1,
        host=HERE.host,
        runtime="onnxruntime 1.31",
    )
    return replace(one, **changes)


STORED = baseline.of_now(
    HERE, [measured([30.0, 31.0, 29.0, 30.5])], latency=timed(), sizes=gates.Sizes(1000, 4000, 500, 900)
)


def judged(values, spec=SPEC, *, now=HERE, stored=STORED, **more):
    comparison = baseline.Comparison(stored=stored, now=now)
    changes = more.pop("changes", {})
    return gates.judge([spec], [measured(values, **changes)], subject="onnx", baseline=comparison, **more)


def test_a_regression_is_paired_by_image():
    same, gain, _ = judged([30.0, 31.0, 29.0, 30.5])
    assert (same.value, same.passed, gain.passed) == (0.0, True, True)
    worse = judged([29.7, 30.7, 28.7, 30.2])[0]
    assert worse.value == pytest.approx(0.3)
    assert not worse.passed
    assert "from the baseline" in worse.reason
    assert not judged([32.0, 33.0, 31.0, 32.5])[1].passed


DIFFERENT = {
    "another data set: dddddddddddd in the baseline, eeeeeeeeeeee now": {"now": replace(HERE, data="e" * 64)},
    "another resolution: 256x256 in the baseline, 512x512 now": {"now": replace(HERE, resolution="512x512")},
    "another reference model": {"now": replace(HERE, reference="s" * 64)},
    "another metric definition: as ever in the baseline, a new one now": {"changes": {"definition": "a new one"}},
    "another weights of the net": {"changes": {"net_digest": "f" * 64}},
}


@pytest.mark.parametrize("text", DIFFERENT)
def test_what_differs_is_refused_and_named(text):
    found = judged([30.0, 31.0, 29.0, 30.5], **DIFFERENT[text])[0]
    assert (found.passed, found.value) == (False, None)
    assert f"not comparable with the baseline: {text}" in found.reason


def test_everything_that_differs_is_named_at_once():
    now = replace(HERE, data="e" * 64, resolution="64x64", host="another")
    reason = judged([30.0] * 4, now=now)[0].reason
    assert "another data set" in reason
    assert "another resolution" in reason
    assert "another host" not in reason  # pictures do not depend on it
    fewer = judged([30.0])[0].reason
    assert "another number of images: 4 in the baseline, 1 now" in fewer


def test_another_net_is_not_in_the_baseline():
    spec = GateSpec(metric="lpips", net="squeeze", against="baseline", max_rise=0.1)
    now = measured([0.1], metric="lpips", net="squeeze", higher_is_better=False)
    stored = replace(STORED, measurements=(replace(now, net="st-alex"),))
    comparison = baseline.Comparison(stored=stored, now=HERE)
    found = gates.judge([spec], [now], subject="v", baseline=comparison)[0]
    assert not found.passed
    assert "it has no lpips (squeeze), only latency, lpips (st-alex)" in found.reason


def test_no_baseline_is_no_pass():
    found = gates.judge([SPEC], [measured([30.0])], subject="v")
    assert [v.passed for v in found[:2]] == [False, False]
    assert "there is no baseline to compare with" in found[0].reason


def test_latency_is_compared_as_a_ratio_of_ratios_on_one_host():
    spec = GateSpec(metric="latency", against="baseline", max_ratio=1.05)

    def one(latency, now=HERE):
        comparison = baseline.Comparison(stored=STORED, now=now)
        return gates.judge([spec], [], subject="onnx", latency=latency, baseline=comparison)[0]

    same = one(timed())
    assert same.passed
    assert same.value == pytest.approx(1.0)
    slower = one(timed(0.6))
    assert (slower.passed, slower.value) == (False, pytest.approx(1.2))
    assert "another host" in one(timed(), replace(HERE, host="a phone")).reason
    assert "another runtime" in one(timed(runtime="torch")).reason
    assert "another device: Linux, a processor, 2 cores in the baseline, a phone" in one(timed(host="a phone")).reason
    assert "another threads: 1 in the baseline, 4 now" in one(timed(threads=4)).reason
    assert "not measured" in one(None).reason


def test_bytes_are_compared_with_the_stored_ones():
    for metric, limit, passed in (("size", 1.01, True), ("size", 0.9, False), ("peak_memory", 1.0, True)):
        spec = GateSpec(metric=metric, against="baseline", max_ratio=limit)
        found = judged([30.0], spec, sizes=gates.Sizes(1000, 1, 500, 1))[0]
        assert (found.value, found.passed) == (1.0, passed)


def test_a_file_holds_everything_and_the_same_bytes(tmp_path):
    odd = replace(STORED, measurements=(measured([math.inf, math.nan], problems=(None, "candidate has NaN")),))
    text = baseline.to_text({"onnx": STORED, "variant": odd})
    path = tmp_path / "baseline.json"
    path.write_text(text)
    back = baseline.read(path)
    assert repr(back["variant"].measurements) == repr(odd.measurements)
    assert back["onnx"] == STORED
    assert baseline.to_text(back) == text
    for content, words in (("[]", "no baseline"), ("{", "no baseline"), ('{"schema": 9, "subjects": {}}', "schema 9")):
        path.write_text(content)
        with pytest.raises(EvalError, match=words):
            baseline.read(path)
    with pytest.raises(EvalError, match="--update-baseline"):
        baseline.read(tmp_path / "absent.json")


def test_changes_name_both_numbers():
    new = baseline.of_now(HERE, [measured([31.0, 32.0, 30.0, 31.5])], sizes=gates.Sizes(900, 4000))
    rows = {what: (before, after) for what, before, after in baseline.changes(STORED, new)}
    assert rows["psnr, mean to the ground truth"] == (pytest.approx(30.125), pytest.approx(31.125))
    assert rows["size, bytes"] == (1000, 900)
    assert rows["latency, ratio to the reference"] == (0.5, None)
    assert all(before is None for _, before, _ in baseline.changes(None, new))


def test_a_file_remembers_what_it_replaced(tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text(baseline.to_text({"onnx": STORED}))
    assert baseline.read_history(path) == {}
    history = {}
    for number in range(baseline.KEPT + 3):
        was = baseline.of_now(replace(HERE, host=f"host {number}"), [measured([float(number), number + 2.0])])
        history = baseline.remembered(history, {"onnx": was} if number else {"onnx": was, "ort": STORED})
    path.write_text(baseline.to_text({"onnx": STORED}, history))
    back = baseline.read_history(path)
    assert back == history
    assert len(back["ort"]) == 1
    assert [one.conditions.host for one in back["onnx"]] == [f"host {n}" for n in range(3, baseline.KEPT + 3)]
    assert [one.values["psnr, mean to the ground truth"] for one in back["onnx"]] == [
        n + 1.0 for n in range(3, baseline.KEPT + 3)
    ]
    assert back["ort"][0].values["latency, ratio to the reference"] == 0.5
    assert baseline.read(path) == {"onnx": STORED}
    path.write_text('{"schema": 1, "subjects": {}, "history": {"onnx": [3]}}')
    with pytest.raises(EvalError, match="no baseline"):
        baseline.read_history(path)
