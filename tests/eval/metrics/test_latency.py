import importlib.util
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.errors import EvalError
from eval.latency_outcome import MARGIN, outcome
from eval.metrics import _timing, latency
from eval.metrics._pairs import FEWEST_SAME
from eval.stats import Interval

QUICK = latency.Sampling(seconds=60.0, min_pairs=10, max_pairs=60)


def benchmark():
    """The script that draws the gate's curves; its simulated machine is what the tests run on too."""
    path = Path(__file__).parents[3] / "benchmarks" / "latency_gate.py"
    spec = importlib.util.spec_from_file_location("latency_gate", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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

    def measure(self, reference, candidate, sampling=QUICK, **more):
        works = self.work("reference", reference), self.work("candidate", candidate)
        return latency.paired_ratio(*works, sampling=sampling, clock=self.clock, runtime="fake", threads=1, **more)


def test_a_quiet_host_gives_the_exact_ratio_in_the_fewest_pairs():
    found = Host().measure(0.2, 0.1)
    assert (found.ratio, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.noise_floor == pytest.approx(0, abs=1e-9)
    assert found.pairs == 10
    assert found.medians_ms == pytest.approx((200.0, 100.0))
    assert (found.runtime, found.threads, found.clock, found.settled) == ("fake", 1, "wall", True)


@pytest.mark.parametrize("seed", range(8))
def test_the_interval_holds_the_truth_under_noise_and_drift(seed):
    """Drift of 0.5 % a call would make two separate blocks of 60 differ by 30 %; pairs do not see it."""
    found = Host(noise=0.05, drift=0.005, seed=seed).measure(0.1, 0.08, replace(QUICK, seconds=1e4))
    assert found.low <= 0.8 <= found.high
    assert found.ratio == pytest.approx(0.8, abs=0.04)
    assert 0 < found.noise_floor < 0.1


def test_warm_up_is_thrown_away():
    found = Host(cold=4).measure(0.1, 0.1)
    assert max(found.reference_ms) == pytest.approx(100)
    assert (found.ratio, found.settled) == (pytest.approx(1), True)
    assert found.warmup >= 8  # as many again as were slow, or the end is not seen


def test_warm_up_is_bounded_and_its_end_not_claimed():
    host = Host()

    def never_settles():
        host.calls.append("reference")
        host.now += 0.8 ** len(host.calls)

    sampling = latency.Sampling(seconds=1000.0, min_pairs=2, max_pairs=2, max_warmup=7)
    found = latency.paired_ratio(never_settles, never_settles, sampling=sampling, clock=host.clock)
    assert (found.warmup, found.settled) == (7, False)
    assert len(host.calls) == 2 * 7 + 2 * 2 + 2 * 2


def test_stops_at_the_budget_but_not_before_the_fewest_pairs():
    host = Host(noise=0.2)
    found = host.measure(0.1, 0.1, latency.Sampling(seconds=10.0, min_pairs=5, max_pairs=10_000))
    assert host.now - 100 == pytest.approx(10.0, abs=1.0)
    assert 5 < found.pairs < 100
    slow = Host(noise=0.2).measure(9.0, 9.0, latency.Sampling(seconds=10.0, min_pairs=5, max_pairs=10_000))
    assert slow.pairs == 5


def test_stops_at_the_most_pairs_and_tells_how_far_it_is():
    told = []
    assert Host(noise=0.5).measure(0.1, 0.1, replace(QUICK, seconds=1e6), tell=told.append).pairs == 60
    assert told == sorted(told)
    assert 0 < told[0] < told[-1] <= 1


def test_looks_are_few_and_limits_that_are_clear_end_it_early():
    near, far = (
        Host(noise=0.1, seed=1).measure(0.01, 0.01, latency.Sampling(seconds=60.0, limits=(limit,)))
        for limit in (1.0, 2.0)
    )
    assert far.pairs < near.pairs / 3
    assert 1 <= far.looks < near.looks <= latency.LOOKS
    assert (far.high - far.low) / 2 <= latency.COARSE * far.ratio  # decided, and good enough to be written down


def test_the_order_within_pairs_is_mixed_balanced_and_seeded():
    def order(seed):
        host = Host(noise=0.5, seed=3)
        host.measure(0.1, 0.1, replace(QUICK, seed=seed, seconds=1e6))
        calls = "".join(call[0] for call in host.calls)
        return calls[calls.index("rcrcrcrcrc") :]

    first = order(1)
    assert first == order(1)
    assert first != order(2)
    assert "cr" in first
    assert "rc" in first


def test_where_a_call_stands_in_its_pair_does_not_matter():
    """A machine on which whatever comes second takes a fifth longer."""
    host = Host()

    def work(seconds):
        def run():
            host.now += (
                seconds * (1.2 if len(host.calls) % 2 else 1.0) * math.exp(0.001 * host.random.standard_normal())
            )
            host.calls.append("")

        return run

    found = latency.paired_ratio(
        work(0.1), work(0.1), sampling=replace(QUICK, seconds=1e4), clock=host.clock, threads=1
    )
    assert found.ratio == pytest.approx(1.0, abs=0.02)


def test_a_call_too_short_for_the_clock_is_refused_and_a_short_one_repeated():
    with pytest.raises(EvalError, match="no measurable time"):
        Host().measure(0.1, 0.0)
    with pytest.raises(EvalError, match="min_pairs"):
        Host().measure(0.1, 0.1, replace(QUICK, min_pairs=1))
    host = Host()
    found = host.measure(1e-5, 2e-5)
    assert found.medians_ms == pytest.approx((0.01, 0.02))
    assert len(host.calls) >= 20 * (2 * found.pairs + 2 * FEWEST_SAME)


# ---------------------------------------------------------------------------------------------- what a gate rests on


@pytest.mark.parametrize("noise", ["shared", "crowded"])
def test_identical_code_passes_and_a_slowdown_of_a_twentieth_is_caught(noise):
    """The benchmark's simulated machines, with fewer runs: drift, spikes, regimes, dependence."""
    script = benchmark()
    assert script.LIMIT == 1 + MARGIN == 1.03
    same, slower = (
        [outcome(script.simulated(seed, by, script.SIMULATED[noise], 12.0), script.LIMIT).state for seed in range(runs)]
        for by, runs in ((0.0, 25), (0.05, 12))
    )
    assert same == ["pass"] * 25
    assert slower.count("pass") == 0


def test_a_judgement_at_the_limit_errs_no_more_often_than_it_says():
    """The hardest case: the truth is the limit itself, and every look is another chance to be wrong."""
    script = benchmark()
    noise = script.SIMULATED["crowded"]
    states = [outcome(script.simulated(seed, MARGIN, noise, 0.5), script.LIMIT).state for seed in range(40)]
    assert sum(state != "undecided" for state in states) <= 40 * 0.05 + 2 * math.sqrt(40 * 0.05)


def test_the_noise_floor_is_of_the_reference_with_itself():
    found = Host(noise=0.1, seed=2).measure(0.1, 0.3, replace(QUICK, seconds=1e6))
    assert found.same.low < 1 < found.same.high
    assert found.noise_floor == max(abs(found.same.low - 1), abs(found.same.high - 1))
    assert 0.01 < found.noise_floor < 0.5


def test_a_host_that_cannot_tell_the_reference_from_itself_decides_nothing():
    found = replace(Host().measure(0.1, 0.1), same=Interval(low=1.05, high=1.1))
    assert outcome(found, 2.0).state == "undecided"
    assert "1.050 to 1.100 of its own time" in outcome(found, 2.0).text


# ---------------------------------------------------------------------------------------------------------- clocks


def calls(wall, own, held, count=10):
    return [_timing.Took(wall, own, held)] * count


def test_processor_time_is_taken_only_where_it_is_all_that_a_call_needs():
    assert _timing.is_processors(calls(1.0, 0.99, 0.0))
    assert _timing.is_processors(calls(4.0, 1.0, 2.95))  # three quarters of the time others computed
    assert not _timing.is_processors(calls(4.0, 1.0, 0.5))  # sleeps, or waits for another thread or an accelerator
    assert not _timing.is_processors(calls(1.0, math.nan, 0.0))
    assert not _timing.is_processors([])
    mixed = [*calls(4.0, 1.0, 0.0), *calls(1.0, 0.99, 0.0, 1)]
    assert _timing.is_processors(mixed)  # no scheduler's count: one undisturbed call shows it


def test_a_clock_of_ones_own_is_the_only_one_that_is_read():
    with _timing.meter(Host().clock, 1) as meter:
        assert (meter.own, meter.held) == (None, None)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot keep a thread on a processor")
def test_the_thread_is_kept_on_one_processor_and_let_go():
    before = os.sched_getaffinity(0)
    with _timing.one_processor(True) as cpus:
        assert (len(cpus), os.sched_getaffinity(0)) == (1, set(cpus))
    assert os.sched_getaffinity(0) == before
    with _timing.one_processor(False) as cpus:
        assert set(cpus) == before


def test_real_work_is_measured_with_whatever_this_host_has():
    """No number is expected: only that the clocks, the processor and the record fit together."""
    table = np.ones((64, 64))
    found = latency.paired_ratio(
        lambda: table @ table, lambda: table @ table, sampling=latency.Sampling(seconds=0.2, min_pairs=5), threads=1
    )
    assert 0 < found.low <= found.ratio <= found.high
    assert found.clock in ("wall", "processor")
    assert 0 <= found.busy <= 1
    assert found.host == latency.host()
    assert "cores" in found.host
