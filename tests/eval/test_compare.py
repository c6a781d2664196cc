import json
import math
import re

import pytest
import torch

from eval import compare
from eval.errors import EvalError
from eval.metrics import psnr, ssim

PSNR, SSIM, LPIPS = (
    compare.Metric(name="psnr"),
    compare.Metric(name="ssim"),
    compare.Metric(name="lpips", net="st-alex"),
)


@pytest.fixture(scope="module")
def sets(photographs, noisy):
    truth = photographs(4, 48)
    return {"ground_truth": truth, "reference": noisy(truth, 0.02), "candidate": noisy(truth, 0.05, seed=2)}


def test_three_measurements_per_metric(sets):
    found = compare.compare(**sets, metrics=[PSNR, SSIM])
    assert [(m.metric, m.of, m.against) for m in found] == [
        (metric, *pair) for metric in ("psnr", "ssim") for pair in compare.PAIRS
    ]
    by_hand = {
        ("candidate", "ground_truth"): psnr.psnr_db(sets["ground_truth"], sets["candidate"]),
        ("reference", "ground_truth"): psnr.psnr_db(sets["ground_truth"], sets["reference"]),
        ("candidate", "reference"): psnr.psnr_db(sets["reference"], sets["candidate"]),
    }
    for one in found[:3]:
        assert one.values == tuple(by_hand[one.of, one.against].tolist())
        assert (one.unit, one.higher_is_better, one.problem) == ("dB", True, None)
    assert found[3].values == tuple(ssim.ssim(sets["ground_truth"], sets["candidate"]).tolist())


def test_batches_join_to_the_whole(sets):
    def part(rows):
        return compare.compare(**{name: images[rows] for name, images in sets.items()}, metrics=[PSNR, SSIM])

    whole = part(slice(None))
    assert compare.joined([part(slice(0, 1)), part(slice(1, 4))]) == whole
    with pytest.raises(EvalError, match="batch 1 was measured by other metrics"):
        compare.joined([whole, whole[:3]])


def spoilt(images, row, change):
    return torch.stack([change(image) if i == row else image for i, image in enumerate(images)])


BROKEN = {
    "NaN in": lambda x: torch.full_like(x, math.nan),
    "Inf in": lambda x: torch.where(x > x.mean(), math.inf, x),
    r"a constant image \(every pixel is 0.5, 0.5, 0.5\)": lambda x: torch.full_like(x, 0.5),
    r"looks like \[-1, 1\]": lambda x: 2 * x - 1,
    r"looks like 0\.\.255": lambda x: 255 * x,
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_image_is_nan_with_a_reason_and_the_others_are_measured(sets, text):
    whole = compare.compare(**sets, metrics=[PSNR, LPIPS])
    spoilt_sets = sets | {"candidate": spoilt(sets["candidate"], 2, BROKEN[text])}
    for before, after in zip(whole, compare.compare(**spoilt_sets, metrics=[PSNR, LPIPS]), strict=True):
        if after.of == "reference":
            assert after == before
            continue
        assert [math.isnan(value) for value in after.values] == [False, False, True, False]
        expected = [value for i, value in enumerate(before.values) if i != 2]
        assert [value for i, value in enumerate(after.values) if i != 2] == pytest.approx(expected, rel=1e-4)
        assert re.search(rf"candidate has .*{text}.*\(1 of 4 images\)", after.problem)


@pytest.mark.parametrize("name", ["candidate", "reference"])
def test_a_wrong_size_is_a_problem_and_not_an_exception(sets, name):
    found = compare.compare(**(sets | {name: sets[name][..., :-8]}), metrics=[PSNR])
    for one in found:
        touched = name in (one.of, one.against)
        assert all(math.isnan(value) == touched for value in one.values)
        assert (f"{name} has shape [4, 3, 48, 40]" in (one.problem or "")) == touched


def test_a_flat_original_may_be_flat(sets):
    white = torch.ones(1, 3, 32, 32)
    found = compare.compare(ground_truth=white, reference=white, candidate=white * 0.9, metrics=[PSNR])
    assert [one.values for one in found] == [pytest.approx((20.0,)), (math.inf,), pytest.approx((20.0,))]


def test_broken_photographs_are_the_users_mistake(sets):
    with pytest.raises(EvalError, match=r"0\.\.255"):
        compare.compare(**(sets | {"ground_truth": sets["ground_truth"] * 255}), metrics=[PSNR])
    with pytest.raises(EvalError, match="did you mean 'psnr'"):
        compare.compare(**sets, metrics=[compare.Metric(name="pnsr")])
    with pytest.raises(EvalError, match="does not compare images"):
        compare.compare(**sets, metrics=[compare.Metric(name="size")])


def test_json_round_trip_holds_infinity_and_nan(sets):
    one = compare.compare(**sets, metrics=[PSNR])[0]
    odd = compare.Measurement(
        metric="psnr",
        net=None,
        unit="dB",
        higher_is_better=True,
        of="candidate",
        against="reference",
        values=(1 / 3, math.inf, math.nan),
        problems=(None, None, "candidate has NaN in 3 of 3 values"),
        definition="of the day",
    )
    for measurement in (one, odd):
        text = json.dumps(compare.to_json(measurement), allow_nan=False)
        back = compare.from_json(json.loads(text))
        assert repr(back) == repr(measurement)
    record = compare.to_json(odd)
    assert record["values"][1:] == [{"value": None, "exact": True}, {"value": None, "exact": False}]
    with pytest.raises(EvalError, match="'unit'"):
        compare.from_json({name: value for name, value in record.items() if name != "unit"})
