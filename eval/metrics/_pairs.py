"""Pairs of calls: warmed up, in an order that favours neither side, the reference against itself among them.

Source: randomised interleaving (Abedi and Brecht 2017, ICPE); both orders one after the other, ABBA or BAAB, as in
weighing by double substitution, against drift and the place within a pair; the end of the warm-up as in eval.series.
Differs: one pair in four is the reference against itself, so the noise floor is of the same minutes as the ratio.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from eval import series
from eval.metrics._timing import Clock, Meter, Took, Work, is_processors, timed

SHORTEST = 2e-4  # seconds of one timing; shorter calls are repeated, lest the clock's own cost be a part of the ratio
EVERY = 5  # warm-up calls between looks at whether it has ended
FEWEST_SAME = 7  # pairs of the reference with itself


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmedUp:
    """What the warm-up showed."""

    calls: int  # of each side, thrown away
    settled: bool  # whether its end was seen
    clock: Clock
    processor: bool  # whether `clock` counts processor time
    repeats: int  # calls per timing


def warm_up(works: tuple[Work, Work], meter: Meter, *, seconds: float, most: int) -> WarmedUp:
    """Call both in turns until both are seen to be steady, or the time is over; two calls of each at least."""
    end = meter.budget() + seconds
    taken: tuple[list[Took], list[Took]] = ([], [])
    settled = False
    for done in range(1, most + 1):
        for work, calls in zip(works, taken, strict=True):
            calls.append(meter.took(work))
        settled = done % EVERY == 0 and all(_steady(calls) for calls in taken)
        if settled or (done >= 2 and meter.budget() >= end):
            break
    processor = meter.own is not None and all(is_processors(calls[len(calls) // 2 :]) for calls in taken)
    clock = meter.own if processor and meter.own is not None else meter.wall
    fastest = min(one.own if processor else one.wall for calls in taken for one in calls)
    repeats = max(1, math.ceil(SHORTEST / fastest))
    return WarmedUp(calls=len(taken[0]), settled=settled, clock=clock, processor=processor, repeats=repeats)


def _steady(calls: list[Took]) -> bool:
    """By the processor's clock where it is known: the wall's is other people's on a shared machine."""
    times = [one.own if one.own > 0 else one.wall for one in calls]
    return series.steady_from(np.log(times)) is not None


@dataclass(slots=True, kw_only=True)
class Pairs:
    """Timings so far, seconds per call, in their order."""

    reference: Work
    candidate: Work
    clock: Clock
    repeats: int
    random: np.random.Generator
    different: list[tuple[float, float]] = field(default_factory=list)  # reference, candidate
    same: list[tuple[float, float]] = field(default_factory=list)  # reference, reference
    _turned: dict[str, bool] = field(default_factory=dict)  # whether the order of the pair to come is settled, and how

    def take(self) -> None:
        """One pair, and one of the reference with itself where it is time for that."""
        self.different.append(self._pair("different", self.candidate))
        if len(self.same) < max(FEWEST_SAME, len(self.different) // 3):
            self.same.append(self._pair("same", self.reference))

    def _pair(self, kind: str, second: Work) -> tuple[float, float]:
        """In an order drawn at random, then in the other order."""
        if kind in self._turned:
            turned = self._turned.pop(kind)
        else:
            turned = bool(self.random.random() < 0.5)
            self._turned[kind] = not turned
        if turned:
            took = timed(second, self.clock, self.repeats)
            return timed(self.reference, self.clock, self.repeats), took
        took = timed(self.reference, self.clock, self.repeats)
        return took, timed(second, self.clock, self.repeats)


def log_ratios(pairs: list[tuple[float, float]]) -> np.ndarray:
    """[pairs], second over first."""
    table = np.log(np.asarray(pairs))
    return np.asarray(table[:, 1] - table[:, 0])
