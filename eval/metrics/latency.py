"""The ratio of two latencies: interleaved pairs in one process, looked at a few times, with an interval that holds.

Source: log ratios of randomised interleaved pairs (eval.metrics._pairs), the mean of their middle fifth and its
block-bootstrap interval (eval.series). Each of at most `LOOKS` looks has an interval of level 1 - 0.05 / LOOKS, so all
of them hold together with 95 % whatever their dependence (Bonferroni: the error is spent in equal parts, the simplest
case of Lan and DeMets 1983, Biometrika 70). Where the candidate takes c times the reference's time and both are timed
alike, the log ratio is symmetric about log c whatever the noise is, so the estimate has no bias.
Differs: one thread is timed by its processor time where that is all that it needs (eval.metrics._timing); the budget
is in wall time. An A/A run among the pairs records what the host calls no difference.
Cost: `Sampling.seconds` at most, except that `min_pairs` pairs are always taken; less where the limits or the precision
are clear before.

A host's figure is that host's: it is not a phone's. A callable must return only when its work is done (synchronise an
accelerator inside it).
"""

import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from eval import series
from eval.errors import EvalError
from eval.metrics import _timing
from eval.metrics._pairs import Pairs, WarmedUp, log_ratios, warm_up
from eval.metrics._timing import Clock, Meter, Work
from eval.stats import Interval

UNIT = "ms"
HIGHER_IS_BETTER = False
RANGE = (0.0, float("inf"))
NEEDS_NET = False
TAKES = "cost"
DEFINITION = "candidate over reference: middle of the log ratios of interleaved pairs; one thread in processor time"

ERROR = 0.05  # how often one of all the intervals that are looked at may miss
LOOKS = 6  # at 1/32, 1/16, ... 1 of the budget
COARSE = 0.05  # half an interval, as a share of the ratio, that is enough where every limit is clear of it
KEPT = 400  # pairs that a record holds, spread evenly over those taken

NO_DIFFERENCE = Interval(low=1.0, high=1.0)
Tell = Callable[[float], None]  # told the share of the budget that is spent


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How long to measure. Warm-up takes at most a fifth of `seconds`."""

    seconds: float = 20.0
    min_pairs: int = 15
    max_pairs: int = 5000
    max_warmup: int = 100  # calls of each
    precision: float = 0.01  # without limits: stop when half the interval is within this share of the ratio
    limits: tuple[float, ...] = ()  # ratios to tell apart: stop when none lies inside the interval
    seed: int = 0


DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyRatio:
    """Candidate over reference: below 1 is faster. Sample k of both sides is one pair."""

    ratio: float  # centre of the per-pair ratios
    low: float  # 95 % interval of it, which holds whenever the sampling stopped
    high: float
    noise_floor: float  # how far from 1 the A/A run's interval reaches
    reference_ms: tuple[float, ...]  # at most KEPT of the pairs
    candidate_ms: tuple[float, ...]
    pairs: int  # that were taken
    threads: int
    host: str  # the device that measured
    runtime: str
    same: Interval = NO_DIFFERENCE  # of the A/A run
    clock: str = "wall"  # or "processor": of the calling thread
    cpus: tuple[int, ...] = ()  # that the calling thread was allowed to use; () where the system does not say
    warmup: int = 0  # calls of each, thrown away
    settled: bool = True  # whether the end of the warm-up was seen
    busy: float = 0.0  # share of the wall time that went to others; known with the processor's clock only
    looks: int = 1

    @property
    def medians_ms(self) -> tuple[float, float]:
        """Reference and candidate."""
        return median(self.reference_ms), median(self.candidate_ms)


def paired_ratio(
    reference: Work,
    candidate: Work,
    *,
    sampling: Sampling = DEFAULT_SAMPLING,
    clock: Clock = time.perf_counter,
    runtime: str = "torch",
    threads: int | None = None,
    budget: Clock | None = None,
    tell: Tell | None = None,
) -> LatencyRatio:
    """Time two pieces of work against each other.

    Args:
        reference: Does the reference's work once.
        candidate: Does the candidate's work once, in the same runtime with the same threads.
        sampling: How long, how many, how precise.
        clock: Seconds from any origin.
        runtime: What executes both, for the record.
        threads: What the runtime was told to use, for the record; torch's own setting if not given. With one, the
            calling thread is kept on one processor meanwhile.
        budget: Seconds that `sampling.seconds` is counted in, where `clock` is not what goes by here.
        tell: Told how much of the budget is spent, now and then.

    Raises:
        EvalError: a call is too short for the clock.
    """
    if sampling.min_pairs < 2 or sampling.max_pairs < sampling.min_pairs:
        raise EvalError(f"min_pairs {sampling.min_pairs} and max_pairs {sampling.max_pairs}: take 2 or more, in order")
    used = torch.get_num_threads() if threads is None else threads
    real = clock is time.perf_counter
    with _timing.meter(clock, used, budget) as meter, _timing.one_processor(real and used == 1) as cpus:
        begun = meter.budget()
        warm = warm_up((reference, candidate), meter, seconds=sampling.seconds / 5, most=sampling.max_warmup)
        pairs = Pairs(
            reference=reference,
            candidate=candidate,
            clock=warm.clock,
            repeats=warm.repeats,
            random=np.random.default_rng(sampling.seed),
        )
        started = (meter.budget(), time.thread_time() if warm.processor else 0.0)
        found, looks = _sampled(pairs, meter, sampling, end=begun + sampling.seconds, tell=tell)
        wall = meter.budget() - started[0]
        busy = 1 - (time.thread_time() - started[1]) / wall if warm.processor else 0.0
    return _record(pairs, found, warm, looks=looks, cpus=cpus, busy=busy, runtime=runtime, threads=used)


def host() -> str:
    """What measured: system, processor and cores. Not the machine's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{platform.system()}, {model}, {os.cpu_count()} cores"


def judged_interval(logs: np.ndarray, *, seed: int, level: float = 1 - ERROR / LOOKS) -> tuple[float, Interval]:
    """The ratio behind log ratios [pairs], and its interval: by default one that holds beside LOOKS - 1 others."""
    centre, found = series.interval(logs, level=level, seed=seed)
    return math.exp(centre), Interval(low=math.exp(found.low), high=math.exp(found.high))


def _sampled(
    pairs: Pairs, meter: Meter, sampling: Sampling, *, end: float, tell: Tell | None
) -> tuple[tuple[float, Interval], int]:
    """Pairs until a look says that it is enough, or the budget is spent; and what the last look saw."""
    begun = meter.budget()
    due = [begun + (end - begun) * 2.0**-step for step in range(LOOKS - 1, 0, -1)]
    looks, told = 0, begun
    while True:
        pairs.take()
        now, taken = meter.budget(), len(pairs.different)
        if tell and now - told > 0.5:
            tell(min(1.0, (now - begun) / max(end - begun, 1e-9)))
            told = now
        if taken < sampling.min_pairs:
            continue
        last = now >= end or taken >= sampling.max_pairs
        if last or (due and now >= due[0]):
            due = [moment for moment in due if moment > now]
            looks += 1
            found = judged_interval(log_ratios(pairs.different), seed=sampling.seed)
            if last or _enough(*found, sampling):
                return found, looks


def _enough(ratio: float, interval: Interval, sampling: Sampling) -> bool:
    half = (interval.high - interval.low) / 2
    if not sampling.limits:
        return half <= sampling.precision * ratio
    return half <= COARSE * ratio and not any(interval.low <= limit <= interval.high for limit in sampling.limits)


def _record(
    pairs: Pairs,
    found: tuple[float, Interval],
    warm: WarmedUp,
    *,
    looks: int,
    cpus: Sequence[int],
    busy: float,
    runtime: str,
    threads: int,
) -> LatencyRatio:
    ratio, interval = found
    _, same = judged_interval(log_ratios(pairs.same), seed=0, level=1 - ERROR)
    count = len(pairs.different)
    kept = np.asarray(pairs.different)[np.unique(np.linspace(0, count - 1, min(count, KEPT)).round().astype(int))]
    return LatencyRatio(
        ratio=ratio,
        low=interval.low,
        high=interval.high,
        noise_floor=max(abs(same.low - 1), abs(same.high - 1)),
        reference_ms=tuple((1e3 * kept[:, 0]).tolist()),
        candidate_ms=tuple((1e3 * kept[:, 1]).tolist()),
        pairs=count,
        threads=threads,
        host=host(),
        runtime=runtime,
        same=same,
        clock="processor" if warm.processor else "wall",
        cpus=tuple(cpus),
        warmup=warm.calls,
        settled=warm.settled,
        busy=max(0.0, busy),
        looks=looks,
    )
