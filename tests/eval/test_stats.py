import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import stats
from eval.errors import EvalError

ranks = st.integers(0, 5).map(float)  # few, so that points are often equal on an axis
values = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


@settings(deadline=None)
@given(values=values)
def test_equal_numpy_in_both_directions(values):
    for name, higher, expected in (
        ("mean", True, np.mean(values)),
        ("mean", False, np.mean(values)),
        ("median", False, np.median(values)),
        ("p5", True, np.percentile(values, 5)),
        ("p5", False, np.percentile(values, 95)),
        ("worst", True, min(values)),
        ("worst", False, max(values)),
    ):
        assert stats.statistic(values, name, higher_is_better=higher) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None)
@given(values=values, exact=st.integers(1, 5))
def test_exact_images_never_hide_the_others(values, exact):
    """With k images at +inf, no statistic of PSNR is above the same statistic of the others at their best."""
    mixed = [*values, *[math.inf] * exact]
    assert stats.statistic(mixed, "mean", higher_is_better=True) == pytest.approx(np.mean(values))
    assert stats.statistic(mixed, "worst", higher_is_better=True) == min(values)
    if exact * 20 <= len(mixed) * 19 - 20:
        assert math.isfinite(stats.statistic(mixed, "p5", higher_is_better=True))


@pytest.mark.parametrize("name", stats.STATISTICS)
def test_infinity_and_nan(name):
    assert stats.statistic([math.inf] * 3, name, higher_is_better=True) == math.inf
    assert math.isnan(stats.statistic([1.0, math.nan, math.inf], name, higher_is_better=True))
    assert stats.statistic([math.inf, *[0.0] * 4], "mean", higher_is_better=False) == math.inf
    assert stats.statistic([math.inf, 0.0, 0.0], "worst", higher_is_better=False) == math.inf
    assert stats.statistic([math.inf, 0.0, 0.0], "p5", higher_is_better=False) == math.inf


def test_refuses_what_it_cannot_do():
    with pytest.raises(EvalError, match="did you mean 'median'"):
        stats.statistic([1.0], "medain", higher_is_better=True)
    with pytest.raises(EvalError, match="evaluation set is empty"):
        stats.statistic([], "mean", higher_is_better=True)


def test_bootstrap_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    inside = 0
    for seed in range(150):
        interval = stats.bootstrap_interval(generator.normal(3.0, 1.0, 40), seed=seed, of=np.mean, resamples=400)
        inside += interval.low <= 3.0 <= interval.high
    assert 0.88 <= inside / 150 <= 0.99


def test_bootstrap_is_seeded_and_level_widens_it():
    sample = np.random.default_rng(1).normal(size=50)
    first = stats.bootstrap_interval(sample, seed=7)
    assert first == stats.bootstrap_interval(sample, seed=7)
    assert first != stats.bootstrap_interval(sample, seed=8)
    narrow = stats.bootstrap_interval(sample, seed=7, level=0.5)
    assert first.low < narrow.low <= np.median(sample) <= narrow.high < first.high
    constant = stats.bootstrap_interval([2.0] * 9, seed=0)
    assert (constant.low, constant.high) == (2.0, 2.0)


@settings(max_examples=50, deadline=None)
@given(
    points=st.lists(st.tuples(ranks, ranks), min_size=1, max_size=15),
    higher=st.tuples(st.booleans(), st.booleans()),
)
def test_pareto_front_by_pairs(points, higher):
    def beats(a, b):
        pairs = [(x, y) if up else (-x, -y) for x, y, up in zip(a, b, higher, strict=True)]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    expected = [i for i, point in enumerate(points) if not any(beats(other, point) for other in points)]
    assert list(stats.pareto_front(points, higher_is_better=higher)) == expected


def test_pareto_front_leaves_nan_out():
    points = [(1.0, math.nan), (0.0, 0.0), (1.0, 1.0)]
    for higher in product((True, False), repeat=2):
        assert 0 not in stats.pareto_front(points, higher_is_better=higher)
    assert stats.pareto_front([], higher_is_better=(True, False)) == ()
