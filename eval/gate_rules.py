"""What makes a gate one that can be judged: a known metric, one limit or a window, limits that fit the metric."""

import math
from collections.abc import Iterator, Sequence

from eval import metrics as registry
from eval import stats
from eval.errors import unknown
from eval.gate_records import KINDS, RELATIVE, GateSpec, Kind, net_of

WHO = ("reference", "ground_truth", "baseline")


def problems(spec: GateSpec) -> list[str]:
    """Everything that is wrong with a gate as it is written; empty where it can be judged."""
    if spec.metric not in registry.names():
        return [str(unknown("metric", spec.metric, registry.names()))]
    given = [kind for kind in KINDS if getattr(spec, kind) is not None]
    found = [*_limits(spec, given), *_sets(spec, given)]
    if spec.statistic not in stats.STATISTICS:
        found.append(f"no statistic {spec.statistic!r}; known: {', '.join(stats.STATISTICS)}")
    sampled = registry.is_sampled(spec.metric)
    found += _sampled(spec, given) if sampled else _cost(spec, given)
    found += _net(spec)
    if spec.runtime is not None and spec.metric != "latency":
        found.append("runtime belongs to latency gates only")
    if spec.undecided not in ("fail", "pass"):
        found.append(f"undecided is fail or pass, not {spec.undecided!r}")
    elif spec.undecided == "pass" and spec.metric != "latency":
        found.append("undecided belongs to latency gates only")
    return found


def _limits(spec: GateSpec, given: Sequence[Kind]) -> Iterator[str]:
    window = given == ["min", "max"]
    if len(given) != 1 and not window:
        yield (
            f"give exactly one of {', '.join(KINDS)}, or min with max for a window; found {', '.join(given) or 'none'}"
        )
    for kind in (*given, *(("max_gain",) if spec.max_gain is not None else ())):
        if not _finite(spec, kind):
            yield f"{kind} is {getattr(spec, kind)}: give a finite number"
    if window and _finite(spec, "min") and _finite(spec, "max") and not _order(spec.min, spec.max):
        yield f"min {spec.min} is above max {spec.max}: nothing could pass"
    if spec.max_gain is None or not _finite(spec, "max_gain"):
        return
    if spec.max_gain < 0:
        yield f"max_gain {spec.max_gain} is below 0: give the largest gain that is believed"
    if not any(kind in RELATIVE for kind in given):
        yield f"max_gain closes a window on the better side: give it beside one of {', '.join(RELATIVE)}"


def _order(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and low <= high


def _sets(spec: GateSpec, given: Sequence[Kind]) -> Iterator[str]:
    """Who is compared with whom."""
    if spec.against not in WHO or spec.of not in ("candidate", "reference"):
        yield "against is reference or ground_truth, of is candidate or reference"
        return
    if (spec.of, spec.against) == ("reference", "reference"):
        yield "of: reference needs against: ground_truth; the reference equals itself"
    if spec.against == "baseline":
        if spec.of != "candidate":
            yield "a baseline is of the candidate; leave `of` out"
        if given and not set(given) <= set(RELATIVE):
            yield f"{given[0]} says nothing of a baseline; use one of {', '.join(RELATIVE)}"


def _sampled(spec: GateSpec, given: Sequence[Kind]) -> Iterator[str]:
    module = registry.get(spec.metric)
    allowed = ("min", "max_drop") if module.HIGHER_IS_BETTER else ("max", "max_rise")
    better = "higher" if module.HIGHER_IS_BETTER else "lower"
    window = given == ["min", "max"]
    for kind in given:
        if kind not in allowed and not window:
            yield f"{kind} does not fit {spec.metric}, where {better} is better; use {' or '.join(allowed)}"
    relative = [kind for kind in given if kind in ("max_drop", "max_rise")]
    if relative and (spec.of, spec.against) not in (("candidate", "reference"), ("candidate", "baseline")):
        yield f"{relative[0]} compares the candidate with the reference: use against: reference"
    if registry.takes(spec.metric) == "asked" and not relative and spec.against != "ground_truth":
        yield f"{spec.metric} compares with what was asked for: use against: ground_truth, or {allowed[1]}"
    if registry.takes(spec.metric) in ("tensors", "latents"):
        if spec.against == "ground_truth" or spec.of == "reference":
            yield f"{spec.metric} compares the candidate with the reference; there is no ground truth of it"
        if relative and spec.against == "reference":
            yield f"{spec.metric} is the reference's own distance already: use {allowed[0]}, or against: baseline"


def _cost(spec: GateSpec, given: Sequence[Kind]) -> Iterator[str]:
    for kind in given:
        if kind not in ("max", "max_ratio"):
            yield f"{kind} does not fit {spec.metric}; use max_ratio or max"
        elif _finite(spec, kind) and getattr(spec, kind) <= 0:
            yield f"{kind} must be above 0"
    if spec.of != "candidate" or spec.against == "ground_truth":
        yield f"{spec.metric} is taken of the candidate, against: reference"
    if spec.statistic not in ("mean", "median"):
        yield f"{spec.metric} has no {spec.statistic}; leave `statistic` out"


def _net(spec: GateSpec) -> Iterator[str]:
    module = registry.get(spec.metric)
    if spec.net is not None and not module.NEEDS_NET:
        yield f"{spec.metric} has no net; leave `net` out"
    elif module.NEEDS_NET and net_of(spec) not in module.NETS:
        yield f"no {spec.metric} net {spec.net!r}; known: {', '.join(module.NETS)}"


def _finite(spec: GateSpec, kind: str) -> bool:
    value = getattr(spec, kind)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
