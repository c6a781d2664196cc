"""What a gate says, as files for CI: verdicts.json, junit.xml, summary.md, measurements.jsonl, report.html."""

import json
from collections.abc import Sequence
from pathlib import Path

from compress import report_pictures
from compress.files import write_json, write_text
from compress.reporting import per_sample, quality_facts, verdict_row
from compress.runs import environment
from compress.standalone_gate import Case, Judged
from eval import baseline as baselines
from eval import compare, gates, junit, summary
from eval.report import page, records


def write_files(
    judged: Sequence[Judged], case: Case, folder: Path, *, title: str, baseline: Path | None = None
) -> None:
    """Write every file; those that were there are replaced. `baseline` is what the gates were compared with."""
    verdicts = [verdict for one in judged for verdict in one.verdicts]
    write_json(folder / "verdicts.json", [gates.to_json(verdict) for verdict in verdicts])
    write_text(folder / "junit.xml", junit.to_junit(verdicts, name=title))
    write_text(folder / "summary.md", summary.to_markdown(verdicts, title=title))
    rows = [{"subject": one.taken.subject, **compare.to_json(m)} for one in judged for m in one.taken.measurements]
    lines = [json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows]
    write_text(folder / "measurements.jsonl", "".join(lines))
    page.write(_report(judged, case, title, baseline), folder / "report.html")


def _report(judged: Sequence[Judged], case: Case, title: str, baseline: Path | None) -> records.Report:
    verdicts = [verdict for one in judged for verdict in one.verdicts]
    first = judged[0]
    measurements, made = first.taken.measurements, first.taken.outputs
    truth = case.basis.truth
    alike = truth is not None and made.shape == truth.shape
    strip = report_pictures.strip(case.basis, measurements, made) if alike else ()
    return records.Report(
        title=title,
        component=case.plan.recipe.component,
        passed=all(verdict.passed for verdict in verdicts),
        verdicts=tuple(verdict_row(verdict) for verdict in verdicts),
        facts=_facts(first),
        lpips_net=next((m.net for m in measurements if m.metric == "lpips"), None),
        pictures=report_pictures.in_full(case.basis, measurements, made) if alike else (),
        strip=strip,
        strip_left_out=len(case.basis.names) - len(strip) if strip else 0,
        latency=_latency(first),
        per_image=per_sample(case.basis, measurements),
        history=_history(first, baseline),
        environment=environment(),
        notes=case.plan.notes,
    )


def _history(judged: Judged, source: Path | None) -> records.History | None:
    """Every number of the baseline and of its earlier updates beside today's; None without a baseline."""
    if judged.before is None or source is None:
        return None
    earlier = baselines.read_history(source).get(judged.taken.subject, ()) if source.is_file() else ()
    moments = (*earlier, baselines.past(judged.before), baselines.past(judged.now))
    names = dict.fromkeys(name for moment in reversed(moments) for name in moment.values)
    units = {name: m.unit for name, m in baselines.named(judged.now)}
    return records.History(
        source=source.name,
        series=tuple(
            records.Series(
                label=name,
                unit=units.get(name, "bytes" if name.endswith("bytes") else ""),
                values=tuple(moment.values.get(name) for moment in moments),
                comparable=tuple(_comparable(moment, moments[-1], name) for moment in moments),
            )
            for name in names
        ),
        differing=baselines.differing_conditions(judged.before.conditions, judged.now.conditions),
    )


def _comparable(then: baselines.Past, now: baselines.Past, name: str) -> bool:
    return not baselines.differing_conditions(then.conditions, now.conditions, host=name.startswith("latency"))


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
