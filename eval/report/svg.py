"""Charts as SVG text: a bar, strips of samples, a scatter with its Pareto front, lanes of alternatives, a trend.

Horizontal positions are per cent and vertical ones pixels, so that a chart fills any width without scaling its text.
No axis box and no legend: rows carry their names, and every mark has a <title> that browsers show on hover.
Colours come from classes (`tone-reference`, `tone-variant`, `grid`, ...) with currentColor as the fallback.
"""

import html
import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from eval.report.figures import number, quantity

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ROW = 70  # pixels of height per strip
_LANE = 40  # pixels of height per lane
_EDGE = 2.0  # per cent kept free left and right
_GOLDEN = 0.6180339887498949  # spreads dots vertically; the same samples always land the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One row of samples. `names` (one per sample) go into the tooltips; `tone` is "reference" or "variant"."""

    label: str
    tone: str
    values: tuple[float, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One mark of a scatter: smaller `x` and larger `y` are better. `mark` is the one or two characters inside it.

    `tone` is "reference", "variant" or "zoo"; marks of the zoo are square. `key` is kept for scripts, `href` makes a
    link of the mark.
    """

    x: float
    y: float
    mark: str
    label: str
    tone: str = "variant"
    key: str = ""
    href: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One row of alternatives: a value for each, None where there is none; `chosen` is the index of the one taken."""

    label: str
    values: tuple[float | None, ...]
    chosen: int | None = None


def text(value: str) -> str:
    """Escape for element content and attributes; characters that XML forbids become U+FFFD."""
    return html.escape(printable(value), quote=True)


def printable(value: str) -> str:
    """Replace the characters that neither XML nor UTF-8 can hold by U+FFFD."""
    return _CONTROL.sub("\ufffd", value)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from within [low, high], about `wanted` of them, a step of 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 5) if m * power >= 0.75 * raw), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def bar(value: float, maximum: float, title: str) -> str:
    """Draw a thin bar, `value` of `maximum` long, for a table cell."""
    share = 0.0 if maximum <= 0 or not math.isfinite(value) else min(1.0, max(0.0, value / maximum))
    return (
        f'<svg class="bar" role="img" width="100%" height="5" aria-label="{text(title)}"><title>{text(title)}</title>'
        '<rect class="track" width="100%" height="5" rx="2.5" fill="currentColor" fill-opacity="0.12"/>'
        f'<rect class="fill" width="{100 * share:.2f}%" height="5" rx="2.5" fill="currentColor"/></svg>'
    )


def strips(rows: Sequence[Strip], *, unit: str, title: str, from_zero: bool = False) -> str:
    """Draw rows of dots over one axis, a line at each median; samples off the axis or not finite are counted."""
    finite = [v for row in rows for v in row.values if math.isfinite(v)]
    if not finite:
        return _chart(title, 30, [_label("0%", 18, f"No finite sample in {unit}")])
    low, high = _span(rows, finite, from_zero)
    height = _ROW * len(rows) + 24
    parts = _axis(low, high, height, unit)
    for index, row in enumerate(rows):
        parts += [_grid_line(_x(tick, (low, high)), index * _ROW) for tick in ticks(low, high)]
        parts += _strip(row, index * _ROW, (low, high), unit)
    return _chart(title, height, parts)


def scatter(points: Sequence[Point], *, x_label: str, y_label: str, title: str) -> str:
    """Draw marks over two axes, and their Pareto front as a dashed stair."""
    kept = [p for p in points if math.isfinite(p.x) and math.isfinite(p.y)]
    if not kept:
        return _chart(title, 30, [_label("0%", 18, "No mark has both values")])
    xs, ys = _padded([p.x for p in kept], left=0.2), _padded([p.y for p in kept])
    top, bottom = 34, 252

    def y_of(value: float) -> float:
        return bottom - (bottom - top) * (value - ys[0]) / (ys[1] - ys[0])

    parts = [_label("0%", 12, y_label), _label("100%", bottom + 38, x_label, anchor="end")]
    for tick in ticks(*ys, 4):
        y = y_of(tick)
        parts.append(f'<line class="grid" x1="0%" x2="100%" y1="{y:.1f}" y2="{y:.1f}"{_STROKE}/>')
        parts.append(_label("0%", y - 4, number(tick, _decimals(ys, 4)), kind="tick"))
    parts += [
        _label(_x(tick, xs), bottom + 18, number(tick, _decimals(xs, 5)), anchor="middle", kind="tick")
        for tick in ticks(*xs)
    ]
    for a, b in itertools.pairwise(pareto_front(kept)):
        parts.append(_front_line(_x(a.x, xs), _x(b.x, xs), y_of(a.y), y_of(a.y)))
        parts.append(_front_line(_x(b.x, xs), _x(b.x, xs), y_of(a.y), y_of(b.y)))
    parts += [_mark(p, _x(p.x, xs), y_of(p.y)) for p in kept]
    return _chart(title, bottom + 44, parts)


def lanes(rows: Sequence[Lane], *, names: Sequence[str], marks: Sequence[str], title: str) -> str:
    """Draw each row's alternatives over one axis of powers of ten; the chosen one is filled.

    Args:
        rows: The rows, from the top.
        names: Each alternative's name, for tooltips: "mse at 4 bits".
        marks: Its one or two characters: "4".
        title: What the chart shows.
    """
    known = [v for row in rows for v in row.values if v is not None and v > 0 and math.isfinite(v)]
    if not known:
        return _chart(title, 30, [_label("0%", 18, "No value above zero")])
    span = _padded([math.log10(min(known)), math.log10(max(known))])
    height = _LANE * len(rows) + 24
    tens = list(range(math.ceil(span[0]), math.floor(span[1]) + 1))
    parts = [
        f'<line class="grid" x1="{_x(p, span)}" x2="{_x(p, span)}" y1="0" y2="{height - 20}"{_STROKE}/>' for p in tens
    ]
    parts += [_label(_x(p, span), height - 5, _power(p), anchor="middle", kind="tick") for p in tens]
    for index, row in enumerate(rows):
        parts += _lane(row, index * _LANE, span, names, marks)
    return _chart(title, height, parts)


def trend(values: Sequence[float | None], comparable: Sequence[bool], title: str) -> str:
    """Draw a small line of values in order; those that may not be compared are hollow and not joined."""
    kept = [(i, v) for i, v in enumerate(values) if v is not None and math.isfinite(v)]
    if not kept:
        return ""
    ys = _padded([v for _, v in kept])
    places = {
        i: (f"{100 * (i + 0.5) / len(values):.2f}%", 30 - 24 * (v - ys[0]) / (ys[1] - ys[0]) - 3) for i, v in kept
    }
    parts = [
        f'<line x1="{places[i][0]}" x2="{places[i + 1][0]}" y1="{places[i][1]:.1f}" y2="{places[i + 1][1]:.1f}" '
        'stroke="currentColor" stroke-width="1.5"/>'
        for i in places
        if i + 1 in places and comparable[i] and comparable[i + 1]
    ]
    for i, (x, y) in places.items():
        fill = "currentColor" if comparable[i] else "none"
        parts.append(f'<circle cx="{x}" cy="{y:.1f}" r="3" fill="{fill}" stroke="currentColor"/>')
    head = '<svg xmlns="http://www.w3.org/2000/svg" class="trend" role="img" width="100%" height="30"'
    return f'{head} aria-label="{text(title)}"><title>{text(title)}</title>{"".join(parts)}</svg>'


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Keep the points that no other beats (x no larger, y no smaller, one of them strictly), in order of x."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


_STROKE = ' stroke="currentColor" stroke-opacity="0.18"'


def _chart(title: str, height: float, parts: list[str]) -> str:
    role = "group" if any(part.startswith("<a ") for part in parts) else "img"  # what is in an image cannot be reached
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="{role}" width="100%" height="{height:.0f}"'
    return f'{head} aria-label="{text(title)}"><title>{text(title)}</title>{"".join(parts)}</svg>'


def _label(x: str, y: float, value: str, *, anchor: str = "start", kind: str = "label") -> str:
    return (
        f'<text class="{kind}" x="{x}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="currentColor">'
        f"{text(value)}</text>"
    )


def _x(value: float, span: tuple[float, float]) -> str:
    return f"{_EDGE + (100 - 2 * _EDGE) * (value - span[0]) / (span[1] - span[0]):.2f}%"


def _padded(values: list[float], left: float = 0.08) -> tuple[float, float]:
    """The span of the values and some room; `left` of it below, where the labels of the other axis stand."""
    low, high = min(values), max(values)
    span = high - low or 0.6 * abs(high) or 12.0
    return low - left * span, high + 0.08 * span


def _span(rows: Sequence[Strip], finite: list[float], from_zero: bool) -> tuple[float, float]:
    """Cover all samples, but let no outlier squeeze the rest: end at 1.6 times the largest median of a row."""
    medians = [statistics.median(f) for row in rows if (f := [v for v in row.values if math.isfinite(v)])]
    low, high = _padded(finite)
    if from_zero:
        return 0.0, max(min(high, 1.6 * max(medians)), 1e-9)
    return low, high


def _decimals(span: tuple[float, float], wanted: int) -> int:
    marks = ticks(*span, wanted)
    step = marks[1] - marks[0] if len(marks) > 1 else span[1] - span[0]
    return max(0, -math.floor(math.log10(step) + 1e-9))


def _axis(low: float, high: float, height: int, unit: str) -> list[str]:
    parts = []
    marks = ticks(low, high)
    for index, tick in enumerate(marks):
        x = _x(tick, (low, high))
        written = number(tick, _decimals((low, high), 5)) + (f" {unit}" if index == len(marks) - 1 else "")
        anchor = "start" if index == 0 and float(x[:-1]) < 5 else "end" if float(x[:-1]) > 92 else "middle"
        parts.append(_label(x, height - 5, written, anchor=anchor, kind="tick"))
    return parts


def _grid_line(x: str, top: int) -> str:
    return f'<line class="grid" x1="{x}" x2="{x}" y1="{top + 22}" y2="{top + 64}"{_STROKE}/>'


def _strip(row: Strip, top: int, span: tuple[float, float], unit: str) -> list[str]:
    finite = [v for v in row.values if math.isfinite(v)]
    parts = [_label("0%", top + 14, _row_label(row, finite, span, unit))]
    for index, value in enumerate(row.values):
        if not math.isfinite(value) or not span[0] <= value <= span[1]:
            continue
        y = top + 28 + 30 * ((index * _GOLDEN) % 1.0)
        name = f"{row.names[index]}: " if row.names else f"{row.label}, sample {index + 1}: "
        parts.append(
            f'<circle class="dot tone-{text(row.tone)}" cx="{_x(value, span)}" cy="{y:.1f}" r="3.5" '
            f'fill="currentColor" fill-opacity="0.7"><title>{text(name + quantity(value, unit))}</title></circle>'
        )
    if finite:
        x, median = _x(statistics.median(finite), span), quantity(statistics.median(finite), unit)
        parts.append(
            f'<line class="median tone-{text(row.tone)}" x1="{x}" x2="{x}" y1="{top + 22}" y2="{top + 64}" '
            f'stroke="currentColor" stroke-width="2.5"><title>{text(row.label)}: median {median}</title></line>'
        )
    return parts


def _row_label(row: Strip, finite: list[float], span: tuple[float, float], unit: str) -> str:
    words = [row.label]
    if finite:
        words.append(f"median {quantity(statistics.median(finite), unit)}")
    beyond = sum(not span[0] <= v <= span[1] for v in finite)
    exact, broken = sum(v == math.inf for v in row.values), sum(math.isnan(v) or v == -math.inf for v in row.values)
    words += [f"{beyond} beyond the axis"] * bool(beyond)
    words += [f"{exact} exact (∞)"] * bool(exact) + [f"{broken} NaN"] * bool(broken)
    return " · ".join(words)


def _front_line(x1: str, x2: str, y1: float, y2: float) -> str:
    return (
        f'<line class="front" x1="{x1}" x2="{x2}" y1="{y1:.1f}" y2="{y2:.1f}" '
        f'stroke="currentColor" stroke-dasharray="4 4"/>'
    )


def _lane(row: Lane, top: int, span: tuple[float, float], names: Sequence[str], marks: Sequence[str]) -> list[str]:
    y = top + 27
    parts = [
        _label("0%", top + 13, row.label),
        f'<line class="grid" x1="0%" x2="100%" y1="{y}" y2="{y}"{_STROKE}/>',
    ]
    drawn = [(i, v) for i, v in enumerate(row.values) if v is not None and v > 0 and math.isfinite(v)]
    for i, value in sorted(drawn, key=lambda pair: pair[0] == row.chosen):  # the chosen one on top
        x, chosen = _x(math.log10(value), span), i == row.chosen
        what = f"{row.label}, {names[i]}: {number(value)}" + ", chosen" * chosen
        ink = "white" if chosen else "currentColor"
        fill = 'fill="currentColor"' if chosen else 'fill="white"'
        parts.append(
            f'<g class="option tone-variant{" chosen" if chosen else ""}"><title>{text(what)}</title>'
            f'<circle cx="{x}" cy="{y}" r="8" {fill} stroke="currentColor" stroke-width="1.5"/>'
            f'<text x="{x}" y="{y + 4}" text-anchor="middle" font-size="11" fill="{ink}">{text(marks[i])}</text></g>'
        )
    return parts


def _power(exponent: int) -> str:
    """10 to the power, as 0.01, 1, 100 or 1e-6."""
    return f"1e{exponent}" if abs(exponent) > 3 else number(10.0**exponent, max(0, -exponent))


def _mark(point: Point, x: str, y: float) -> str:
    shape = f'<circle cx="{x}" cy="{y:.1f}" r="10" fill="currentColor"/>'
    if point.tone == "zoo":  # a rectangle takes no position in the middle: it is moved there
        shape = (
            f'<rect x="{x}" y="{y:.1f}" width="19" height="19" rx="3" transform="translate(-9.5 -9.5)" '
            'fill="currentColor"/>'
        )
    number_in = (
        f'<text class="in-mark" x="{x}" y="{y + 4:.1f}" text-anchor="middle" font-size="12" fill="white">'
        f"{text(point.mark)}</text>"
    )
    key = f' data-key="{text(point.key)}"' if point.key else ""
    group = f'<g class="mark tone-{text(point.tone)}"{key}><title>{text(point.label)}</title>{shape}{number_in}</g>'
    return f'<a href="{text(point.href)}" aria-label="{text(point.label)}">{group}</a>' if point.href else group
