"""Gates: what a measurement must reach, and the verdict with its reason.

A gate that cannot be judged has failed: NaN, a metric that was not measured, a latency or a size that nobody took.
Every gate on a drop or rise from the reference also puts a floor under the reference itself (`FLOORS`), because a drop
of 0 dB from a broken reference proves nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

from eval import metrics as registry
from eval import stats
from eval.compare import Against, Measurement, Metric, Of
from eval.errors import EvalError, unknown
from eval.metrics.latency import LatencyRatio

Kind = Literal["min", "max", "max_drop", "max_rise", "max_ratio"]
KINDS: tuple[Kind, ...] = ("min", "max", "max_drop", "max_rise", "max_ratio")
DEFAULT_NET = "st-alex"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSpec:
    """One gate. Exactly one of the five limits is given.

    `min` and `max` bound the measured value itself; `max_drop` and `max_rise` how much worse than the reference the
    candidate is, image by image, both measured to the ground truth; `max_ratio` candidate over reference.
    """

    metric: str
    net: str | None = None  # LPIPS only; None is DEFAULT_NET
    against: Against = "reference"
    of: Of = "candidate"
    statistic: str = "mean"  # of images; latency is always judged by its median, size by its total
    min: float | None = None
    max: float | None = None  # latency: ms; size: bytes
    max_drop: float | None = None
    max_rise: float | None = None
    max_ratio: float | None = None
    runtime: str | None = None  # latency: the runtime it must have been measured in


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a gate said. `value` is None where there is none: NaN, not measured, or an exact match (then `exact`)."""

    subject: str  # "variant", "onnx", ...
    metric: str
    net: str | None
    statistic: str
    of: Of
    against: Against | Literal["requested"]  # requested: a stage's promise, not a picture
    kind: Kind
    value: float | None
    limit: float
    passed: bool
    unit: str
    reason: str
    exact: bool = False
    low: float | None = None  # 95 % interval, where one was measured
    high: float | None = None


class Sizes(NamedTuple):
    """Bytes on disk of the two."""

    candidate_bytes: int
    reference_bytes: int


# What a reference must reach itself: the mean over the images, to the ground truth. Loose on purpose: it catches a
# broken reference (noise, a wrong range, black pictures), not a mediocre one.
FLOORS: Mapping[str, GateSpec] = {
    "psnr": GateSpec(metric="psnr", of="reference", against="ground_truth", min=20.0),
    "ssim": GateSpec(metric="ssim", of="reference", against="ground_truth", min=0.5),
    "lpips": GateSpec(metric="lpips", of="reference", against="ground_truth", max=0.35),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    """The number that a gate judges, or why there is none."""

    value: float = math.nan
    unit: str = ""
    statistic: str
    problem: str | None = None
    low: float | None = None
    high: float | None = None


def problems(spec: GateSpec) -> list[str]:
    """Everything that is wrong with a gate as it is written; empty where it can be judged."""
    if spec.metric not in registry.names():
        return [str(unknown("metric", spec.metric, registry.names()))]
    given = [kind for kind in KINDS if getattr(spec, kind) is not None]
    found = []
    if len(given) != 1:
        found.append(f"give exactly one of {', '.join(KINDS)}; found {', '.join(given) or 'none'}")
    found += [f"{kind} is {getattr(spec, kind)}: give a finite number" for kind in given if not _finite(spec, kind)]
    if spec.statistic not in stats.STATISTICS:
        found.append(f"no statistic {spec.statistic!r}; known: {', '.join(stats.STATISTICS)}")
    if spec.against not in ("reference", "ground_truth") or spec.of not in ("candidate", "reference"):
        found.append("against is reference or ground_truth, of is candidate or reference")
    elif (spec.of, spec.against) == ("reference", "reference"):
        found.append("of: reference needs against: ground_truth; the reference equals itself")
    image = registry.is_image_metric(spec.metric)
    found += _image_problems(spec, given) if image else _cost_problems(spec, given)
    return found


def judge(
    specs: Sequence[GateSpec],
    measurements: Sequence[Measurement],
    *,
    subject: str,
    latency: LatencyRatio | None = None,
    sizes: Sizes | tuple[int, int] | None = None,
) -> tuple[Verdict, ...]:
    """One verdict per gate, in order, then one per reference floor.

    Args:
        specs: The gates.
        measurements: Of all images (`compare.joined`).
        subject: What was measured: "variant", "onnx", ...
        latency: Where a gate is about latency.
        sizes: Bytes of the candidate and of the reference, where a gate is about size.

    Raises:
        EvalError: a gate cannot be judged as it is written.
    """
    wrong = [f"gates.{index}.{spec.metric}: {text}" for index, spec in enumerate(specs) for text in problems(spec)]
    if wrong:
        raise EvalError("\n".join(wrong))
    taken = None if sizes is None else Sizes(*sizes)
    verdicts = []
    for spec in (*specs, *floors(specs)):
        if spec.metric == "latency":
            finding = _latency_finding(spec, latency)
        elif spec.metric == "size":
            finding = _size_finding(spec, taken)
        else:
            finding = _image_finding(spec, measurements)
        verdicts.append(_verdict(spec, finding, subject=subject, latency=latency))
    return tuple(verdicts)


def floors(specs: Iterable[GateSpec]) -> tuple[GateSpec, ...]:
    """The gates on the reference itself that `judge` adds: one per metric and net that is gated against the reference.

    A gate `of: reference` that the user wrote for the same metric and net takes the built-in floor's place.
    """
    specs = tuple(specs)
    own = {(spec.metric, _net(spec)) for spec in specs if spec.of == "reference"}
    compared = [(spec.metric, _net(spec)) for spec in specs if _kind(spec) in ("max_drop", "max_rise")]
    wanted = [key for key in dict.fromkeys(compared) if key not in own and key[0] in FLOORS]
    return tuple(replace(FLOORS[name], net=net) for name, net in wanted)


def metrics_of(specs: Iterable[GateSpec]) -> tuple[Metric, ...]:
    """The image metrics that have to be measured to judge these gates, each once."""
    wanted = [Metric(name=spec.metric, net=_net(spec)) for spec in specs if registry.is_image_metric(spec.metric)]
    return tuple(dict.fromkeys(wanted))


def to_json(verdict: Verdict) -> dict[str, Any]:
    """A record for verdicts.json. Holds no NaN and no infinity."""
    record = {field.name: getattr(verdict, field.name) for field in fields(verdict)}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }


def from_json(record: Mapping[str, Any]) -> Verdict:
    """What `to_json` wrote.

    Raises:
        EvalError: the record is not of that form.
    """
    known = {field.name for field in fields(Verdict)}
    if set(record) != known:
        raise EvalError(f"not a verdict: keys {sorted(set(record) ^ known)} are missing or unknown")
    return Verdict(**record)


def _finite(spec: GateSpec, kind: str) -> bool:
    value = getattr(spec, kind)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _image_problems(spec: GateSpec, given: Sequence[Kind]) -> list[str]:
    module = registry.get(spec.metric)
    allowed = ("min", "max_drop") if module.HIGHER_IS_BETTER else ("max", "max_rise")
    better = "higher" if module.HIGHER_IS_BETTER else "lower"
    found = [
        f"{kind} does not fit {spec.metric}, where {better} is better; use {' or '.join(allowed)}"
        for kind in given
        if kind not in allowed
    ]
    relative = [kind for kind in given if kind in ("max_drop", "max_rise")]
    if relative and (spec.of, spec.against) != ("candidate", "reference"):
        found.append(f"{relative[0]} compares the candidate with the reference: use against: reference")
    if spec.net is not None and not module.NEEDS_NET:
        found.append(f"{spec.metric} has no net; leave `net` out")
    elif module.NEEDS_NET and _net(spec) not in module.NETS:
        found.append(f"no {spec.metric} net {spec.net!r}; known: {', '.join(module.NETS)}")
    if spec.runtime is not None:
        found.append("runtime belongs to latency gates only")
    return found


def _cost_problems(spec: GateSpec, given: Sequence[Kind]) -> list[str]:
    found = [
        f"{kind} does not fit {spec.metric}; use max_ratio or max" for kind in given if kind not in ("max", "max_ratio")
    ]
    found += [f"{kind} must be above 0" for kind in given if _finite(spec, kind) and getattr(spec, kind) <= 0]
    if (spec.of, spec.against) != ("candidate", "reference"):
        found.append(f"{spec.metric} is taken of the candidate, against: reference")
    if spec.statistic not in ("mean", "median"):
        found.append(f"{spec.metric} has no {spec.statistic}; leave `statistic` out")
    if spec.net is not None:
        found.append(f"{spec.metric} has no net; leave `net` out")
    if spec.runtime is not None and spec.metric != "latency":
        found.append("runtime belongs to latency gates only")
    return found


def _kind(spec: GateSpec) -> Kind:
    return next(kind for kind in KINDS if getattr(spec, kind) is not None)


def _net(spec: GateSpec) -> str | None:
    return spec.net or (DEFAULT_NET if spec.metric == "lpips" else None)


def _image_finding(spec: GateSpec, measurements: Sequence[Measurement]) -> _Finding:
    module = registry.get(spec.metric)
    relative = _kind(spec) in ("max_drop", "max_rise")
    wanted = (("candidate", "ground_truth"), ("reference", "ground_truth")) if relative else ((spec.of, spec.against),)
    found: list[Measurement] = []
    for of, against in wanted:
        key = (spec.metric, _net(spec), of, against)
        matching = [one for one in measurements if (one.metric, one.net, one.of, one.against) == key]
        if len(matching) != 1 or not matching[0].values:
            why = "was measured more than once" if len(matching) > 1 else "was not measured"
            return _Finding(statistic=spec.statistic, unit=module.UNIT, problem=f"{_named(spec)} of the {of} {why}")
        found += matching
    if len({len(one.values) for one in found}) != 1:
        return _Finding(statistic=spec.statistic, unit=module.UNIT, problem="the two sets differ in their images")
    if relative:
        sign = 1.0 if module.HIGHER_IS_BETTER else -1.0
        values = [_lost(theirs, ours, sign) for ours, theirs in zip(*(one.values for one in found), strict=True)]
        value = stats.statistic(values, spec.statistic, higher_is_better=False)
    else:
        value = stats.statistic(found[0].values, spec.statistic, higher_is_better=module.HIGHER_IS_BETTER)
    texts = "; ".join(dict.fromkeys(one.problem for one in found if one.problem))
    unmeasured = sum(any(math.isnan(value) for value in pair) for pair in zip(*(m.values for m in found), strict=True))
    problem = None
    if math.isnan(value):
        problem = f"{unmeasured} of {len(found[0].values)} images could not be measured: {texts or 'NaN'}"
    return _Finding(value=value, statistic=spec.statistic, unit=module.UNIT, problem=problem)


def _lost(reference: float, candidate: float, sign: float) -> float:
    """How much worse the candidate is on one image; 0 where both are exact."""
    return 0.0 if reference == candidate else sign * (reference - candidate)


def _latency_finding(spec: GateSpec, latency: LatencyRatio | None) -> _Finding:
    unit = "" if _kind(spec) == "max_ratio" else "ms"
    if latency is None:
        return _Finding(statistic="median", unit=unit, problem="latency was not measured")
    if spec.runtime is not None and not latency.runtime.startswith(spec.runtime):
        text = f"latency was measured in {latency.runtime}, not in {spec.runtime}"
        return _Finding(statistic="median", unit=unit, problem=text)
    if _kind(spec) == "max":
        median = stats.statistic(latency.candidate_ms, "median", higher_is_better=False)
        return _Finding(value=median, statistic="median", unit=unit)
    return _Finding(value=latency.ratio, statistic="median", unit=unit, low=latency.low, high=latency.high)


def _size_finding(spec: GateSpec, sizes: Sizes | None) -> _Finding:
    unit = "" if _kind(spec) == "max_ratio" else "bytes"
    if sizes is None:
        return _Finding(statistic="total", unit=unit, problem="the sizes were not taken")
    if min(sizes) <= 0:
        return _Finding(
            statistic="total", unit=unit, problem=f"sizes of {sizes[0]} and {sizes[1]} bytes: an empty file"
        )
    value = sizes.candidate_bytes / (sizes.reference_bytes if unit == "" else 1)
    return _Finding(value=value, statistic="total", unit=unit)


def _verdict(spec: GateSpec, finding: _Finding, *, subject: str, latency: LatencyRatio | None) -> Verdict:
    kind = _kind(spec)
    limit = float(getattr(spec, kind))
    if finding.problem is not None or math.isnan(finding.value):
        passed, reason = False, f"failed: {finding.problem or 'NaN was measured'}"
    elif spec.metric == "latency" and kind == "max_ratio" and latency is not None:
        passed, reason = _within_noise(latency, limit)
    else:
        passed = finding.value >= limit if kind == "min" else finding.value <= limit
        reason = _sentence(spec, finding, limit=limit, passed=passed)
    return Verdict(
        subject=subject,
        metric=spec.metric,
        net=_net(spec),
        statistic=finding.statistic,
        of=spec.of,
        against=spec.against,
        kind=kind,
        value=finding.value if math.isfinite(finding.value) else None,
        limit=limit,
        passed=passed,
        unit=finding.unit,
        reason=reason,
        exact=kind == "min" and finding.value == math.inf,
        low=finding.low,
        high=finding.high,
    )


def _within_noise(latency: LatencyRatio, limit: float) -> tuple[bool, str]:
    """Judge a ratio by its interval.

    Passed where all of it is within the limit, failed where none is. Where the limit lies inside, the ratio decides,
    but only if the interval is as narrow as this host can make it: half of it no wider than the A/A noise floor.
    """
    seen = f"ratio {latency.ratio:.3f} (95 % {latency.low:.3f} to {latency.high:.3f}, {latency.pairs} pairs)"
    half = (latency.high - latency.low) / 2
    if not all(map(math.isfinite, (latency.ratio, half, latency.noise_floor))):
        return False, f"failed: {seen} is not a measurement"
    if latency.high <= limit:
        return True, f"{seen} is within {limit:g}"
    if latency.low > limit:
        return False, f"failed: {seen} is above {limit:g}; the candidate is too slow on {latency.host}"
    noise = f"the limit {limit:g} lies inside the interval; this host's noise floor is {latency.noise_floor:.3f}"
    if latency.ratio <= limit and half <= latency.noise_floor:
        return True, f"{seen}: {noise}, so the ratio decides"
    return False, f"failed: {seen}: {noise}; measure longer, or on a quieter host"


def _sentence(spec: GateSpec, finding: _Finding, *, limit: float, passed: bool) -> str:
    kind = _kind(spec)
    unit = f" {finding.unit}" if finding.unit else ""
    what = {
        "max_drop": f"drop of {_named(spec)} from the reference",
        "max_rise": f"rise of {_named(spec)} over the reference",
        "max_ratio": f"{spec.metric} relative to the reference",
    }.get(kind, f"{_named(spec)} of the {spec.of}" + ("" if spec.metric in ("latency", "size") else _to(spec)))
    bound = "at least" if kind == "min" else "at most"
    value = "exact" if kind == "min" and finding.value == math.inf else f"{finding.value:.5g}{unit}"
    text = f"{finding.statistic} {what}: {value}, {bound} {limit:g}{unit} allowed"
    if passed:
        return text
    if spec.of == "reference":
        return f"failed: {text}. The reference itself is broken: check its checkpoint, its range and its colours"
    return f"failed: {text}. {_advice(spec)}"


def _advice(spec: GateSpec) -> str:
    if spec.metric in ("latency", "size"):
        return "Compress further, or raise the limit"
    return "Look at the worst images in the report; compress less, distil longer, or loosen the limit"


def _named(spec: GateSpec) -> str:
    net = _net(spec)
    return f"{spec.metric} ({net})" if net else spec.metric


def _to(spec: GateSpec) -> str:
    return " to the ground truth" if spec.against == "ground_truth" else " to the reference"
