"""Clocks for one call: the wall's; or the processor time of the calling thread, where that is all that a call needs.

Source: clock_gettime(2), CLOCK_THREAD_CPUTIME_ID; the time that a thread was ready to run and had no processor, second
number of /proc/thread-self/schedstat (Linux, Documentation/scheduler/sched-stats).
Differs: on a shared machine most of a call's wall time is other people's. A thread whose wall time is its processor
time plus its wait for a processor did nothing else, so its processor time is what it would take alone. A call that
sleeps, waits for other threads or for an accelerator is told by what is left over, and timed by the wall.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from eval.errors import EvalError

Clock = Callable[[], float]  # seconds, from any origin
Work = Callable[[], object]

SCHEDULER = Path("/proc/thread-self/schedstat")
FINEST = 1e-5  # a processor clock whose tick is longer is of no use
LEFT_OVER = 0.05  # share of a call that neither clock accounts for, from which it is timed by the wall


class Took(NamedTuple):
    """Seconds of one call."""

    wall: float
    own: float  # of this thread on a processor; NaN where that is not known
    held: float  # ready to run, without a processor


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """The clocks that a measurement reads."""

    wall: Clock
    budget: Clock  # what the budget is counted in
    own: Clock | None = None
    held: Clock | None = None

    def took(self, work: Work) -> Took:
        """Run it once, by every clock.

        Raises:
            EvalError: it took no measurable time.
        """
        held = self.held() if self.held else 0.0
        own = self.own() if self.own else 0.0
        start = self.wall()
        work()
        wall = self.wall() - start
        used = self.own() - own if self.own else float("nan")
        return Took(positive(wall), used, max(self.held() - held, 0.0) if self.held else 0.0)


def timed(work: Work, clock: Clock, repeats: int) -> float:
    """Seconds of one of `repeats` calls in a row.

    Raises:
        EvalError: they took no measurable time.
    """
    start = clock()
    for _ in range(repeats):
        work()
    return positive(clock() - start) / repeats


def positive(took: float) -> float:
    """A duration as it is.

    Raises:
        EvalError: it is none.
    """
    if took <= 0:
        raise EvalError("a call took no measurable time: repeat the work inside the callable")
    return took


@contextmanager
def meter(wall: Clock, threads: int, budget: Clock | None = None) -> Iterator[Meter]:
    """The clocks that this host has; the processor's only for the real clock and one thread."""
    tick = time.get_clock_info("thread_time").resolution if hasattr(time, "thread_time") else 1.0
    if wall is not time.perf_counter or threads != 1 or tick > FINEST:
        yield Meter(wall=wall, budget=budget or wall)
        return
    if not SCHEDULER.exists():
        yield Meter(wall=wall, budget=budget or wall, own=time.thread_time)
        return
    file = os.open(SCHEDULER, os.O_RDONLY)
    try:
        yield Meter(
            wall=wall,
            budget=budget or wall,
            own=time.thread_time,
            held=lambda: int(os.pread(file, 200, 0).split()[1]) * 1e-9,
        )
    finally:
        os.close(file)


def is_processors(calls: Sequence[Took]) -> bool:
    """Whether these calls did nothing but compute on their thread, or wait to.

    Without the scheduler's count, the call that was disturbed least has to show it.
    """
    if not calls or not all(one.own > 0 for one in calls):
        return False
    left = [(one.wall - one.own - one.held) / one.wall for one in calls]
    return (median(left) if any(one.held for one in calls) else min(left)) <= LEFT_OVER


@contextmanager
def one_processor(wanted: bool) -> Iterator[tuple[int, ...]]:
    """Keep this thread on the processor that it is on, where the system can; then as it was. Gives those allowed."""
    if not hasattr(os, "sched_setaffinity"):
        yield ()
        return
    before = os.sched_getaffinity(0)
    if not wanted:
        yield tuple(sorted(before))
        return
    here = _current()
    os.sched_setaffinity(0, {here if here in before else min(before)})
    try:
        yield tuple(sorted(os.sched_getaffinity(0)))
    finally:
        os.sched_setaffinity(0, before)


def _current() -> int:
    """The processor that this thread last ran on; -1 where the system does not say."""
    status = Path("/proc/thread-self/stat")
    if not status.exists():
        return -1
    fields = status.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return int(fields[36])  # the 39th of all; two came before
