"""Today's numbers against the baseline and those before it, as lines of a table with a small chart each."""

from dataclasses import dataclass

from eval.report import svg
from eval.report.figures import change, number, quantity
from eval.report.records import History, Series


@dataclass(frozen=True, slots=True, kw_only=True)
class TrendLine:
    """One number as it is read."""

    label: str
    chart: str
    before: str  # the baseline's
    now: str
    change: str  # "" where the two may not be compared


def trend_lines(history: History | None) -> tuple[TrendLine, ...]:
    """Every series in the order given."""
    return tuple(_line(one) for one in history.series) if history else ()


def _line(one: Series) -> TrendLine:
    before, now = one.values[-2:]
    listed = ", ".join(
        number(v) + " (other conditions)" * (not fits) for v, fits in zip(one.values, one.comparable, strict=True)
    )
    return TrendLine(
        label=one.label,
        chart=svg.trend(one.values, one.comparable, f"{one.label}, oldest first: {listed}"),
        before=quantity(before, one.unit),
        now=quantity(now, one.unit),
        change=change(before, now, one.unit) if one.comparable[-2] else "",
    )
