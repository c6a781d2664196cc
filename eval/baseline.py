"""What was measured before, kept to be compared with: per-image values, costs, and the conditions they hold under.

Two sets of numbers may only be compared if they are of the same photographs at the same size, against the same
reference, by the same definitions and nets, and, for latency, from the same host. Everything that differs is named.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from eval import compare, stats
from eval.compare import Measurement
from eval.errors import EvalError
from eval.gate_records import GateSpec, Sizes, net_of
from eval.metrics.latency import LatencyRatio

SCHEMA = 1
KEPT = 50  # updates that a baseline file remembers
Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What numbers depend on besides the candidate."""

    data: str  # digest of the photographs, or of whatever was decoded
    resolution: str  # "256x256"
    reference: str  # digest of the reference model and what makes its inputs
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One number of the candidate: bytes; of latency the ratio to the reference, which moves less with the host."""

    value: float
    low: float | None = None
    high: float | None = None
    noise_floor: float | None = None
    runtime: str = ""
    threads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One subject's numbers."""

    conditions: Conditions
    measurements: tuple[Measurement, ...] = ()  # of the candidate
    costs: Mapping[str, Cost] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A stored baseline, and the conditions of now."""

    stored: Baseline
    now: Conditions


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What the numbers of one subject were at an earlier update: means over the images, and costs."""

    conditions: Conditions
    values: Mapping[str, float | None]  # named as in `changes`


History = Mapping[str, tuple[Past, ...]]  # subject -> its updates, the oldest first


def of_now(
    conditions: Conditions,
    measurements: Sequence[Measurement],
    *,
    latency: LatencyRatio | None = None,
    sizes: Sizes | None = None,
) -> Baseline:
    """What was just measured, to be stored."""
    costs = {}
    if latency is not None:
        costs["latency"] = Cost(
            value=latency.ratio,
            low=latency.low,
            high=latency.high,
            noise_floor=latency.noise_floor,
            runtime=latency.runtime,
            threads=latency.threads,
        )
    if sizes is not None:
        costs["size"] = Cost(value=sizes.candidate_bytes)
        if sizes.candidate_peak is not None:
            costs["peak_memory"] = Cost(value=sizes.candidate_peak)
    ours = tuple(one for one in measurements if one.of == "candidate")
    return Baseline(conditions=conditions, measurements=ours, costs=costs)


def find(baseline: Baseline, metric: str, net: str | None) -> Measurement | None:
    """The candidate's stored values: to the ground truth; of a metric of tensors, to the reference."""
    order = {"ground_truth": 0, "reference": 1}
    matching = [one for one in baseline.measurements if (one.metric, one.net) == (metric, net)]
    return min(matching, key=lambda one: order[one.against], default=None)


def refusals(spec: GateSpec, comparison: Comparison, now: Measurement | LatencyRatio | None) -> list[str]:
    """Every reason not to compare a gate's numbers with the baseline's; empty where they may be compared.

    Args:
        spec: The gate.
        comparison: The baseline and today's conditions.
        now: Today's numbers of that metric, where there are any.
    """
    stored = comparison.stored
    cost = stored.costs.get(spec.metric)
    measurement = find(stored, spec.metric, net_of(spec))
    found = [*differing_conditions(stored.conditions, comparison.now, host=spec.metric == "latency")]
    if cost is None and measurement is None:
        others = sorted(
            {f"{m.metric} ({m.net})" if m.net else m.metric for m in stored.measurements} | set(stored.costs)
        )
        named = f"{spec.metric} ({net_of(spec)})" if net_of(spec) else spec.metric
        found.append(f"it has no {named}, only {', '.join(others) or 'nothing'}")
    if isinstance(now, Measurement) and measurement is not None:
        found += _differing("metric definition", measurement.definition, now.definition)
        found += _differing("weights of the net", _short(measurement.net_digest), _short(now.net_digest))
        found += _differing("number of images", len(measurement.values), len(now.values))
    if isinstance(now, LatencyRatio) and cost is not None:
        found += _differing("runtime", cost.runtime, now.runtime)
        found += _differing("threads", cost.threads, now.threads)
        if now.host != comparison.now.host:  # measured elsewhere than where the gate runs, as on a phone
            found += _differing("device", stored.conditions.host, now.host)
    return found


def differing_conditions(stored: Conditions, now: Conditions, *, host: bool = True) -> tuple[str, ...]:
    """Every condition that differs, named with both values; the host only where it matters."""
    found = [
        *_differing("data set", _short(stored.data), _short(now.data)),
        *_differing("resolution", stored.resolution, now.resolution),
        *_differing("reference model", _short(stored.reference), _short(now.reference)),
    ]
    return (*found, *_differing("host", stored.host, now.host)) if host else tuple(found)


def _differing(what: str, stored: object, now: object) -> Iterator[str]:
    if stored != now:
        yield f"another {what}: {stored} in the baseline, {now} now"


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "none"


def changes(old: Baseline | None, new: Baseline) -> tuple[tuple[str, float | None, float | None], ...]:
    """What an update would change: (what, before, after), means over the images; the conditions are not in it."""
    rows = []
    for name, measurement, before in _pairs(old, new):
        rows.append((name, _mean(before), _mean(measurement)))
    old_costs = old.costs if old else {}
    for name in sorted({*new.costs, *old_costs}):
        pair = [costs[name].value if name in costs else None for costs in (old_costs, new.costs)]
        rows.append((f"{name}, ratio to the reference" if name == "latency" else f"{name}, bytes", pair[0], pair[1]))
    return tuple(rows)


def named(baseline: Baseline) -> Iterator[tuple[str, Measurement]]:
    """Its measurements by the names that `changes` has for them."""
    for name, measurement, _ in _pairs(None, baseline):
        if measurement is not None:
            yield name, measurement


def _pairs(old: Baseline | None, new: Baseline) -> Iterator[tuple[str, Measurement | None, Measurement | None]]:
    keyed = [{(m.metric, m.net, m.against): m for m in (side.measurements if side else ())} for side in (old, new)]
    for key in dict.fromkeys((*keyed[1], *keyed[0])):
        metric, net, against = key
        named = f"{metric} ({net})" if net else metric
        yield f"{named}, mean to the {against.replace('_', ' ')}", keyed[1].get(key), keyed[0].get(key)


def _mean(measurement: Measurement | None) -> float | None:
    if measurement is None:
        return None
    value = stats.statistic(measurement.values, "mean", higher_is_better=measurement.higher_is_better)
    return value if math.isfinite(value) else None


def past(baseline: Baseline) -> Past:
    """A baseline as a later one remembers it."""
    return Past(conditions=baseline.conditions, values={name: value for name, _, value in changes(None, baseline)})


def remembered(history: History, replaced: Mapping[str, Baseline]) -> History:
    """A history with the baselines that are being replaced at its end; of the oldest, only KEPT stay."""
    new = {name: (past(was),) for name, was in replaced.items()}
    return {name: (*history.get(name, ()), *new.get(name, ()))[-KEPT:] for name in dict.fromkeys((*history, *new))}


def to_text(subjects: Mapping[str, Baseline], history: History | None = None) -> str:
    """A baseline file, one subject ("variant", "onnx") after the other: the same numbers, the same bytes."""
    rows = {
        name: {
            "conditions": asdict(one.conditions),
            "measurements": [compare.to_json(measurement) for measurement in one.measurements],
            "costs": {metric: asdict(cost) for metric, cost in one.costs.items()},
        }
        for name, one in subjects.items()
    }
    before = {name: [asdict(one) for one in updates] for name, updates in (history or {}).items() if updates}
    whole = {"schema": SCHEMA, "subjects": rows} | ({"history": before} if before else {})
    return json.dumps(whole, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read(path: Path) -> dict[str, Baseline]:
    """What `to_text` wrote, by subject.

    Raises:
        EvalError: there is no such file, or it is none of these; says how one is made.
    """
    return _read(path, lambda whole: {name: _parsed(row) for name, row in whole["subjects"].items()})


def read_history(path: Path) -> History:
    """The earlier updates that a baseline file remembers, by subject; none in files that never were updated.

    Raises:
        EvalError: as `read`.
    """
    return _read(
        path,
        lambda whole: {
            name: tuple(Past(conditions=Conditions(**one["conditions"]), values=dict(one["values"])) for one in updates)
            for name, updates in whole.get("history", {}).items()
        },
    )


def _read(path: Path, parse: Callable[[Any], Parsed]) -> Parsed:
    make = "make one with: mdcompress gate ... --update-baseline"
    if not path.is_file():
        raise EvalError(f"{path}: no such baseline; {make}")
    try:
        whole: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if whole["schema"] != SCHEMA:
            raise EvalError(f"{path}: schema {whole['schema']}, this version knows {SCHEMA}; {make}")
        return parse(whole)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, EvalError):
            raise
        raise EvalError(f"{path} is no baseline ({type(error).__name__}: {error}); {make}") from error


def _parsed(row: Mapping[str, Any]) -> Baseline:
    return Baseline(
        conditions=Conditions(**row["conditions"]),
        measurements=tuple(compare.from_json(one) for one in row["measurements"]),
        costs={name: Cost(**cost) for name, cost in row["costs"].items()},
    )
