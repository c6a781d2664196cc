"""The ratio of two latencies, measured as pairs in one process, with an interval and a measured noise floor.

Source: paired samples in random order against drift; bootstrap interval of the median per-pair ratio (eval.stats).
Differs: an A/A run (the reference against itself, by the same protocol) records what the host calls no difference;
sampling stops on the interval's width, never on its position, so that looking early favours neither side.
Cost: `Sampling.seconds`, except that `min_pairs` pairs are always taken, twice (A/A and A/B).

A host's figure is that host's: it is not a phone's. A callable must return only when its work is done (synchronise an
accelerator inside it).
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eval import stats
from eval.errors import EvalError

UNIT = "ms"
HIGHER_IS_BETTER = False
RANGE = (0.0, float("inf"))
NEEDS_NET = False
TAKES = "cost"
DEFINITION = "median ratio of interleaved pairs, candidate over reference"

Clock = Callable[[], float]  # seconds, from any origin
Work = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How long to measure. Warm-up takes at most a fifth of `seconds`, the A/A run a third of what is left."""

    seconds: float = 20.0
    min_pairs: int = 15
    max_pairs: int = 200
    max_warmup: int = 20  # calls of each
    precision: float = 0.01  # stop when half the interval is within this share of the ratio
    seed: int = 0


DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRatio:
    """Candidate over reference: below 1 is faster. Sample k of both sides is one pair."""

    ratio: float  # median of the per-pair ratios
    low: float  # 95 % interval of it
    high: float
    noise_floor: float  # how far from 1 the A/A run's interval reaches
    reference_ms: tuple[float, ...]
    candidate_ms: tuple[float, ...]
    pairs: int
    threads: int
    host: str
    runtime: str


def paired_ratio(
    reference: Work,
    candidate: Work,
    *,
    sampling: Sampling = DEFAULT_SAMPLING,
    clock: Clock = time.perf_counter,
    runtime: str = "torch",
    threads: int | None = None,
) -> LatencyRatio:
    """Time two pieces of work against each other.

    Args:
        reference: Does the reference's work once.
        candidate: Does the candidate's work once, in the same runtime with the same threads.
        sampling: How long, how many, how precise.
        clock: Seconds from any origin.
        runtime: What executes both, for the record.
        threads: What the runtime was told to use, for the record; torch's own setting if not given.

    Raises:
        EvalError: a call is too short for the clock.
    """
    if sampling.min_pairs < 2 or sampling.max_pairs < sampling.min_pairs:
        raise EvalError(f"min_pairs {sampling.min_pairs} and max_pairs {sampling.max_pairs}: take 2 or more, in order")
    end = clock() + sampling.seconds
    _warm_up(reference, candidate, sampling=sampling, clock=clock)
    same = _sample(reference, reference, sampling=sampling, clock=clock, end=clock() + (end - clock()) / 3)
    pairs = _sample(reference, candidate, sampling=sampling, clock=clock, end=end)
    ratios = pairs[:, 1] / pairs[:, 0]
    interval = stats.bootstrap_interval(ratios, seed=sampling.seed)
    floor = stats.bootstrap_interval(same[:, 1] / same[:, 0], seed=sampling.seed)
    return LatencyRatio(
        ratio=float(np.median(ratios)),
        low=interval.low,
        high=interval.high,
        noise_floor=max(abs(floor.low - 1), abs(floor.high - 1)),
        reference_ms=tuple((1e3 * pairs[:, 0]).tolist()),
        candidate_ms=tuple((1e3 * pairs[:, 1]).tolist()),
        pairs=len(pairs),
        threads=torch.get_num_threads() if threads is None else threads,
        host=host(),
        runtime=runtime,
    )


def host() -> str:
    """What measured: system, processor and cores. Not the machine's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{platform.system()}, {model}, {os.cpu_count()} cores"


def _timed(work: Work, clock: Clock) -> float:
    start = clock()
    work()
    took = clock() - start
    if took <= 0:
        raise EvalError("a call took no measurable time: repeat the work inside the callable")
    return took


def _warm_up(reference: Work, candidate: Work, *, sampling: Sampling, clock: Clock) -> None:
    """Call both until the last three calls are no faster than the three before, to 5 %."""
    end = clock() + sampling.seconds / 5
    taken: dict[str, list[float]] = {"reference": [], "candidate": []}
    for done in range(1, sampling.max_warmup + 1):
        taken["reference"].append(_timed(reference, clock))
        taken["candidate"].append(_timed(candidate, clock))
        if done >= 2 and clock() >= end:
            return
        if done >= 6 and all(_settled(times) for times in taken.values()):
            return


def _settled(times: list[float]) -> bool:
    return statistics.median(times[-3:]) >= 0.95 * statistics.median(times[-6:-3])


def _sample(first: Work, second: Work, *, sampling: Sampling, clock: Clock, end: float) -> np.ndarray:
    """Pairs of seconds [pairs, 2], each pair in an order drawn from the seed."""
    order = np.random.default_rng(sampling.seed)
    pairs: list[tuple[float, float]] = []
    while len(pairs) < sampling.max_pairs:
        if order.random() < 0.5:
            took = _timed(first, clock)
            pairs.append((took, _timed(second, clock)))
        else:
            took = _timed(second, clock)
            pairs.append((_timed(first, clock), took))
        if len(pairs) >= sampling.min_pairs and (clock() >= end or _precise(pairs, sampling)):
            break
    return np.asarray(pairs)


def _precise(pairs: list[tuple[float, float]], sampling: Sampling) -> bool:
    """Whether the interval is narrow enough. Looked at every fifth pair: the bootstrap disturbs what is timed."""
    if len(pairs) % 5:
        return False
    ratios = [second / first for first, second in pairs]
    interval = stats.bootstrap_interval(ratios, seed=sampling.seed, resamples=500)
    return interval.high - interval.low <= 2 * sampling.precision * statistics.median(ratios)
