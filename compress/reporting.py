"""What a run measured, as the records that the HTML report draws."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from compress import layer_rows, report_pictures, rivals
from compress.evaluation import Basis, Job, Measured, StageSummary
from compress.export_stage import Exported
from compress.records import Variant
from compress.report_pictures import values_of
from compress.runs import environment
from eval import gates
from eval.compare import Measurement
from eval.report import page, records


def write_report(
    job: Job,
    variant: Variant,
    measured: Measured,
    verdicts: Sequence[gates.Verdict],
    exported: Sequence[Exported],
    zoo: Path,
) -> Path:
    """Draw report.html; pictures and latencies are those of the first exported file, else of the torch variant.

    Args:
        job: What was run.
        variant: What came out.
        measured: Its stages.
        verdicts: What the gates say.
        exported: Its files.
        zoo: The folder whose entries of the same component it is compared with.
    """
    plan, run = job.plan, job.run
    shipped = exported[0] if exported else None
    measurements = shipped.measurements if shipped else measured.final.measurements

    made = shipped.outputs if shipped else measured.made
    strip = report_pictures.strip(measured.basis, measurements, made)
    costs = (measured.final.cost, measured.stages[0].cost)
    report = records.Report(
        title=plan.recipe.name,
        component=plan.recipe.component,
        passed=all(v.passed for v in verdicts),
        verdicts=tuple(verdict_row(v) for v in verdicts),
        facts=_facts(measured, shipped),
        stages=tuple(_stage_row(s, _teacher_ms(measured)) for s in measured.stages),
        lpips_net=next((m.net for m in measurements if m.metric == "lpips"), None),
        achieved=tuple(
            records.AchievedRow(
                stage=stage.method,
                what=a.what,
                requested=a.requested,
                achieved=a.achieved,
                unit=a.unit,
                met=a.met,
            )
            for stage in variant.lineage
            for a in stage.achieved
        ),
        skipped=tuple(
            records.SkippedRow(stage=stage.method, module=s.name, reason=s.reason)
            for stage in variant.lineage
            for s in stage.skipped
        ),
        pictures=report_pictures.in_full(measured.basis, measurements, made),
        strip=strip,
        drawn=report_pictures.drawn(measured),
        strip_left_out=len(measured.basis.names) - len(strip) if strip else 0,
        trade_off=rivals.trade_off(plan, measured, exported, zoo),
        layers=layer_rows.layer_rows(variant.module, *costs),
        layers_removed=layer_rows.removed(*costs),
        tables=tuple(
            records.StageTable(stage=stage.method, title=table.title, columns=table.columns, rows=table.rows)
            for stage in variant.lineage
            for table in stage.tables
        ),
        latency=_latency(measured, shipped),
        per_image=per_sample(measured.basis, measurements),
        environment=environment(),
        notes=(*job.feed.notes, *(f"{stage.method}: {note}" for stage in variant.lineage for note in stage.notes)),
        recipe=(run.root / "recipe.yaml").read_text(encoding="utf-8"),
    )
    return page.write(report, run.root / "report.html")


def mean_of(measurements: Sequence[Measurement], metric: str, of: str = "candidate") -> float | None:
    """The mean of one metric as `values_of` has it; None where it was not measured or is not a number."""
    found = values_of(measurements, metric, of)
    mean = statistics.fmean(found) if found else math.nan
    return mean if math.isfinite(mean) else None


def verdict_row(v: gates.Verdict) -> records.VerdictRow:
    """A verdict as the report draws it."""
    shown = {field.name for field in fields(records.VerdictRow)}
    return records.VerdictRow(**{name: value for name, value in asdict(v).items() if name in shown})


def _facts(measured: Measured, shipped: Exported | None) -> tuple[records.Fact, ...]:
    teacher, final = measured.stages[0], measured.final
    facts = [
        records.Fact(
            label="Parameters", unit="parameters", reference=teacher.cost.parameters, variant=final.cost.parameters
        ),
        records.Fact(label="MACs per image", unit="MACs", reference=teacher.cost.macs, variant=final.cost.macs),
    ]
    if shipped:
        sizes = shipped.sizes
        facts.append(
            records.Fact(
                label=f"{shipped.format.upper()} file",
                unit="bytes",
                reference=sizes.reference_bytes,
                variant=sizes.candidate_bytes,
            )
        )
        if shipped.latency is not None:
            facts.append(
                records.Fact(
                    label=f"Latency, {shipped.latency.runtime}",
                    unit="ms",
                    reference=statistics.median(shipped.latency.reference_ms),
                    variant=statistics.median(shipped.latency.candidate_ms),
                )
            )
    measurements = shipped.measurements if shipped else final.measurements
    return (*facts, *quality_facts(measurements))


def quality_facts(measurements: Sequence[Measurement]) -> tuple[records.Fact, ...]:
    """The means of what is measured of every component of this sort."""
    facts = []
    for metric, unit, label in (
        ("psnr", "dB", "PSNR to ground truth"),
        ("lpips", "", "LPIPS to ground truth"),
        ("sqnr", "dB", "SQNR to the reference"),
        ("cosine", "", "Cosine to the reference"),
    ):
        ours, theirs = mean_of(measurements, metric), mean_of(measurements, metric, "reference")
        if ours is not None:
            facts.append(records.Fact(label=label, unit=unit, reference=theirs, variant=ours))
    return tuple(facts)


def _teacher_ms(measured: Measured) -> float | None:
    """The teacher's median latency in torch, over all the pairs that it was part of."""
    samples = [ms for stage in measured.stages if stage.latency for ms in stage.latency.reference_ms]
    return statistics.median(samples) if samples else None


def _stage_row(stage: StageSummary, teacher_ms: float | None) -> records.StageRow:
    """A stage's latency is its paired ratio times the teacher's median, so that stages measured apart compare."""
    ratio = 1.0 if stage.latency is None else stage.latency.ratio
    return records.StageRow(
        method=stage.method,
        config=stage.config,
        seconds=stage.seconds,
        cached=stage.cached,
        parameters=stage.cost.parameters,
        macs=stage.cost.macs,
        bytes=stage.cost.weight_bytes,
        psnr_db=mean_of(stage.measurements, "psnr"),
        lpips=mean_of(stage.measurements, "lpips"),
        sqnr_db=_mean_or_exact(values_of(stage.measurements, "sqnr")),
        cosine=mean_of(stage.measurements, "cosine"),
        latency_ms=None if teacher_ms is None else ratio * teacher_ms,
    )


def _mean_or_exact(values: Sequence[float]) -> float | None:
    """A mean that is infinite where a sample is exact, as the reference itself is."""
    return None if not values or any(map(math.isnan, values)) else statistics.fmean(values)


def _latency(measured: Measured, shipped: Exported | None) -> records.LatencySamples | None:
    taken = shipped.latency if shipped else measured.final.latency
    if taken is None:
        return None
    return records.LatencySamples(
        reference_ms=taken.reference_ms,
        candidate_ms=taken.candidate_ms,
        ratio=taken.ratio,
        low=taken.low,
        high=taken.high,
        noise_floor=taken.noise_floor,
        host=taken.host,
        runtime=taken.runtime,
    )


def per_sample(basis: Basis, measurements: Sequence[Measurement]) -> records.PerImage:
    """PSNR of every photograph; SQNR of every sample of a component that makes no pictures."""
    if basis.truth is None:
        values = values_of(measurements, "sqnr")
        return records.PerImage(
            names=basis.names, reference_db=(), candidate_db=values, what="SQNR of every sample to the reference"
        )
    return records.PerImage(
        names=basis.names,
        reference_db=values_of(measurements, "psnr", "reference"),
        candidate_db=values_of(measurements, "psnr"),
    )
