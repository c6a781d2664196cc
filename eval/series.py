"""Statistics of a series in time, whose values may depend on their neighbours: where it is steady, and its centre.

Source: the warm-up by MSER (White 1997, Simulation 69(6)), accepted when it lies in the first half (Hoad, Robinson and
Davies 2010, J. Oper. Res. Soc. 61(9)). The length of blocks by Politis and White 2004 (Econometric Reviews 23(1)), as
corrected with Patton in 2009 (28(4)); resampling in circular blocks by Politis and Romano 1992.
Differs: the blocks give the standard error and Student's t the width, because percentiles of a few hundred resamples
say nothing at the levels that a rule of several looks needs; half as many degrees of freedom as blocks are counted,
which keeps the level from 7 values on (tests/eval/test_series.py).
Cost: `resamples` * n values drawn and partly sorted: 0.1 s for 5,000 values.
"""

import math
from statistics import NormalDist

import numpy as np

from eval.errors import EvalError
from eval.stats import Interval, Values

TRIM = 0.4  # share cut off at either end: nearly the median, but smooth enough for a bootstrap
FEWEST_FOR_BLOCKS = 40  # values from which an autocorrelation can be told
LAST = 5  # values that no truncation may leave alone: their variance means nothing


def middle(values: np.ndarray) -> np.ndarray:
    """The mean of the middle fifth along the last axis."""
    count = values.shape[-1]
    cut = int(TRIM * count)
    ordered = np.partition(values, [cut, count - 1 - cut], axis=-1) if cut else values
    return np.asarray(ordered[..., cut : count - cut].mean(axis=-1))


def interval(values: Values, *, level: float, seed: int, resamples: int = 200) -> tuple[float, Interval]:
    """The centre of a series and its interval. Same seed, same interval.

    Args:
        values: The series in its order; two values or more.
        level: Share of such intervals that hold the centre.
        seed: Of the resampling.
        resamples: How many series are drawn.
    """
    series = np.asarray(values, dtype=np.float64)
    count = series.size
    if count < 2:
        raise EvalError(f"{count} values have no interval: measure longer")
    centre, length = float(middle(series)), block_length(series)
    blocks = -(-count // length)
    starts = np.random.default_rng(seed).integers(0, count, size=(resamples, blocks, 1))
    drawn = ((starts + np.arange(length)) % count).reshape(resamples, -1)[:, :count]
    error = float(middle(series[drawn]).std(ddof=1)) * math.sqrt(count / max(count - length, 1))
    reach = student_quantile(0.5 + level / 2, max((count // length - 1) // 2, 1)) * error
    return centre, Interval(low=centre - reach, high=centre + reach)


def block_length(values: Values) -> int:
    """How many neighbours have to be drawn together so that their dependence stays; 1 for independent values."""
    series = np.asarray(values, dtype=np.float64)
    count = series.size
    if count < FEWEST_FOR_BLOCKS:
        return 1
    low, high = np.quantile(series, [0.1, 0.9])  # spikes hide a dependence
    centred = np.clip(series, low, high)
    centred = centred - centred.mean()
    variance = float(centred @ centred) / count
    if variance == 0:
        return 1
    quiet = max(5, math.ceil(math.sqrt(math.log10(count))))
    lags = min(math.ceil(math.sqrt(count)) + quiet, count - 1)
    covariance = np.array([float(centred[: count - lag] @ centred[lag:]) / count for lag in range(lags + 1)])
    window = _window(covariance / variance, count, quiet)
    lag = np.arange(1, min(window, lags) + 1)
    weights = np.minimum(1.0, 2 * (1 - lag / window)) if window else np.zeros(0)
    spectrum = variance + 2 * float(weights @ covariance[lag])
    slope = 2 * float((weights * lag) @ covariance[lag])
    if spectrum <= 0 or slope == 0:
        return 1
    best = (1.5 * (slope / spectrum) ** 2 * count) ** (1 / 3)
    return int(min(max(1, math.ceil(best)), count // 8))


def _window(correlation: np.ndarray, count: int, quiet: int) -> int:
    """Twice the lag behind which `quiet` correlations in a row are within chance."""
    bound = 2 * math.sqrt(math.log10(count) / count)
    loud = np.flatnonzero(np.abs(correlation[1:]) >= bound) + 1
    last = 0
    for lag in loud:
        if lag - last > quiet:
            break
        last = int(lag)
    return 2 * last


def steady_from(values: Values) -> int | None:
    """From which value on a series is steady; None where that cannot be seen yet.

    The truncation after which the mean of the rest has the least standard error: leaving out a slow start lowers the
    variance more than it costs in values. One that lies in the second half says that the start has not ended.
    """
    series = np.asarray(values, dtype=np.float64)
    if series.size < 2 * LAST:
        return None
    errors = [series[cut:].var() / (series.size - cut) for cut in range(series.size - LAST + 1)]
    best = int(np.argmin(errors))
    return best if best <= series.size // 2 else None


def student_quantile(probability: float, freedom: int) -> float:
    """Student's t: the value below which a share of it lies.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4 (exact sums for whole degrees of freedom), inverted by
    halving; above 100 degrees their expansion 26.7.5.

    Args:
        probability: In (0.5, 1).
        freedom: Degrees, 1 or more.
    """
    if freedom > 100:
        z = NormalDist().inv_cdf(probability)
        first = (z**3 + z) / (4 * freedom)
        return z + first + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = 0.0, math.pi / 2  # the angle whose tangent is t / sqrt(freedom)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, freedom) < 2 * probability - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _student_within(angle: float, freedom: int) -> float:
    """The share between -t and t."""
    cosine, sine = math.cos(angle), math.sin(angle)
    term = total = sine if freedom % 2 == 0 else sine * cosine
    for step in range(2 if freedom % 2 else 1, freedom - 1, 2):
        term *= cosine**2 * step / (step + 1)
        total += term
    if freedom % 2 == 0:
        return total
    return 2 / math.pi * (angle + (total if freedom > 1 else 0.0))
