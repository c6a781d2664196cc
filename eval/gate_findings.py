"""The number that a gate judges, taken from what was measured; or why there is none."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from eval import baseline as baselines
from eval import metrics as registry
from eval import stats
from eval.compare import Measurement
from eval.gate_records import GateSpec, Kind, Sizes, net_of
from eval.metrics.latency import LatencyRatio

FEWEST = 3  # images of which an interval says something
SEED = 0  # of the bootstrap


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The number that a gate judges, or why there is none."""

    value: float = math.nan
    unit: str = ""
    statistic: str
    problem: str | None = None
    low: float | None = None
    high: float | None = None
    images: int = 0
    looks: str | None = None  # what the pictures behind it look like
    definition: str = ""
    net_digest: str | None = None


def named(spec: GateSpec) -> str:
    """A gate's metric with its net."""
    net = net_of(spec)
    return f"{spec.metric} ({net})" if net else spec.metric


def of_samples(
    spec: GateSpec, kind: Kind, measurements: Sequence[Measurement], comparison: baselines.Comparison | None
) -> Finding:
    """The statistic over images of the value, or of what was lost image by image."""
    module = registry.get(spec.metric)
    missing = Finding(statistic=spec.statistic, unit=module.UNIT, problem="")
    relative = kind in ("max_drop", "max_rise", "max_gain")
    found = _matching(spec, measurements, relative=relative, comparison=comparison)
    if isinstance(found, str):
        return _but(missing, found)
    wrong = _uncomparable(found)
    if wrong:
        return _but(missing, wrong)
    if relative:
        sign = (1.0 if module.HIGHER_IS_BETTER else -1.0) * (-1.0 if kind == "max_gain" else 1.0)
        values = [_lost(theirs, ours, sign) for ours, theirs in zip(*(one.values for one in found), strict=True)]
        higher = False
    else:
        values, higher = list(found[0].values), module.HIGHER_IS_BETTER
        if kind in ("min", "max") and (kind == "min") != higher:
            higher = not higher  # the far side of a window: the bad tail is the other one
    value = stats.statistic(values, spec.statistic, higher_is_better=higher)
    looks = "; ".join(dict.fromkeys(one.problem for one in found if one.problem)) or None
    problem = None
    if math.isnan(value):
        unmeasured = sum(math.isnan(value) for value in values)
        problem = f"{unmeasured} of {len(values)} images could not be measured: {looks or 'NaN'}"
    low, high = _interval(values, spec.statistic, higher=higher)
    return Finding(
        value=value,
        unit=module.UNIT,
        statistic=spec.statistic,
        problem=problem,
        low=low,
        high=high,
        images=len(values),
        looks=looks,
        definition=found[0].definition,
        net_digest=found[0].net_digest,
    )


def of_latency(spec: GateSpec, kind: Kind, latency: LatencyRatio | None) -> Finding:
    """The median of the candidate in ms, or the ratio to the reference."""
    unit = "ms" if kind == "max" else ""
    missing = Finding(statistic="median", unit=unit, problem="")
    if latency is None:
        return _but(missing, "latency was not measured")
    if spec.runtime is not None and not latency.runtime.startswith(spec.runtime):
        return _but(missing, f"latency was measured in {latency.runtime}, not in {spec.runtime}")
    if kind == "max":
        median = stats.statistic(latency.candidate_ms, "median", higher_is_better=False)
        return Finding(value=median, statistic="median", unit=unit)
    if kind == "max_gain":
        return Finding(value=1 - latency.ratio, statistic="median", low=1 - latency.high, high=1 - latency.low)
    return Finding(value=latency.ratio, statistic="median", unit=unit, low=latency.low, high=latency.high)


def of_bytes(spec: GateSpec, kind: Kind, sizes: Sizes | None, comparison: baselines.Comparison | None) -> Finding:
    """Bytes on disk or in memory, of the candidate or as a ratio to the reference's (the baseline's)."""
    memory = spec.metric == "peak_memory"
    unit, statistic = ("bytes" if kind == "max" else ""), ("peak" if memory else "total")
    missing = Finding(statistic=statistic, unit=unit, problem="")
    pair = (sizes.candidate_peak, sizes.reference_peak) if sizes and memory else sizes and sizes[:2]
    if pair is None or pair[0] is None or pair[1] is None:
        return _but(missing, "peak memory was not measured" if memory else "the sizes were not taken")
    ours, theirs = float(pair[0]), float(pair[1])
    if spec.against == "baseline":
        refused = _refused(spec, comparison, None)
        if refused or comparison is None:
            return _but(missing, refused)
        theirs = comparison.stored.costs[spec.metric].value
    if min(ours, theirs) <= 0:
        return _but(missing, f"sizes of {ours:g} and {theirs:g} bytes: an empty file")
    ratio = ours if kind == "max" else ours / theirs
    return Finding(value=1 - ratio if kind == "max_gain" else ratio, statistic=statistic, unit=unit)


def latency_to_baseline(
    spec: GateSpec, latency: LatencyRatio | None, comparison: baselines.Comparison | None
) -> tuple[LatencyRatio | None, str]:
    """Today's ratio over the stored one, both to the reference; with the worst of both intervals and noise floors."""
    refused = "latency was not measured" if latency is None else _refused(spec, comparison, latency)
    if refused or comparison is None or latency is None:
        return None, refused
    stored = comparison.stored.costs["latency"]
    low, high = (stored.value if end is None else end for end in (stored.low, stored.high))
    return (
        replace(
            latency,
            ratio=latency.ratio / stored.value,
            low=latency.low / high,
            high=latency.high / low,
            noise_floor=latency.noise_floor + (stored.noise_floor or 0.0),
        ),
        "",
    )


def _but(missing: Finding, problem: str) -> Finding:
    return Finding(statistic=missing.statistic, unit=missing.unit, problem=problem)


def _matching(
    spec: GateSpec,
    measurements: Sequence[Measurement],
    *,
    relative: bool,
    comparison: baselines.Comparison | None,
) -> list[Measurement] | str:
    """The measurements that a gate is about, the candidate's first; or what is missing."""
    direct = "ground_truth" if registry.takes(spec.metric) in ("images", "asked") else "reference"
    stored = spec.against == "baseline"
    before = None if comparison is None else baselines.find(comparison.stored, spec.metric, net_of(spec))
    if stored and before is not None:  # pictures that a UNet draws have no other truth than the reference's
        direct = before.against
    if relative:
        wanted = [("candidate", direct)] if stored else [("candidate", direct), ("reference", direct)]
    else:
        wanted = [(spec.of, spec.against)]
    found: list[Measurement] = []
    for of, against in wanted:
        key = (spec.metric, net_of(spec), of, against)
        matching = [one for one in measurements if (one.metric, one.net, one.of, one.against) == key]
        if len(matching) != 1 or not matching[0].values:
            why = "was measured more than once" if len(matching) > 1 else "was not measured"
            return f"{named(spec)} of the {of} {why}"
        found += matching
    if stored:
        refused = _refused(spec, comparison, found[0])
        if refused or before is None:
            return refused
        found.append(before)
    return found


def _refused(spec: GateSpec, comparison: baselines.Comparison | None, now: Measurement | LatencyRatio | None) -> str:
    if comparison is None:
        return "there is no baseline to compare with; give one with --baseline"
    texts = baselines.refusals(spec, comparison, now)
    update = "measure as the baseline was, or accept what is now with --update-baseline"
    return f"not comparable with the baseline: {'; '.join(texts)}; {update}" if texts else ""


def _uncomparable(found: Sequence[Measurement]) -> str | None:
    if len({len(one.values) for one in found}) != 1:
        return "the two sets differ in their images"
    if len({one.definition for one in found}) != 1:
        return "the two sets were measured by different definitions"
    if len({one.net_digest for one in found}) != 1:
        return "the two sets were measured by nets of different weights"
    return None


def _lost(reference: float, candidate: float, sign: float) -> float:
    """How much worse the candidate is on one image; 0 where both are exact."""
    return 0.0 if reference == candidate else sign * (reference - candidate)


def _interval(values: Sequence[float], statistic: str, *, higher: bool) -> tuple[float | None, float | None]:
    """The 95 % interval over images; the worst of a sample has none."""
    if len(values) < FEWEST or statistic == "worst" or not np.isfinite(values).all():
        return None, None
    tail = partial(np.percentile, q=5 if higher else 95)
    statistics: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median, "p5": tail}
    interval = stats.bootstrap_interval(values, seed=SEED, of=statistics[statistic])
    return interval.low, interval.high
