"""Gates: what a measurement must reach, and the verdict with its reason.

A gate that cannot be judged has failed: NaN, a metric that was not measured, a latency or a size that nobody took.
Every gate on a drop or rise from the reference also puts a floor under the reference itself (`FLOORS`), because a drop
of 0 dB from a broken reference proves nothing; and where pictures were judged, one more verdict (`SANITY`) says whether
any of them looks broken, whatever its numbers are.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from eval import gate_findings as findings
from eval import metrics as registry
from eval.baseline import Comparison
from eval.compare import Measurement, Metric
from eval.errors import EvalError
from eval.gate_findings import Finding, named
from eval.gate_records import (
    DEFAULT_NET,
    KINDS,
    GateSpec,
    Kind,
    Sizes,
    Verdict,
    from_json,
    net_of,
    to_json,
)
from eval.gate_rules import problems
from eval.latency_outcome import outcome, outcome_ms
from eval.metrics.latency import LatencyRatio

__all__ = [
    "DEFAULT_NET",
    "FLOORS",
    "KINDS",
    "SANITY",
    "GateSpec",
    "Kind",
    "Sizes",
    "Verdict",
    "floors",
    "from_json",
    "judge",
    "latency_limits",
    "metrics_of",
    "problems",
    "to_json",
]

SANITY = "sanity"

# What a reference must reach itself: the mean over the images, to the ground truth. Loose on purpose: it catches a
# broken reference (noise, a wrong range, black pictures), not a mediocre one.
FLOORS: Mapping[str, GateSpec] = {
    "psnr": GateSpec(metric="psnr", of="reference", against="ground_truth", min=20.0),
    "ssim": GateSpec(metric="ssim", of="reference", against="ground_truth", min=0.5),
    "ms_ssim": GateSpec(metric="ms_ssim", of="reference", against="ground_truth", min=0.7),
    "lpips": GateSpec(metric="lpips", of="reference", against="ground_truth", max=0.35),
    "colour_shift": GateSpec(metric="colour_shift", of="reference", against="ground_truth", max=8.0),
    "clip_rate": GateSpec(metric="clip_rate", of="reference", against="ground_truth", max=0.1),
    "grid": GateSpec(metric="grid", of="reference", against="ground_truth", max=6.0),
    "task_score": GateSpec(metric="task_score", of="reference", against="ground_truth", min=0.2),
}


def judge(
    specs: Sequence[GateSpec],
    measurements: Sequence[Measurement],
    *,
    subject: str,
    latency: LatencyRatio | None = None,
    sizes: Sizes | tuple[int, int] | None = None,
    baseline: Comparison | None = None,
) -> tuple[Verdict, ...]:
    """One verdict per limit, in order; then one per reference floor; then the sanity of the pictures.

    Args:
        specs: The gates.
        measurements: Of all images (`compare.joined`).
        subject: What was measured: "variant", "onnx", ...
        latency: Where a gate is about latency.
        sizes: Bytes of the candidate and of the reference, where a gate is about size or memory.
        baseline: What was stored, where a gate is against it.

    Raises:
        EvalError: a gate cannot be judged as it is written.
    """
    wrong = [f"gates.{index}.{spec.metric}: {text}" for index, spec in enumerate(specs) for text in problems(spec)]
    if wrong:
        raise EvalError("\n".join(wrong))
    taken = None if sizes is None else Sizes(*sizes)
    verdicts = []
    for spec in (*specs, *floors(specs)):
        for kind in _kinds(spec):
            if spec.metric == "latency":
                verdicts.append(_latency_verdict(spec, kind, latency, subject=subject, baseline=baseline))
            elif registry.is_sampled(spec.metric):
                finding = findings.of_samples(spec, kind, measurements, baseline)
                verdicts.append(_verdict(spec, kind, finding, subject=subject))
            else:
                verdicts.append(_verdict(spec, kind, findings.of_bytes(spec, kind, taken, baseline), subject=subject))
    return (*verdicts, *_sanity(specs, measurements, subject))


def floors(specs: Iterable[GateSpec]) -> tuple[GateSpec, ...]:
    """The gates on the reference itself that `judge` adds: one per metric and net that is gated against the reference.

    A gate `of: reference` that the user wrote for the same metric and net takes the built-in floor's place.
    """
    specs = tuple(specs)
    own = {(spec.metric, net_of(spec)) for spec in specs if spec.of == "reference"}
    relative = [spec for spec in specs if {"max_drop", "max_rise"} & set(_kinds(spec)) and spec.against == "reference"]
    wanted = [(spec.metric, net_of(spec)) for spec in relative]
    wanted = [key for key in dict.fromkeys(wanted) if key not in own and key[0] in FLOORS]
    return tuple(replace(FLOORS[name], net=net) for name, net in wanted)


def metrics_of(specs: Iterable[GateSpec], takes: registry.Takes = "images") -> tuple[Metric, ...]:
    """The metrics of pictures, or of tensors, that have to be measured to judge these gates, each once."""
    wanted = [Metric(name=spec.metric, net=net_of(spec)) for spec in specs if registry.takes(spec.metric) == takes]
    return tuple(dict.fromkeys(wanted))


def latency_limits(specs: Iterable[GateSpec]) -> tuple[float, ...]:
    """The ratios that a measurement has to tell apart to judge these gates; () where it has to be precise anyway."""
    gated = [spec for spec in specs if spec.metric == "latency"]
    if any(spec.max_ratio is None or spec.max_gain is not None or spec.against == "baseline" for spec in gated):
        return ()
    return tuple(sorted({spec.max_ratio for spec in gated if spec.max_ratio is not None}))


def _kinds(spec: GateSpec) -> tuple[Kind, ...]:
    """The limits of a gate: one, or the two sides of a window."""
    given = tuple(kind for kind in KINDS if getattr(spec, kind) is not None)
    return given if spec.max_gain is None else (*given, "max_gain")


def _sanity(specs: Sequence[GateSpec], measurements: Sequence[Measurement], subject: str) -> tuple[Verdict, ...]:
    """Whether any picture of the candidate looks broken, whatever its numbers say."""
    of_images = {spec.metric for spec in specs if registry.is_image_metric(spec.metric) and spec.of == "candidate"}
    ours = [one for one in measurements if one.of == "candidate" and one.metric in of_images and one.values]
    if not ours:
        return ()
    worst = max(ours, key=lambda one: one.broken)
    count = len(worst.values)
    text = f"{worst.broken} of {count} images look broken"
    return (
        Verdict(
            subject=subject,
            metric=SANITY,
            net=None,
            statistic="images that look broken",
            of="candidate",
            against="reference",
            kind="max",
            value=float(worst.broken),
            limit=0.0,
            passed=worst.broken == 0,
            unit="images",
            reason=f"failed: {text}: {worst.problem or 'not a number'}" if worst.broken else text,
        ),
    )


def _latency_verdict(
    spec: GateSpec, kind: Kind, latency: LatencyRatio | None, *, subject: str, baseline: Comparison | None
) -> Verdict:
    refused = ""
    if spec.against == "baseline":
        latency, refused = findings.latency_to_baseline(spec, latency, baseline)
    finding = findings.of_latency(spec, kind, latency)
    if refused:
        finding = replace(finding, problem=refused)
    verdict = _verdict(spec, kind, finding, subject=subject)
    if kind == "max_gain" or latency is None or finding.problem is not None or math.isnan(finding.value):
        return verdict
    found = outcome(latency, verdict.limit) if kind == "max_ratio" else outcome_ms(latency, verdict.limit)
    if found.state == "undecided":
        passed = spec.undecided == "pass"
        policy = "passed, as this gate says of what is undecided" if passed else "failed, as is everything undecided"
        return replace(verdict, passed=passed, undecided=True, reason=f"undecided: {found.text} ({policy})")
    passed = found.state == "pass"
    return replace(verdict, passed=passed, reason=found.text if passed else f"failed: {found.text}")


def _verdict(spec: GateSpec, kind: Kind, finding: Finding, *, subject: str) -> Verdict:
    limit = float(getattr(spec, kind))
    if finding.problem is not None or math.isnan(finding.value):
        passed, reason = False, f"failed: {finding.problem or 'NaN was measured'}"
    else:
        passed = finding.value >= limit if kind == "min" else finding.value <= limit
        reason = _sentence(spec, kind, finding, limit=limit, passed=passed)
    return Verdict(
        subject=subject,
        metric=spec.metric,
        net=net_of(spec),
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
        definition=finding.definition or registry.get(spec.metric).DEFINITION,
        net_digest=finding.net_digest,
    )


def _sentence(spec: GateSpec, kind: Kind, finding: Finding, *, limit: float, passed: bool) -> str:
    unit = f" {finding.unit}" if finding.unit else ""
    bound = "at least" if kind == "min" else "at most"
    value = "exact" if kind == "min" and finding.value == math.inf else f"{finding.value:.5g}{unit}"
    text = f"{finding.statistic} {_what(spec, kind)}: {value}, {bound} {limit:g}{unit} allowed"
    text += _spread(spec, kind, finding, limit)
    if passed:
        return text
    looks = f" {finding.looks}." if finding.looks else ""
    if spec.of == "reference":
        return f"failed: {text}.{looks} The reference itself is broken: check its checkpoint, its range and its colours"
    return f"failed: {text}.{looks} {_advice(spec, kind)}"


def _what(spec: GateSpec, kind: Kind) -> str:
    other = "the baseline" if spec.against == "baseline" else "the reference"
    sampled = registry.is_sampled(spec.metric)
    to = (" to the ground truth" if spec.against == "ground_truth" else " to the reference") if sampled else ""
    return {
        "max_drop": f"drop of {named(spec)} from {other}",
        "max_rise": f"rise of {named(spec)} over {other}",
        "max_ratio": f"{spec.metric} relative to {other}",
        "max_gain": f"gain of {named(spec)} over {other}",
    }.get(kind, f"{named(spec)} of the {spec.of}{to}")


def _spread(spec: GateSpec, kind: Kind, finding: Finding, limit: float) -> str:
    """The interval over images, or other samples, and what it leaves open."""
    if finding.low is None or finding.high is None or not finding.images:
        return ""
    samples = "images" if registry.is_image_metric(spec.metric) else "samples"
    text = f"; 95 % {finding.low:.4g} to {finding.high:.4g} over {finding.images} {samples}"
    if kind in ("max_drop", "max_rise", "max_gain") and finding.low <= 0 <= finding.high:
        text += ", too small to tell from no change"
    if finding.low < limit < finding.high:
        text += f", the limit lies inside: more {samples} would tell"
    return text


def _advice(spec: GateSpec, kind: Kind) -> str:
    higher = registry.get(spec.metric).HIGHER_IS_BETTER
    if kind in ("max_gain", "max" if higher else "min"):
        return "Too good to be believed: check that the candidate is what it should be, then widen the window"
    if not registry.is_sampled(spec.metric):
        return "Compress further, or raise the limit"
    if not registry.is_image_metric(spec.metric):
        return "Look at the samples in the report; compress less, calibrate on more, or loosen the limit"
    return "Look at the worst images in the report; compress less, distil longer, or loosen the limit"
