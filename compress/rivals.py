"""Where a run's files stand among the zoo's entries of the same component, as the report draws it.

An entry is compared only where its card says that it was measured on the same inputs by the same definition, and its
latency only where host, runtime and threads are this run's; what is left out is named with its reason.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress import zoo as zoos
from compress.errors import UserError
from compress.evaluation import Measured
from compress.export_stage import Exported
from compress.plan import Plan
from eval.compare import Measurement
from eval.report import records

# what may stand for quality, the first that was measured: metric, against what, as the axis is called
QUALITIES = (
    ("psnr", "ground_truth", "PSNR to ground truth, dB"),
    ("sqnr", "reference", "SQNR to the uncompressed model, dB"),
    ("cosine", "reference", "Cosine to the uncompressed model"),
)
EVALUATED = "evaluation_sha256"  # the fact of a card that says on which inputs its entry was measured


def conditions(measured: Measured, measurements: Sequence[Measurement]) -> dict[str, str]:
    """The facts by which two cards are known to be comparable: inputs, and the definition of their quality."""
    found = _quality(measurements)
    return {} if found is None else {EVALUATED: measured.basis.digest, f"{found.metric}_definition": found.definition}


def trade_off(plan: Plan, measured: Measured, exported: Sequence[Exported], zoo: Path) -> records.TradeOff | None:
    """The files of this run, the teacher's, and the zoo's entries; None where no file was measured."""
    quality = next((found for item in exported if (found := _quality(item.measurements))), None)
    if quality is None:
        return None
    name = next(words for metric, _, words in QUALITIES if metric == quality.metric)
    ours = [contender for item in exported for contender in _of_run(item)]
    others, left_out = _of_zoo(plan, measured, exported, zoo)
    return records.TradeOff(quality=name, unit=quality.unit, contenders=(*ours, *others), left_out=tuple(left_out))


def _of_run(item: Exported) -> tuple[records.Contender, ...]:
    return (
        records.Contender(
            name=f"uncompressed, {item.format}",
            group="reference",
            quality=_mean(_quality(item.measurements, "reference")),
            bytes=item.sizes.reference_bytes,
            ratio=1.0,
            runtime=item.latency.runtime,
        ),
        records.Contender(
            name=f"this run, {item.format}",
            group="run",
            quality=_mean(_quality(item.measurements)),
            bytes=item.sizes.candidate_bytes,
            ratio=item.latency.ratio,
            runtime=item.latency.runtime,
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
    wanted = conditions(measured, exported[0].measurements)
    kept, left_out = [], []
    for entry in entries:
        if entry.name == plan.recipe.name:  # what this run is about to replace, or has put there before
            continue
        reason = _differing(wanted, entry.summary)
        if reason:
            left_out.append((entry.name, reason))
            continue
        timed = _differing(_timing(exported), entry.summary)
        if timed:
            left_out.append((entry.name, f"in the latency chart: {timed}"))
        kept.append(_contender(entry.name, entry.summary, wanted, timed=not timed))
    return kept, left_out


def _contender(name: str, facts: Mapping[str, Any], wanted: Mapping[str, str], *, timed: bool) -> records.Contender:
    metric = next(key.removesuffix("_definition") for key in wanted if key != EVALUATED)
    return records.Contender(
        name=name,
        group="zoo",
        quality=_number(facts.get(f"{metric}_mean")),
        bytes=int(facts["bytes"]) if _number(facts.get("bytes")) is not None else None,
        ratio=_number(facts.get("latency_ratio")) if timed else None,
        runtime=str(facts.get("latency_runtime", "")),
    )


def _timing(exported: Sequence[Exported]) -> dict[str, str]:
    first = exported[0].latency
    return {"latency_host": first.host, "latency_runtime": first.runtime}


def _differing(wanted: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    """Every fact that is missing or another; "" where all are the same."""
    words = {EVALUATED: "inputs", "latency_host": "host", "latency_runtime": "runtime"}
    missing = [words.get(key, "definition") for key in wanted if key not in facts]
    other = [words.get(key, "definition") for key in wanted if key in facts and facts[key] != wanted[key]]
    found = [f"measured with another {name}" if name != "inputs" else "measured on other inputs" for name in other]
    return "; ".join(found + [f"its card names no {name}" for name in missing])


def _quality(measurements: Sequence[Measurement], of: str = "candidate") -> Measurement | None:
    for metric, against, _ in QUALITIES:
        for m in measurements:
            if (m.metric, m.of, m.against) == (metric, of, against):
                return m
    return None


def _mean(measurement: Measurement | None) -> float | None:
    mean = statistics.fmean(measurement.values) if measurement and measurement.values else math.nan
    return mean if math.isfinite(mean) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
