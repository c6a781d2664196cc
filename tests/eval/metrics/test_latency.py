import math
from dataclasses import replace

import numpy as np
import pytest

from eval.errors import EvalError
from eval.metrics import latency

QUICK = latency.Sampling(seconds=60.0, min_pairs=10, max_pairs=60)


class Host:
    """A machine whose clock moves only when work is done: base time, noise, a drift, a cold start."""

    def __init__(self, *, noise=0.0, drift=0.0, cold=0, seed=0):
        self.now = 100.0
        self.calls = []
        self.noise, self.drift, self.cold = noise, drift, cold
        self.random = np.random.default_rng(seed)

    def clock(self):
        return self.now

    def work(self, name, seconds):
        def run():
            slow = 5.0 if self.calls.count(name) < self.cold else 1.0
            factor = math.exp(self.noise * self.random.standard_normal()) * (1 + self.drift * len(self.calls))
            self.calls.append(name)
            self.now += seconds * slow * factor

        return run

    def measure(self, reference, candidate, sampling=QUICK):
        works = self.work("reference", reference), self.work("candidate", candidate)
        return latency.paired_ratio(*works, sampling=sampling, clock=self.clock, runtime="fake", threads=1)


def test_a_quiet_host_gives_the_exact_ratio_in_the_fewest_pairs():
    found = Host().measure(0.2, 0.1)
    assert (found.ratio, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.noise_floor == pytest.approx(0, abs=1e-9)
    assert found.pairs == 10
    assert found.reference_ms == pytest.approx([200.0] * 10)
    assert (found.runtime, found.threads) == ("fake", 1)


@pytest.mark.parametrize("seed", range(8))
def test_the_interval_holds_the_truth_under_noise_and_drift(seed):
    """Drift of 0.5 % a call would make two separate blocks of 60 differ by 30 %; pairs do not see it."""
    found = Host(noise=0.05, drift=0.005, seed=seed).measure(0.1, 0.08, replace(QUICK, seconds=1e4))
    assert found.low - 0.02 <= 0.8 <= found.high + 0.02
    assert found.ratio == pytest.approx(0.8, abs=0.04)
    assert 0 < found.noise_floor < 0.1


def test_warm_up_is_thrown_away():
    found = Host(cold=4).measure(0.1, 0.1)
    assert max(found.reference_ms) == pytest.approx(100)
    assert found.ratio == pytest.approx(1)


def test_warm_up_is_bounded():
    host = Host()

    def never_settles():
        host.calls.append("reference")
        host.now += 0.8 ** len(host.calls)

    sampling = latency.Sampling(seconds=1000.0, min_pairs=2, max_pairs=2, max_warmup=7)
    latency.paired_ratio(never_settles, never_settles, sampling=sampling, clock=host.clock)
    assert len(host.calls) == 2 * 7 + 2 * 2 + 2 * 2


def test_stops_at_the_budget_but_not_before_the_fewest_pairs():
    host = Host(noise=0.2)
    found = host.measure(0.1, 0.1, latency.Sampling(seconds=10.0, min_pairs=5, max_pairs=10_000))
    assert host.now - 100 == pytest.approx(10.0, abs=1.0)
    assert 5 < found.pairs < 100
    slow = Host(noise=0.2).measure(9.0, 9.0, latency.Sampling(seconds=10.0, min_pairs=5, max_pairs=10_000))
    assert slow.pairs == 5


def test_stops_at_the_most_pairs():
    assert Host(noise=0.5).measure(0.1, 0.1, replace(QUICK, seconds=1e6)).pairs == 60


def test_the_order_within_pairs_is_mixed_and_seeded():
    def order(seed):
        host = Host(noise=0.5, seed=3)
        host.measure(0.1, 0.1, replace(QUICK, seed=seed, seconds=1e6))
        tail = host.calls[-120:]
        return [tail[i] for i in range(0, 120, 2)]

    first = order(1)
    assert 15 < first.count("reference") < 45
    assert first == order(1)
    assert first != order(2)


def test_a_call_too_short_for_the_clock_is_refused():
    with pytest.raises(EvalError, match="no measurable time"):
        Host().measure(0.1, 0.0)
    with pytest.raises(EvalError, match="min_pairs"):
        Host().measure(0.1, 0.1, replace(QUICK, min_pairs=1))


def test_the_host_is_described():
    assert "cores" in latency.host()
