import json
import math
from dataclasses import replace

import pytest
import torch

from eval import compare, gates
from eval.errors import EvalError
from eval.gates import GateSpec
from eval.metrics.latency import LatencyRatio

GATES = (
    GateSpec(metric="psnr", max_drop=0.5),
    GateSpec(metric="ssim", max_drop=0.02),
    GateSpec(metric="lpips", max_rise=0.01),
)
WORST = (*GATES, *(replace(spec, statistic="worst") for spec in GATES))


@pytest.fixture(scope="module")
def sets(photographs, noisy):
    truth = photographs(4, 48)
    reference = noisy(truth, 0.03)
    return {"ground_truth": truth, "reference": reference, "candidate": noisy(reference, 0.002, seed=3)}


def verdicts(sets, specs=GATES, **more):
    measured = compare.compare(**sets, metrics=gates.metrics_of(specs))
    return gates.judge(specs, measured, subject="variant", **more)


def measurement(values, *, metric="psnr", of="candidate", against="ground_truth"):
    higher = metric != "lpips"
    return compare.Measurement(
        metric=metric,
        net="st-alex" if metric == "lpips" else None,
        unit="dB" if metric == "psnr" else "",
        higher_is_better=higher,
        of=of,
        against=against,
        values=tuple(values),
    )


def test_a_good_candidate_passes_and_its_reference_has_floors(sets):
    found = verdicts(sets)
    assert [(v.metric, v.of, v.kind, v.passed) for v in found] == [
        ("psnr", "candidate", "max_drop", True),
        ("ssim", "candidate", "max_drop", True),
        ("lpips", "candidate", "max_rise", True),
        ("psnr", "reference", "min", True),
        ("ssim", "reference", "min", True),
        ("lpips", "reference", "max", True),
        ("sanity", "candidate", "max", True),
    ]
    assert {v.subject for v in found} == {"variant"}
    assert found[2].net == found[5].net == "st-alex"


BREAKS = {
    "NaN": lambda x, truth: torch.full_like(x, math.nan),
    "one NaN pixel": lambda x, truth: torch.where(x == x.max(), math.nan, x),
    "Inf": lambda x, truth: torch.where(x > 0.5, math.inf, x),
    "black": lambda x, truth: torch.zeros_like(x),
    "grey": lambda x, truth: torch.full_like(x, 0.5),
    "mean colour": lambda x, truth: truth.mean((2, 3), keepdim=True).expand_as(x),
    "minus one to one": lambda x, truth: 2 * x - 1,
    "bytes": lambda x, truth: x * 255,
    "uint8": lambda x, truth: (x * 255).byte(),
    "blue and red swapped": lambda x, truth: x.flip(1),
    "inverted": lambda x, truth: 1 - x,
    "mirrored": lambda x, truth: x.flip(3),
    "upside down": lambda x, truth: x.flip(2),
    "turned": lambda x, truth: x.transpose(2, 3),
    "images in another order": lambda x, truth: x.roll(1, 0),
    "half missing": lambda x, truth: torch.cat((x[..., :24], torch.zeros_like(x[..., 24:])), -1),
    "smaller": lambda x, truth: x[..., ::2, ::2],
    "one channel": lambda x, truth: x[:, :1],
    "fewer images": lambda x, truth: x[:2],
    "noise": lambda x, truth: torch.rand(x.shape, generator=torch.Generator().manual_seed(0)),
    "noisy": lambda x, truth: (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1),
    "four levels": lambda x, truth: (x * 3).round() / 3,
    "blurred": lambda x, truth: torch.nn.functional.avg_pool2d(x, 9, 1, 4, count_include_pad=False),
    "blocks": lambda x, truth: torch.nn.functional.avg_pool2d(x, 8).repeat_interleave(8, 2).repeat_interleave(8, 3),
    "darker": lambda x, truth: 0.7 * x,
    "colour cast": lambda x, truth: (x + torch.tensor([0.08, 0, -0.08])[None, :, None, None]).clamp(0, 1),
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_candidate_fails(sets, how):
    broken = BREAKS[how](sets["candidate"], sets["ground_truth"])
    found = [v for v in verdicts(sets | {"candidate": broken}) if v.of == "candidate"]
    assert not found[0].passed, "psnr"
    assert found[0].reason.startswith("failed: ")
    if how not in ("darker", "colour cast"):  # a change of tone is PSNR's to find
        assert not all(v.passed for v in found[1:])


MILD = {"noisy", "darker", "colour cast", "four levels"}
NO_PART_OF_A_BATCH = {"uint8", "smaller", "one channel", "fewer images"}


@pytest.mark.parametrize("how", [how for how in BREAKS if how not in MILD | NO_PART_OF_A_BATCH])
def test_one_broken_image_of_four_fails_the_worst(sets, how):
    broken = BREAKS[how](sets["candidate"], sets["ground_truth"])
    mixed = torch.cat((sets["candidate"][:3], broken[3:]))
    if torch.equal(mixed, sets["candidate"]):  # the one pixel is in another image
        mixed = torch.cat((sets["candidate"][1:], broken[:1])).roll(1, 0)
    found = [v for v in verdicts(sets | {"candidate": mixed}, WORST) if v.of == "candidate" and v.statistic == "worst"]
    assert not found[0].passed


@pytest.mark.parametrize(
    "how", ["NaN", "black", "minus one to one", "bytes", "inverted", "noise", "smaller", "mirrored"]
)
def test_a_broken_reference_fails_even_a_candidate_equal_to_it(sets, how):
    broken = BREAKS[how](sets["reference"], sets["ground_truth"])
    found = verdicts(sets | {"reference": broken, "candidate": broken})
    floors = [v for v in found if v.of == "reference"]
    assert len(floors) == 3
    assert not floors[0].passed
    assert "reference" in floors[0].reason


def test_reasons_name_what_it_looks_like(sets):
    for how, text in (
        ("minus one to one", "[-1, 1]"),
        ("bytes", "0..255"),
        ("NaN", "NaN in 6912"),
        ("grey", "constant"),
    ):
        found = verdicts(sets | {"candidate": BREAKS[how](sets["candidate"], None)})
        assert "4 of 4 images could not be measured" in found[0].reason
        assert text in found[0].reason
        assert found[0].value is None
        assert not found[0].exact


def test_drops_are_paired_by_image_and_taken_in_the_bad_direction():
    reference, candidate = [30.0, 20.0, 40.0, 25.0], [29.0, 20.5, 36.0, 25.0]  # drops 1, -0.5, 4, 0
    measured = [measurement(candidate), measurement(reference, of="reference")]
    for statistic, expected in (("mean", 1.125), ("median", 0.5), ("p5", 3.55), ("worst", 4.0)):
        found = gates.judge([GateSpec(metric="psnr", statistic=statistic, max_drop=1.0)], measured, subject="v")[0]
        assert found.value == pytest.approx(expected)
        assert found.passed == (expected <= 1.0)
    rise = [measurement([0.2, 0.1], metric="lpips"), measurement([0.1, 0.3], metric="lpips", of="reference")]
    found = gates.judge([GateSpec(metric="lpips", statistic="worst", max_rise=0.09)], rise, subject="v")[0]
    assert found.value == pytest.approx(0.1)
    assert not found.passed


def test_a_limit_itself_passes():
    measured = [measurement([30.0], against="reference")]
    assert gates.judge([GateSpec(metric="psnr", min=30.0)], measured, subject="v")[0].passed
    assert not gates.judge([GateSpec(metric="psnr", min=30.0001)], measured, subject="v")[0].passed


def test_a_required_improvement_is_a_negative_drop():
    measured = [measurement([31.0]), measurement([30.0], of="reference")]
    assert gates.judge([GateSpec(metric="psnr", max_drop=-0.9)], measured, subject="v")[0].passed
    assert not gates.judge([GateSpec(metric="psnr", max_drop=-1.1)], measured, subject="v")[0].passed


def test_identical_images_are_exact_and_do_not_hide_others():
    spec = GateSpec(metric="psnr", min=60.0)
    exact = gates.judge([spec], [measurement([math.inf] * 2, against="reference")], subject="onnx")[0]
    assert (exact.value, exact.exact, exact.passed) == (None, True, True)
    assert "exact" in exact.reason
    mixed = gates.judge([spec], [measurement([math.inf, 10.0], against="reference")], subject="onnx")[0]
    assert (mixed.value, mixed.exact, mixed.passed) == (10.0, False, False)
    drop = GateSpec(metric="psnr", max_drop=0.5)
    both = [measurement([math.inf, 30.0]), measurement([math.inf, 30.0], of="reference")]
    assert gates.judge([drop], both, subject="v")[0].value == 0.0
    lost = [measurement([20.0, 30.0]), measurement([math.inf, 30.0], of="reference")]
    verdict = gates.judge([drop], lost, subject="v")[0]
    assert (verdict.value, verdict.exact, verdict.passed) == (None, False, False)


def test_nothing_measured_is_a_failed_verdict_for_every_gate():
    specs = (
        *GATES,
        GateSpec(metric="psnr", min=20.0, of="reference", against="ground_truth"),
        GateSpec(metric="latency", max_ratio=0.5),
        GateSpec(metric="size", max_ratio=0.5),
    )
    found = gates.judge(specs, [], subject="variant")
    assert len(found) == len(specs) + 2  # floors of ssim and lpips; psnr has the user's
    assert not any(v.passed for v in found)
    assert all("not measured" in v.reason or "not taken" in v.reason for v in found)
    unequal = [measurement([30.0, 30.0]), measurement([30.0], of="reference")]
    assert "differ in their images" in gates.judge(GATES[:1], unequal, subject="v")[0].reason
    twice = [measurement([30.0]), measurement([30.0]), measurement([30.0], of="reference")]
    assert not gates.judge(GATES[:1], twice, subject="v")[0].passed


def test_another_net_does_not_stand_in():
    alex = GateSpec(metric="lpips", net="alex", max=0.5, against="ground_truth")
    found = gates.judge([alex], [measurement([0.0], metric="lpips")], subject="v")[0]
    assert not found.passed
    assert "lpips (alex) of the candidate was not measured" in found.reason


def test_a_users_floor_takes_the_place_of_the_built_in(sets):
    own = GateSpec(metric="psnr", min=12.0, of="reference", against="ground_truth")
    floors = [v for v in verdicts(sets, (*GATES, own)) if v.of == "reference"]
    assert [(v.metric, v.limit) for v in floors] == [("psnr", 12.0), ("ssim", 0.5), ("lpips", 0.35)]
    assert gates.floors([GateSpec(metric="psnr", min=30.0)]) == ()


def timed(ratio, low, high, noise=0.02):
    return LatencyRatio(
        ratio=ratio,
        low=low,
        high=high,
        noise_floor=noise,
        reference_ms=(100.0, 100.0, 100.0),
        candidate_ms=(90.0, 100 * ratio, 500.0),
        pairs=3,
        threads=1,
        host="a host",
        runtime="torch 2.13",
    )


@pytest.mark.parametrize(
    ("latency", "passed", "text"),
    [
        (timed(0.8, 0.79, 0.81), True, "is within 1.05"),
        (timed(1.2, 1.19, 1.21), False, "too slow on a host"),
        (timed(1.0, 0.99, 1.01), True, "is within 1.05"),
        (timed(1.04, 1.021, 1.059), False, "measure longer"),  # narrow, but the limit is inside
        (timed(1.04, 0.90, 1.18), False, "measure longer"),
        (timed(1.06, 1.04, 1.08), False, "failed, as is everything undecided"),
        (timed(1.10, 1.00, 1.20, noise=0.5), False, "measure longer"),  # a noisy host excuses no regression
        (timed(math.nan, 0.9, 1.0), False, "NaN was measured"),
        (timed(0.8, math.nan, math.nan), False, "not a measurement"),
        (None, False, "latency was not measured"),
    ],
)
def test_latency_is_judged_by_its_interval(latency, passed, text):
    found = gates.judge([GateSpec(metric="latency", max_ratio=1.05)], [], subject="v", latency=latency)[0]
    assert (found.passed, found.statistic, found.unit) == (passed, "median", "")
    assert text in found.reason
    json.dumps(gates.to_json(found), allow_nan=False)


def test_what_is_undecided_follows_the_gates_own_policy_and_says_so():
    measured = timed(1.04, 1.02, 1.06)
    for policy, passed in (("fail", False), ("pass", True)):
        spec = GateSpec(metric="latency", max_ratio=1.05, undecided=policy)
        found = gates.judge([spec], [], subject="v", latency=measured)[0]
        assert (found.passed, found.undecided) == (passed, True)
        assert found.reason.startswith("undecided: ratio 1.040")
        assert gates.from_json(gates.to_json(found)) == found
        slow = gates.judge([spec], [], subject="v", latency=timed(1.2, 1.1, 1.3))[0]
        assert (slow.passed, slow.undecided) == (False, False)


def test_limits_that_a_measurement_has_to_tell_apart():
    def limits(*specs):
        return gates.latency_limits([GateSpec(metric="latency", **spec) for spec in specs])

    assert limits({"max_ratio": 1.03}, {"max_ratio": 0.5}, {"max_ratio": 0.5}) == (0.5, 1.03)
    assert gates.latency_limits(GATES) == ()
    for precise in ({"max": 9.0}, {"max_ratio": 1.0, "against": "baseline"}, {"max_ratio": 1.0, "max_gain": 0.5}):
        assert limits({"max_ratio": 0.5}, precise) == ()


def test_latency_in_ms_is_judged_by_its_interval():
    times = tuple(100 + (k % 5) / 10 for k in range(50))
    found = {
        limit: gates.judge(
            [GateSpec(metric="latency", max=limit)],
            [],
            subject="v",
            latency=replace(timed(1, 1, 1), candidate_ms=times),
        )[0]
        for limit in (99.0, 100.2, 102.0)
    }
    assert [(v.passed, v.undecided) for v in found.values()] == [(False, False), (False, True), (True, False)]
    assert "is above 99 ms" in found[99.0].reason


def test_latency_in_ms_and_in_a_named_runtime():
    latency = timed(1.0, 0.99, 1.01)
    found = gates.judge([GateSpec(metric="latency", max=99.0)], [], subject="v", latency=latency)[0]
    assert (found.value, found.passed, found.unit) == (100.0, False, "ms")
    other = GateSpec(metric="latency", max_ratio=1.05, runtime="onnxruntime")
    assert "not in onnxruntime" in gates.judge([other], [], subject="v", latency=latency)[0].reason
    assert gates.judge([replace(other, runtime="torch")], [], subject="v", latency=latency)[0].passed


def test_size():
    ratio, most = GateSpec(metric="size", max_ratio=0.5), GateSpec(metric="size", max=1000.0)
    small, large = gates.judge([ratio, most], [], subject="v", sizes=(500, 1000))
    assert (small.value, small.passed, large.value, large.passed) == (0.5, True, 500.0, True)
    small, large = gates.judge([ratio, most], [], subject="v", sizes=gates.Sizes(2000, 1000))
    assert (small.passed, large.passed) == (False, False)
    for empty in ((0, 1000), (1000, 0)):
        assert not gates.judge([ratio], [], subject="v", sizes=empty)[0].passed


def test_verdicts_are_json_without_nan(sets):
    found = (*verdicts(sets), *verdicts(sets | {"candidate": torch.full_like(sets["candidate"], math.nan)}))
    records = json.loads(json.dumps([gates.to_json(v) for v in found], allow_nan=False))
    for record, verdict in zip(records, found, strict=True):
        assert record.keys() >= {"metric", "statistic", "against", "value", "limit", "passed", "subject", "reason"}
        assert gates.from_json(record) == verdict
    with pytest.raises(EvalError, match="'passed'"):
        gates.from_json({name: value for name, value in records[0].items() if name != "passed"})


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (GateSpec(metric="pnsr", min=1.0), "did you mean 'psnr'"),
        (GateSpec(metric="psnr"), "found none"),
        (GateSpec(metric="psnr", min=30.0, max_drop=1.0), "found min, max_drop"),
        (GateSpec(metric="psnr", max=30.0), "max does not fit psnr, where higher is better; use min or max_drop"),
        (GateSpec(metric="lpips", min=0.1), "use max or max_rise"),
        (GateSpec(metric="lpips", max_drop=0.1), "use max or max_rise"),
        (GateSpec(metric="ssim", max_ratio=0.9), "use min or max_drop"),
        (GateSpec(metric="latency", min=0.9), "use max_ratio or max"),
        (GateSpec(metric="size", max_rise=5.0), "use max_ratio or max"),
        (GateSpec(metric="latency", max_ratio=0.0), "must be above 0"),
        (GateSpec(metric="latency", max_ratio=0.5, statistic="worst"), "leave `statistic` out"),
        (GateSpec(metric="latency", max_ratio=0.5, against="ground_truth"), "against: reference"),
        (GateSpec(metric="psnr", min=math.nan), "give a finite number"),
        (GateSpec(metric="psnr", max_drop=math.inf), "give a finite number"),
        (GateSpec(metric="psnr", min=30.0, statistic="p95"), "no statistic 'p95'"),
        (GateSpec(metric="psnr", min=30.0, net="alex"), "psnr has no net"),
        (GateSpec(metric="lpips", max=0.3, net="resnet"), "no lpips net 'resnet'"),
        (GateSpec(metric="psnr", max_drop=1.0, against="ground_truth"), "use against: reference"),
        (GateSpec(metric="psnr", min=1.0, of="reference"), "the reference equals itself"),
        (GateSpec(metric="psnr", min=1.0, runtime="torch"), "runtime belongs to latency"),
        (GateSpec(metric="psnr", min=1.0, undecided="pass"), "undecided belongs to latency"),
    ],
)
def test_a_gate_that_cannot_be_judged_is_named(spec, text):
    assert any(text in found for found in gates.problems(spec))
    with pytest.raises(EvalError, match=r"gates\.1\."):
        gates.judge([GATES[0], spec], [], subject="v")


def test_a_set_that_does_not_exist_is_named():
    spec = GateSpec(metric="psnr", min=1.0)
    object.__setattr__(spec, "against", "teacher")  # types are not checked where specs are made from files
    assert gates.problems(spec) == ["against is reference or ground_truth, of is candidate or reference"]


def test_sound_gates_have_no_problems():
    for spec in (*WORST, GateSpec(metric="latency", max_ratio=0.5), GateSpec(metric="size", max=1e6)):
        assert gates.problems(spec) == []


def test_metrics_of_names_each_once_with_its_net():
    specs = (*WORST, GateSpec(metric="latency", max_ratio=0.5), GateSpec(metric="lpips", net="squeeze", max=0.2))
    assert [(m.name, m.net) for m in gates.metrics_of(specs)] == [
        ("psnr", None),
        ("ssim", None),
        ("lpips", "st-alex"),
        ("lpips", "squeeze"),
    ]


def test_a_window_stops_what_is_suspiciously_good():
    reference = measurement([30.0, 30.0, 30.0], of="reference")
    spec = GateSpec(metric="psnr", max_drop=0.5, max_gain=1.0)
    for value, passed in ((29.0, (False, True)), (29.8, (True, True)), (30.9, (True, True)), (32.0, (True, False))):
        found = gates.judge([spec], [measurement([value] * 3), reference], subject="v")[:2]
        assert [v.kind for v in found] == ["max_drop", "max_gain"]
        assert tuple(v.passed for v in found) == passed
    assert found[1].value == pytest.approx(2.0)
    assert "Too good to be believed" in found[1].reason
    exact = gates.judge([spec], [measurement([math.inf] * 3), reference], subject="v")[1]
    assert (exact.passed, exact.exact) == (False, False)


def test_an_absolute_window_has_two_sides_and_each_its_bad_tail():
    spec = GateSpec(metric="psnr", against="ground_truth", statistic="worst", min=20.0, max=40.0)
    for values, passed in (([25.0, 30.0], (True, True)), ([19.0, 30.0], (False, True)), ([25.0, 41.0], (True, False))):
        found = gates.judge([spec], [measurement(values)], subject="v")[:2]
        assert tuple(v.passed for v in found) == passed
    lower = GateSpec(metric="lpips", against="ground_truth", statistic="worst", min=0.05, max=0.2)
    found = gates.judge([lower], [measurement([0.01, 0.1], metric="lpips")], subject="v")[:2]
    assert [(v.kind, v.passed) for v in found] == [("min", False), ("max", True)]


def test_intervals_over_images_say_what_cannot_be_told():
    reference = [30.0 + 0.1 * i for i in range(12)]
    wobble = [0.3, -0.3, 0.2, -0.25, 0.1, -0.1, 0.3, -0.2, 0.15, -0.3, 0.25, -0.15]
    measured = [
        measurement([r + w for r, w in zip(reference, wobble, strict=True)]),
        measurement(reference, of="reference"),
    ]
    found = gates.judge([GateSpec(metric="psnr", max_drop=0.5)], measured, subject="v")[0]
    assert found.low < 0 < found.high
    assert "too small to tell" in found.reason
    tight = gates.judge([GateSpec(metric="psnr", max_drop=0.01)], measured, subject="v")[0]
    assert "the limit lies inside" in tight.reason
    clear = [measurement([r - 1.0 - 0.01 * w for r, w in zip(reference, wobble, strict=True)]), measured[1]]
    found = gates.judge([GateSpec(metric="psnr", max_drop=2.0)], clear, subject="v")[0]
    assert 0.99 < found.low < found.value < found.high < 1.01
    assert "too small" not in found.reason
    few = [measurement([29.0, 29.5]), measurement([30.0, 30.0], of="reference")]
    assert gates.judge([GateSpec(metric="psnr", max_drop=2.0)], few, subject="v")[0].low is None


def test_numbers_of_other_weights_or_definitions_are_not_compared():
    ours, theirs = measurement([0.1], metric="lpips"), measurement([0.1], metric="lpips", of="reference")
    spec = GateSpec(metric="lpips", max_rise=0.1)
    assert gates.judge([spec], [ours, theirs], subject="v")[0].passed
    other = gates.judge([spec], [replace(ours, net_digest="1"), replace(theirs, net_digest="2")], subject="v")[0]
    assert not other.passed
    assert "nets of different weights" in other.reason
    older = gates.judge([spec], [replace(ours, definition="new"), replace(theirs, definition="old")], subject="v")[0]
    assert "different definitions" in older.reason


def test_a_verdict_names_net_version_and_weights(sets):
    found = next(v for v in verdicts(sets) if v.metric == "lpips")
    assert found.net == "st-alex"
    assert "vST0.0" in found.definition
    assert len(found.net_digest) == 64


@pytest.mark.parametrize("how", ["one pixel right", "blue and red swapped", "mirrored", "images in another order"])
def test_sanity_fails_where_a_loose_gate_would_not(sets, how):
    change = {**BREAKS, "one pixel right": lambda x, truth: x.roll(1, 3)}[how]
    loose = [GateSpec(metric="lpips", against="ground_truth", max=5.0)]
    broken = verdicts(sets | {"candidate": change(sets["candidate"], None)}, loose)
    assert [(v.metric, v.passed) for v in broken] == [("lpips", True), ("sanity", False)]
    assert "4 of 4 images look broken: candidate looks broken" in broken[1].reason
    sound = verdicts(sets, loose)
    assert [v.passed for v in sound] == [True, True]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (GateSpec(metric="psnr", min=30.0, max=20.0), "nothing could pass"),
        (GateSpec(metric="psnr", min=30.0, max_gain=1.0), "give it beside one of"),
        (GateSpec(metric="psnr", max_drop=0.5, max_gain=-1.0), "below 0"),
        (GateSpec(metric="psnr", max_drop=0.5, max_gain=math.nan), "give a finite number"),
        (GateSpec(metric="psnr", against="baseline", min=20.0), "says nothing of a baseline"),
        (GateSpec(metric="psnr", against="baseline", of="reference", max_drop=1.0), "leave `of` out"),
        (GateSpec(metric="sqnr", max_drop=1.0), "the reference's own distance already"),
        (GateSpec(metric="sqnr", against="ground_truth", min=1.0), "no ground truth"),
        (GateSpec(metric="peak_memory", max_drop=1.0), "use max_ratio or max"),
    ],
)
def test_windows_baselines_and_tensors_have_rules_too(spec, text):
    assert any(text in found for found in gates.problems(spec)), gates.problems(spec)


def test_tensors_are_gated_against_the_reference():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(4, 8, 6, 6, generator=generator)
    candidate = reference + 0.1 * torch.randn(reference.shape, generator=generator)
    measured = compare.compare_tensors(
        reference, candidate, [compare.Metric(name="sqnr"), compare.Metric(name="cosine")]
    )
    specs = [GateSpec(metric="sqnr", statistic="worst", min=15.0), GateSpec(metric="cosine", min=0.9)]
    assert [v.passed for v in gates.judge(specs, measured, subject="v")] == [True, True]
    candidate[2, 0, 0, 0] = math.nan
    measured = compare.compare_tensors(reference, candidate, [compare.Metric(name="sqnr")])
    found = gates.judge(specs[:1], measured, subject="v")[0]
    assert not found.passed
    assert "NaN in 1 of 288 values (1 of 4 images)" in found.reason


def test_memory_is_gated_like_size():
    spec = GateSpec(metric="peak_memory", max_ratio=0.5, max_gain=0.9)
    sizes = gates.Sizes(10, 10, candidate_peak=400, reference_peak=1000)
    assert [v.passed for v in gates.judge([spec], [], subject="v", sizes=sizes)] == [True, True]
    tiny = gates.judge([spec], [], subject="v", sizes=sizes._replace(candidate_peak=1))
    assert [v.passed for v in tiny] == [True, False]
    missing = gates.judge([spec], [], subject="v", sizes=(10, 10))[0]
    assert "peak memory was not measured" in missing.reason
