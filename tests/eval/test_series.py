import math

import numpy as np
import pytest

from eval import series
from eval.errors import EvalError


def autoregressive(depends, count, seed):
    random = np.random.default_rng(seed)
    steps = random.standard_normal(count + 200)
    values = np.zeros(count + 200)
    for index in range(1, count + 200):
        values[index] = depends * values[index - 1] + steps[index]
    return values[200:]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 99, 100, 101, 800])
def test_students_t_is_scipys(freedom):
    scipy = pytest.importorskip("scipy.stats", reason="needs scipy, which the photographs bring")
    for probability in (0.6, 0.9, 0.975, 0.9958, 0.9999):
        expected = scipy.t.ppf(probability, freedom)
        assert series.student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-4)


def test_the_middle_is_the_mean_of_the_middle_fifth():
    values = np.array([50.0, 1.0, 2.0, 3.0, 5.0, 4.0, 6.0, 7.0, 8.0, -900.0])
    assert series.middle(values) == pytest.approx((4 + 5) / 2)
    assert series.middle(np.stack((values, values + 1))) == pytest.approx([4.5, 5.5])
    assert series.middle(np.array([1.0, 9.0])) == 5.0


@pytest.mark.parametrize(("depends", "count"), [(0.0, 15), (0.0, 200), (0.8, 600)])
def test_intervals_hold_the_truth_as_often_as_they_say(depends, count):
    """At 0.8 neighbours are so alike that an interval for independent values would miss half of the time."""
    found = [series.interval(autoregressive(depends, count, seed), level=0.95, seed=seed)[1] for seed in range(120)]
    inside = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.88 <= inside <= 1
    if depends:
        alone = [autoregressive(depends, count, seed) for seed in range(120)]
        error = 1.25 / math.sqrt(count)
        assert np.mean([abs(series.middle(x)) <= 2 * error * x.std() for x in alone]) < 0.75


def test_spikes_do_not_widen_an_interval():
    values = np.random.default_rng(0).normal(1.0, 0.1, 200)
    plain = series.interval(values, level=0.95, seed=0)[1]
    values[::10] *= 100
    spiked = series.interval(values, level=0.95, seed=0)[1]
    assert spiked.high - spiked.low < 1.5 * (plain.high - plain.low)


def test_an_interval_is_seeded_and_widens_with_its_level():
    values = np.random.default_rng(0).normal(size=60)
    centre, first = series.interval(values, level=0.95, seed=3)
    assert (centre, first) == series.interval(values, level=0.95, seed=3)
    assert first != series.interval(values, level=0.95, seed=4)[1]
    wide = series.interval(values, level=0.999, seed=3)[1]
    assert wide.low < first.low < centre < first.high < wide.high
    constant = series.interval([2.0] * 9, level=0.99, seed=0)[1]
    assert (constant.low, constant.high) == (2.0, 2.0)
    with pytest.raises(EvalError, match="measure longer"):
        series.interval([1.0], level=0.95, seed=0)


def test_blocks_grow_with_dependence():
    lengths = [
        np.mean([series.block_length(autoregressive(d, 500, seed)) for seed in range(10)]) for d in (0, 0.5, 0.9)
    ]
    assert lengths[0] < 3 < lengths[1] < lengths[2] <= 500 / 8
    assert series.block_length([1.0, 2.0] * 5) == 1  # too few to say
    assert series.block_length([3.0] * 100) == 1


@pytest.mark.parametrize("cold", [1, 3, 10, 20])
def test_a_slow_start_is_seen_and_where_it_ends(cold):
    times = np.random.default_rng(cold).lognormal(0, 0.05, 60)
    times[:cold] *= 3
    assert cold <= series.steady_from(np.log(times)) <= cold + 10


def test_a_start_that_has_not_ended_is_not_called_steady():
    assert series.steady_from(np.linspace(5, 1, 30)) is None
    assert series.steady_from([1.0] * 9) is None  # too few to say
    assert series.steady_from([1.0] * 10) == 0
    late = [1.0] * 20
    late[15] = 9.0  # a spike is no change
    assert series.steady_from([*late, *[1.0] * 30]) is not None
