"""Where a run's files stand among the zoo's entries of the same component, as the report draws it.

An entry is compared only where its card says that it was measured on the same inputs by the same definition, and its
latency only where host and runtime are this run's; what is left out is named with its reason.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from compress import zoo as zoos
from compress.comparable import EVALUATED, QUALITIES, TIMING, Facts, Quality, differing, number, quality_of
from compress.errors import UserError
from compress.evaluation import Measured
from compress.export_stage import Exported
from compress.plan import Plan
from eval.compare import Measurement
from eval.report import records


def conditions(measured: Measured, measurements: Sequence[Measurement]) -> dict[str, str]:
    """The facts by which two cards are known to be comparable: inputs, and the definition of their quality."""
    found, quality = _quality(measurements)
    return {} if found is None else {EVALUATED: measured.basis.digest, quality.definition: found.definition}


def trade_off(plan: Plan, measured: Measured, exported: Sequence[Exported], zoo: Path) -> records.TradeOff | None:
    """The files of this run, the teacher's, and the zoo's entries; None where no file was measured."""
    found, quality = _quality(exported[0].measurements) if exported else (None, QUALITIES[0])
    if found is None:
        return None
    ours = [contender for item in exported for contender in _of_run(item)]
    others, left_out = _of_zoo(plan, measured, exported, zoo)
    return records.TradeOff(
        quality=quality.words, unit=quality.unit, contenders=(*ours, *others), left_out=tuple(left_out)
    )


def _of_run(item: Exported) -> tuple[records.Contender, ...]:
    taken = item.latency
    runtime = "" if taken is None else taken.runtime
    return (
        records.Contender(
            name=f"uncompressed, {item.format}",
            group="reference",
            quality=_mean(_quality(item.measurements, "reference")[0]),
            bytes=item.sizes.reference_bytes,
            ratio=None if taken is None else 1.0,
            runtime=runtime,
        ),
        records.Contender(
            name=f"this run, {item.format}",
            group="run",
            quality=_mean(_quality(item.measurements)[0]),
            bytes=item.sizes.candidate_bytes,
            ratio=None if taken is None else taken.ratio,
            runtime=runtime,
        ),
    )


def _of_zoo(
    plan: Plan, measured: Measured, exported: Sequence[Exported], zoo: Path
) -> tuple[list[records.Contender], list[tuple[str, str]]]:
    """The entries that may be compared, and the names of the others with the reason."""
    if not (zoo / "index.json").is_file():
        return [], []
    try:
        entries = [e for e in zoos.list_entries(zoo) if e.component == plan.recipe.component]
    except UserError as error:
        return [], [("the zoo", str(error))]
    wanted, timing = conditions(measured, exported[0].measurements), _timing(exported)
    kept, left_out = [], []
    for entry in entries:
        if entry.name == plan.recipe.name:  # what this run is about to replace, or has put there before
            continue
        reason = differing(wanted, entry.summary)
        if reason:
            left_out.append((entry.name, reason))
            continue
        timed = differing(timing, entry.summary)
        if timed:
            left_out.append((entry.name, f"in the latency chart: {timed}"))
        kept.append(_contender(entry.name, entry.summary, timed=not timed))
    return kept, left_out


def _contender(name: str, facts: Facts, *, timed: bool) -> records.Contender:
    quality, size = quality_of(facts), number(facts.get("bytes"))
    return records.Contender(
        name=name,
        group="zoo",
        quality=None if quality is None else number(facts[quality.mean]),
        bytes=None if size is None else int(size),
        ratio=number(facts.get("latency_ratio")) if timed else None,
        runtime=str(facts.get("latency_runtime", "")),
    )


def _timing(exported: Sequence[Exported]) -> dict[str, str]:
    """Where and in what the first of the run's files that was timed ran; no entry is like a run without one."""
    taken = next((item.latency for item in exported if item.latency is not None), None)
    return dict(zip(TIMING, ("", "") if taken is None else (taken.host, taken.runtime), strict=True))


def _quality(measurements: Sequence[Measurement], of: str = "candidate") -> tuple[Measurement | None, Quality]:
    """What stands for the quality, and what it is called."""
    for quality in QUALITIES:
        for m in measurements:
            if (m.metric, m.of, m.against) == (quality.metric, of, quality.against):
                return m, quality
    return None, QUALITIES[0]


def _mean(measurement: Measurement | None) -> float | None:
    mean = statistics.fmean(measurement.values) if measurement and measurement.values else math.nan
    return mean if math.isfinite(mean) else None
