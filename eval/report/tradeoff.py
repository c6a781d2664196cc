"""Quality against cost as charts with their Pareto front: after each stage, and of every file of the component.

The two are not drawn in one: a stage is weighed as its weights and timed in torch, a file as itself in its own runtime.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eval.report import svg
from eval.report.figures import NOT_MEASURED, number, quantity, scale
from eval.report.records import Contender, StageRow, TradeOff

_TONES = {"reference": "reference", "run": "variant", "zoo": "zoo"}
_GROUPS = {"reference": "uncompressed", "run": "this run", "zoo": "zoo"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One line of the table below the charts."""

    mark: str
    tone: str
    name: str
    group: str
    runtime: str
    quality: str
    bytes: str
    ratio: str
    front: str  # on which fronts it lies: "size and latency", "size", ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Charts and table of a trade-off."""

    charts: tuple[str, ...]
    standings: tuple[Standing, ...]


def stage_charts(rows: Sequence[StageRow]) -> tuple[str, ...]:
    """Quality against size and latency, marks numbered like the table's rows; a chart needs two of them.

    Quality is PSNR to ground truth; of a component that makes no pictures SQNR, where the reference has no mark.
    """
    pictures = any(row.psnr_db is not None for row in rows)
    label = "PSNR to ground truth, dB" if pictures else "SQNR to the reference, dB"
    scored = [(i, row, row.psnr_db if pictures else row.sqnr_db) for i, row in enumerate(rows)]
    known = [(i, row, db) for i, row, db in scored if db is not None and math.isfinite(db)]
    divisor, suffix = scale([row.bytes for row in rows], "bytes")
    sizes = [(i, row, db, row.bytes / divisor, quantity(row.bytes, "bytes")) for i, row, db in known if row.bytes]
    times = [(i, row, db, row.latency_ms, quantity(row.latency_ms, "ms")) for i, row, db in known if row.latency_ms]
    found = []
    for placed, x_label, title in ((sizes, f"size, {suffix}", "size"), (times, "latency, ms", "latency")):
        points = [
            svg.Point(
                x=x,
                y=db,
                mark=str(i),
                label=f"{i} {row.method}: {words}, {quantity(db, 'dB')}",
                tone="variant" if i else "reference",
            )
            for i, row, db, x, words in placed
        ]
        if len(points) > 1:
            heading = f"Quality against {title} after each stage"
            found.append(svg.scatter(points, x_label=x_label, y_label=label, title=heading))
    return tuple(found)


def compared(trade: TradeOff | None) -> Compared:
    """Charts and table of the files of a component; a chart with fewer than two marks is left out."""
    if trade is None:
        return Compared(charts=(), standings=())
    marked = list(zip(marks([c.group for c in trade.contenders]), trade.contenders, strict=True))
    divisor, suffix = scale([c.bytes for c in trade.contenders], "bytes")
    sizes = _points(marked, trade, {c.name: c.bytes / divisor for c in trade.contenders if c.bytes is not None})
    ratios = _points(marked, trade, {c.name: c.ratio for c in trade.contenders if c.ratio is not None})
    axes = (
        (sizes, f"file size, {suffix}", "Quality against file size"),
        (ratios, "latency, ratio to the uncompressed model", "Quality against latency"),
    )
    charts = tuple(
        svg.scatter(points, x_label=x_label, y_label=trade.quality, title=title)
        for points, x_label, title in axes
        if len(points) > 1
    )
    fronts = {"size": _front(sizes), "latency": _front(ratios)}
    return Compared(charts=charts, standings=tuple(_standing(m, c, trade, fronts) for m, c in marked))


def marks(groups: Iterable[str]) -> list[str]:
    """R for the uncompressed, 1, 2, ... for this run's, A, B, ... AA, ... for the zoo's."""
    found, counts = [], dict.fromkeys(_TONES, 0)
    for group in groups:
        number_of, counts[group] = counts[group], counts[group] + 1
        if group == "zoo":
            found.append(letters(number_of))
        else:
            found.append(str(number_of + 1) if group == "run" else "R" + str(number_of + 1) * (number_of > 0))
    return found


def letters(index: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    return (letters(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)


def _points(marked: Sequence[tuple[str, Contender]], trade: TradeOff, x: dict[str, float]) -> list[svg.Point]:
    return [
        svg.Point(
            x=x[c.name],
            y=c.quality,
            mark=mark,
            label=f"{mark} {c.name}: {quantity(c.bytes, 'bytes')}, ratio {number(c.ratio, 3)}, "
            f"{quantity(c.quality, trade.unit)}",
            tone=_TONES[c.group],
        )
        for mark, c in marked
        if c.name in x and c.quality is not None and math.isfinite(c.quality)
    ]


def _front(points: Sequence[svg.Point]) -> set[str]:
    return {p.mark for p in svg.pareto_front(points)} if len(points) > 1 else set()


def _standing(mark: str, c: Contender, trade: TradeOff, fronts: dict[str, set[str]]) -> Standing:
    return Standing(
        mark=mark,
        tone=_TONES[c.group],
        name=c.name,
        group=_GROUPS[c.group],
        runtime=c.runtime,
        quality=quantity(c.quality, trade.unit),
        bytes=quantity(c.bytes, "bytes"),
        ratio=NOT_MEASURED if c.ratio is None else number(c.ratio, 3),
        front=" and ".join(name for name, front in fronts.items() if mark in front),
    )
