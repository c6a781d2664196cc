"""Which photographs a report shows, and in what order."""

import math
from types import SimpleNamespace

import pytest
import torch

from compress.report_pictures import STRIP_MOST, STRIP_PIXELS, in_full, pixels, strip
from eval.compare import Measurement


def scores(ours, theirs):
    sides = (("candidate", ours), ("reference", theirs))
    return [
        Measurement(
            metric="psnr", net=None, unit="dB", higher_is_better=True, of=of, against="ground_truth", values=tuple(v)
        )
        for of, v in sides
    ]  # fmt: skip


def basis(n, size=(8, 12), truth=True):
    pictures = torch.rand((n, 3, *size), generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(
        names=tuple(f"p{i}" for i in range(n)), truth=pictures if truth else None, reference=pictures
    )


def test_the_strip_starts_with_the_largest_loss_and_broken_pictures():
    found = basis(4)
    shown = strip(found, scores([30.0, math.nan, 25.0, 31.0], [31.0, 31.0, 31.0, 30.0]), found.truth)
    assert [(t.name, t.value, t.drop) for t in shown] == [
        ("p1", None, None), ("p2", 25.0, 6.0), ("p0", 30.0, 1.0), ("p3", 31.0, -1.0),
    ]  # fmt: skip


def test_the_strip_keeps_what_loses_most():
    n = STRIP_MOST + 5
    found = basis(n)
    shown = strip(found, scores([30.0 - i for i in range(n)], [30.0] * n), found.truth)
    assert [t.name for t in shown] == [f"p{i}" for i in reversed(range(5, n))]


@pytest.mark.parametrize(("size", "small"), [((192, 96), (96, 48)), ((8, 12), (8, 12)), ((300, 400), (72, 96))])
def test_pictures_are_reduced_to_their_mean_and_never_enlarged(size, small):
    found = basis(1, size)
    (thumbnail,) = strip(found, scores([1.0], [1.0]), found.truth)
    assert thumbnail.pixels.shape == (*small, 3)
    assert max(thumbnail.pixels.shape) <= STRIP_PIXELS
    assert thumbnail.pixels.mean() == pytest.approx(pixels(found.truth[0]).mean(), abs=1.0)
    if size == (192, 96):
        box = pixels(found.truth[0])[:2, :2].astype(float).mean(axis=(0, 1))
        assert abs(thumbnail.pixels[0, 0] - box).max() <= 1.0  # the mean of what it stands for


def test_tensors_that_are_no_pictures_show_none():
    found = basis(2, truth=False)
    assert in_full(found, [], found.reference) == strip(found, [], found.reference) == ()
    whole = in_full(basis(3), scores([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]), basis(3).truth)
    assert [(p.why, p.name) for p in whole] == [("best", "p2"), ("median", "p1"), ("worst", "p0")]
    assert whole[0].score == "PSNR 3.00 dB, 2.00 dB below the reference"
