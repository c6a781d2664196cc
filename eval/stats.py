"""Statistics of per-image values: mean, median, p5 and worst in the bad direction, intervals, the Pareto front.

Source: Efron and Tibshirani 1993, section 13.3 (percentile interval of the bootstrap).
Differs: an infinite value never hides a finite bad one. Infinity in the good direction (PSNR of identical images) is
left out of a mean unless all values are infinite, and is never interpolated with; infinity in the bad direction, and
NaN, are the result.
Cost: a bootstrap of n values draws resamples * n indices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from eval.errors import EvalError, unknown

STATISTICS = ("mean", "median", "p5", "worst")
Values = Sequence[float] | np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A 95 % interval, unless the call that made it was told another level."""

    low: float
    high: float


def statistic(values: Values, name: str, *, higher_is_better: bool) -> float:
    """One number for many images. p5 is the 5th percentile of the bad tail, worst the worst image.

    Raises:
        EvalError: no such statistic, or no values.
    """
    if name not in STATISTICS:
        raise unknown("statistic", name, STATISTICS)
    if not len(values):
        raise EvalError(f"no values to take the {name} of: the evaluation set is empty")
    # from here on, more is better: the bad tail is the low one
    good = np.asarray(values, dtype=np.float64) * (1 if higher_is_better else -1)
    if np.isnan(good).any():
        return float("nan")
    found = _low_side(good, name)
    return found if higher_is_better else 0.0 - found


def _low_side(good: np.ndarray, name: str) -> float:
    if name == "worst" or (name == "mean" and np.isneginf(good.min())):
        return float(good.min())
    finite = good[np.isfinite(good)]
    if name == "mean":
        return float(finite.mean()) if finite.size else float("inf")
    method: Literal["linear", "lower"] = "linear" if finite.size == good.size else "lower"
    return float(np.percentile(good, 50 if name == "median" else 5, method=method))


def bootstrap_interval(
    values: Values,
    *,
    seed: int,
    of: Callable[..., np.ndarray] = np.median,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """The percentile interval of a statistic, from resampled values. Same seed, same interval.

    Args:
        values: The sample; NaN in it makes both ends NaN.
        seed: Of the resampling.
        of: The statistic; called with an array [resamples, n] and `axis=1`.
        resamples: How often the sample is drawn again.
        level: The share of resampled statistics inside.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        raise EvalError("no values to take an interval of")
    drawn = np.random.default_rng(seed).integers(0, sample.size, size=(resamples, sample.size))
    low, high = np.percentile(of(sample[drawn], axis=1), [50 * (1 - level), 50 * (1 + level)])
    return Interval(low=float(low), high=float(high))


def pareto_front(points: Sequence[Values], *, higher_is_better: Sequence[bool]) -> tuple[int, ...]:
    """Indices of the points that no other point beats: as good on every axis and better on one.

    A point with NaN is never on the front. Of equal points, all are.
    """
    signs = np.where(np.asarray(higher_is_better), 1.0, -1.0)
    table = np.asarray(points, dtype=np.float64).reshape(len(points), len(signs)) * signs
    valid = ~np.isnan(table).any(axis=1)
    front = []
    for index in np.flatnonzero(valid):
        as_good = (table[valid] >= table[index]).all(axis=1)
        better = (table[valid] > table[index]).any(axis=1)
        if not (as_good & better).any():
            front.append(int(index))
    return tuple(front)
