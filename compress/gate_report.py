"""What a gate says, as files for CI: verdicts.json, junit.xml, summary.md, measurements.jsonl, report.html."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from compress.files import write_json, write_text
from compress.reporting import per_sample, pixels, quality_facts, values_of, verdict_row
from compress.runs import environment
from compress.standalone_gate import Case, Judged
from eval import compare, gates, junit, summary
from eval.report import page, records


def write_files(judged: Sequence[Judged], case: Case, folder: Path, *, title: str) -> None:
    """Write every file; those that were there are replaced."""
    verdicts = [verdict for one in judged for verdict in one.verdicts]
    write_json(folder / "verdicts.json", [gates.to_json(verdict) for verdict in verdicts])
    write_text(folder / "junit.xml", junit.to_junit(verdicts, name=title))
    write_text(folder / "summary.md", summary.to_markdown(verdicts, title=title))
    rows = [{"subject": one.taken.subject, **compare.to_json(m)} for one in judged for m in one.taken.measurements]
    lines = [json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows]
    write_text(folder / "measurements.jsonl", "".join(lines))
    page.write(_report(judged, case, title), folder / "report.html")


def _report(judged: Sequence[Judged], case: Case, title: str) -> records.Report:
    verdicts = [verdict for one in judged for verdict in one.verdicts]
    first = judged[0]
    measurements = first.taken.measurements
    return records.Report(
        title=title,
        component=case.plan.recipe.component,
        passed=all(verdict.passed for verdict in verdicts),
        verdicts=tuple(verdict_row(verdict) for verdict in verdicts),
        facts=_facts(first),
        lpips_net=next((m.net for m in measurements if m.metric == "lpips"), None),
        pictures=_pictures(first, case),
        latency=_latency(first),
        per_image=per_sample(case.basis, measurements),
        environment=environment(),
        notes=case.plan.notes,
    )


def _facts(judged: Judged) -> tuple[records.Fact, ...]:
    taken = judged.taken
    sizes = taken.sizes
    size = records.Fact(label="Size", unit="bytes", reference=sizes.reference_bytes, variant=sizes.candidate_bytes)
    return (size, *quality_facts(taken.measurements))


def _latency(judged: Judged) -> records.LatencySamples | None:
    taken = judged.taken.latency
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


def _pictures(judged: Judged, case: Case) -> tuple[records.Picture, ...]:
    """The photographs on which the candidate lost least, a median amount, and most against the reference."""
    basis, made = case.basis, judged.taken.outputs
    if basis.truth is None or made.shape != basis.truth.shape:
        return ()
    ours = values_of(judged.taken.measurements, "psnr")
    theirs = values_of(judged.taken.measurements, "psnr", "reference")
    drops = [t - o if math.isfinite(t - o) else math.inf for o, t in zip(ours, theirs, strict=True)]
    order = sorted(range(len(drops)), key=drops.__getitem__)
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    return tuple(
        records.Picture(
            name=basis.names[i],
            why=why,
            score=f"PSNR {ours[i]:.2f} dB, {drops[i]:.2f} dB below the reference",
            original=pixels(basis.truth[i]),
            reference=pixels(basis.reference[i]),
            candidate=pixels(made[i]),
        )
        for why, i in chosen.items()
    )
