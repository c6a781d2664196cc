"""The rows of the page's tables, worked out to the last word; the template only places them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from eval.gate_records import is_near
from eval.report import svg
from eval.report.figures import NOT_MEASURED, amount, change, exact, number, plus, quantity, scale, seconds
from eval.report.records import AchievedRow, Fact, StageRow, VerdictRow

_ACRONYMS = ("psnr", "ssim", "lpips", "sqnr")
_KINDS = {
    "min": ("", "≥"),
    "max": ("", "≤"),
    "max_drop": ("drop", "≤"),
    "max_rise": ("rise", "≤"),
    "max_ratio": ("ratio", "≤"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell: what is read, what the tooltip says, a smaller second line, a bar (SVG text) below."""

    text: str
    title: str = ""
    sub: str = ""
    bar: str = ""
    missing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLine:
    """One verdict as it is read."""

    passed: bool
    state: str  # "passed", "failed", "undecided", "judged elsewhere"
    gate: str  # "PSNR drop"
    scope: str  # "mean, candidate against ground truth"
    subject: str
    value: Cell
    limit: str
    room: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLine:
    """One stage as it is read; `cells` follow the table's headers."""

    mark: str
    method: str
    config: str
    time: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTable:
    """Headers and lines of what was measured; `absent` names the columns that were measured at no stage."""

    headers: tuple[str, ...]
    lines: tuple[StageLine, ...]
    absent: tuple[str, ...]


def gate_name(row: VerdictRow) -> str:
    """Name what the gate looks at: "PSNR drop", "LPIPS (st-alex) rise", "latency ratio"."""
    metric = row.metric.replace("_", " ")
    words = [metric.upper() if row.metric in _ACRONYMS else metric]
    words += [f"({row.net})"] if row.net else []
    words += [noun] if (noun := _KINDS.get(row.kind, (row.kind.replace("_", " "), ""))[0]) else []
    return " ".join(words)


def headline(passed: bool, verdicts: Sequence[VerdictRow]) -> str:
    """Say the whole page in one sentence."""
    failed = [row for row in verdicts if not row.passed]
    if not verdicts:
        return "No gates were judged." if passed else "Failed: no gates were judged."
    gates = f"{len(verdicts)} gate{'s' * (len(verdicts) != 1)}"
    if failed:
        named = [f"{gate_name(row)} ({row.statistic}, {row.subject})" for row in failed]
        more = f" and {len(named) - 3} more" * (len(named) > 3)
        return f"Failed {len(failed)} of {gates}: {', '.join(named[:3])}{more}."
    if not passed:
        return f"Failed, although {gates} of {len(verdicts)} passed: see the notes."
    return f"Passed {len(verdicts)} of {gates}."


def gate_lines(verdicts: Sequence[VerdictRow]) -> tuple[GateLine, ...]:
    """Every verdict, the failed ones first, otherwise in the order given."""
    return tuple(_gate_line(row) for row in sorted(verdicts, key=lambda row: row.passed))


def achieved_lines(rows: Sequence[AchievedRow]) -> tuple[AchievedRow, ...]:
    """Every row, the unmet ones first, otherwise in the order given."""
    return tuple(sorted(rows, key=lambda row: row.met))


def fact_cells(facts: Sequence[Fact]) -> tuple[tuple[str, Cell, str], ...]:
    """Write each fact as its label, the variant's figure with its change, and the reference's figure."""
    return tuple(
        (
            fact.label,
            Cell(
                text=quantity(fact.variant, fact.unit),
                title=_precise(fact.variant, fact.unit),
                sub=change(fact.reference, fact.variant, fact.unit),
                missing=fact.variant is None,
            ),
            quantity(fact.reference, fact.unit),
        )
        for fact in facts
    )


def stage_table(rows: Sequence[StageRow], lpips_net: str | None) -> StageTable:
    """Tabulate what each stage did to parameters, MACs, bytes, quality and latency; row 0 is the reference."""
    lpips = f"LPIPS ({lpips_net})" if lpips_net else "LPIPS"
    columns = [
        _scaled("Parameters", "parameters", [row.parameters for row in rows]),
        _scaled("MACs", "MACs", [row.macs for row in rows]),
        _scaled("Size", "bytes", [row.bytes for row in rows]),
        *_quality(rows, lpips),
        _scaled("Latency", "ms", [row.latency_ms for row in rows]),
    ]
    kept = [(header, cells) for header, cells in columns if not all(cell.missing for cell in cells)]
    lines = tuple(
        StageLine(
            mark=str(index),
            method=row.method,
            config=row.config,
            time="" if index == 0 and row.seconds is None else seconds(row.seconds) + " (cached)" * row.cached,
            cells=tuple(cells[index] for _, cells in kept),
        )
        for index, row in enumerate(rows)
    )
    absent = tuple(header.split(",")[0] for header, cells in columns if all(cell.missing for cell in cells))
    return StageTable(headers=tuple(header for header, _ in kept), lines=lines, absent=absent)


def _quality(rows: Sequence[StageRow], lpips: str) -> list[tuple[str, tuple[Cell, ...]]]:
    """PSNR and LPIPS of pictures, or SQNR and cosine of other tensors where these were measured."""
    vectors = [_scores("Cosine", "", [row.cosine for row in rows])] if any(row.cosine for row in rows) else []
    if any(row.sqnr_db is not None for row in rows):
        return [_scores("SQNR, dB", "dB", [row.sqnr_db for row in rows]), *vectors]
    return [
        _scores("PSNR, dB", "dB", [row.psnr_db for row in rows]),
        _scores(lpips, "", [row.lpips for row in rows]),
    ]


def _state(row: VerdictRow) -> str:
    if row.elsewhere:
        return "judged elsewhere" if row.passed else "failed"
    if row.undecided:
        return "passed, undecided" if row.passed else "undecided"
    return "passed" if row.passed else "failed"


def _gate_line(row: VerdictRow) -> GateLine:
    sign = "≈" if _near(row) else _KINDS.get(row.kind, ("", ""))[1]
    return GateLine(
        passed=row.passed,
        state=_state(row),
        gate=gate_name(row),
        scope=_scope(row),
        subject=row.subject,
        value=_verdict_value(row),
        limit=f"{sign} {_measured(row, row.limit)}".strip(),
        room=_room(row),
        reason=row.reason,
    )


def _verdict_value(row: VerdictRow) -> Cell:
    if row.value is None and row.exact:
        return Cell(text="exact", title="identical images: the score is infinite")
    sub = "" if row.low is None or row.high is None else f"{_measured(row, row.low)} to {_measured(row, row.high)}"
    title = "" if row.value is None else f"{row.value!r} {row.unit}".rstrip()
    return Cell(text=_measured(row, row.value), title=title, sub=sub, missing=row.value is None)


def _measured(row: VerdictRow, value: float | None) -> str:
    """Write a value in the gate's own unit; a ratio has none, and what a stage achieved is a count."""
    if row.metric == "achieved":
        return amount(value)
    return number(value, 3) if row.kind == "max_ratio" else quantity(value, row.unit)


def _scope(row: VerdictRow) -> str:
    against = row.against.replace("_", " ")
    return (
        f"{row.statistic}, against {against}"
        if row.of == "candidate"
        else f"{row.statistic} of {row.of}, against {against}"
    )


def _near(row: VerdictRow) -> bool:
    return is_near(row.metric, row.value, row.limit, row.passed)


def _room(row: VerdictRow) -> str:
    """How far inside the limit the value lies; negative outside, "" where that cannot be said."""
    if _near(row) or row.value is None or row.kind not in _KINDS:
        return ""
    if not (math.isfinite(row.value) and math.isfinite(row.limit)):
        return ""
    room = row.value - row.limit if row.kind == "min" else row.limit - row.value
    return plus(_measured(row, room))


def _scaled(label: str, unit: str, values: Sequence[float | None]) -> tuple[str, tuple[Cell, ...]]:
    """Write a column of costs in one common scale: change against the first row, bar against the largest."""
    divisor, suffix = (1.0, "ms") if unit == "ms" else scale(values, unit)
    largest = max((v for v in values if v is not None and math.isfinite(v)), default=0.0)
    cells = []
    for index, value in enumerate(values):
        if value is None:
            cells.append(Cell(text=NOT_MEASURED, missing=True))
            continue
        sub = change(values[0], value, unit) if index else ""
        title = f"{exact(value)} {unit}"
        cells.append(
            Cell(
                text=_column_number(value / divisor, largest / divisor),
                title=title,
                sub=sub,
                bar=svg.bar(value, largest, title),
            )
        )
    return f"{label}, {suffix}" if suffix else label, tuple(cells)


def _scores(label: str, unit: str, values: Sequence[float | None]) -> tuple[str, tuple[Cell, ...]]:
    """Write a column of scores: change against the first row, no bar, because no zero means anything here."""
    decimals = 2 if unit == "dB" else 4
    return label, tuple(
        Cell(text=number(v, decimals), sub=change(values[0], v, unit) if i else "", missing=v is None)
        for i, v in enumerate(values)
    )


def _column_number(value: float, largest: float) -> str:
    return number(value, 2 if largest < 100 else 1 if largest < 1000 else 0)


def _precise(value: float | None, unit: str) -> str:
    return "" if value is None else f"{exact(value)} {unit}".rstrip()
