"""The variant layer by layer, and what its stages measured of each layer, as tables and a chart."""

from collections.abc import Sequence
from dataclasses import dataclass

from eval.report import svg
from eval.report.figures import NOT_MEASURED, amount, exact, number, quantity
from eval.report.records import LayerRow, StageTable
from eval.report.tables import Cell

_AT = " at "  # between what was measured and the alternative: "mse at 4 bits"
_CHOSEN = "bits"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLine:
    """One layer as it is read."""

    name: str
    kind: str
    weights: str
    parameters: Cell
    macs: Cell
    bytes: Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A stage's table as it is read, with its chart as SVG; "" where there is nothing to draw."""

    stage: str
    title: str
    headers: tuple[str, ...]
    numeric: tuple[bool, ...]
    lines: tuple[tuple[str, ...], ...]
    chart: str
    charted: str  # what the chart's axis shows: "mse"
    chosen: bool  # whether it says which alternative was taken


def layer_lines(rows: Sequence[LayerRow]) -> tuple[LayerLine, ...]:
    """Every layer in the order given; bars are shares of the largest in the column."""
    most = {name: max((getattr(row, name) for row in rows), default=0) for name in ("parameters", "macs", "bytes")}
    return tuple(
        LayerLine(
            name=row.name,
            kind=row.kind,
            weights=row.weights,
            parameters=_cell(row.parameters, most["parameters"], "parameters"),
            macs=_cell(row.macs, most["macs"], "MACs"),
            bytes=_cell(row.bytes, most["bytes"], "bytes", _before(row)),
        )
        for row in rows
    )


def drawn(table: StageTable) -> Drawn:
    """A stage's table, its chart sorted as the table is."""
    quantity_of, columns = alternatives(table)
    return Drawn(
        stage=table.stage,
        title=table.title,
        headers=table.columns,
        numeric=tuple(any(isinstance(row[i], int | float) for row in table.rows) for i in range(len(table.columns))),
        lines=tuple(tuple(_written(value) for value in row) for row in table.rows),
        chart=_chart(table, quantity_of, columns) if columns else "",
        charted=quantity_of,
        chosen=_CHOSEN in table.columns,
    )


def alternatives(table: StageTable) -> tuple[str, tuple[int, ...]]:
    """What the chart shows and which columns: the first that are named alike up to " at "; "" and none without any."""
    heads = [(i, name.partition(_AT)[0]) for i, name in enumerate(table.columns) if i and _AT in name]
    if not heads:
        return "", ()
    return heads[0][1], tuple(i for i, head in heads if head == heads[0][1])


def _chart(table: StageTable, what: str, columns: Sequence[int]) -> str:
    names = [table.columns[i] for i in columns]
    marks = [name.partition(_AT)[2].partition(" ")[0][:2] for name in names]
    rows = [
        svg.Lane(
            label=str(row[0]),
            values=tuple(value if isinstance(value := row[i], int | float) else None for i in columns),
            chosen=_chosen(table, row, marks),
        )
        for row in table.rows
    ]
    return svg.lanes(rows, names=names, marks=marks, title=f"{table.title}: {what}")


def _chosen(table: StageTable, row: Sequence[object], marks: Sequence[str]) -> int | None:
    taken = str(row[table.columns.index(_CHOSEN)]) if _CHOSEN in table.columns else ""
    return marks.index(taken) if taken in marks else None


def _written(value: str | int | float | None) -> str:
    if value is None:
        return NOT_MEASURED
    if isinstance(value, str):
        return value
    return amount(value) if isinstance(value, int) else number(value)


def _cell(value: int, largest: int, unit: str, sub: str = "") -> Cell:
    title = f"{exact(value)} {unit}"
    text = quantity(value, unit).removesuffix(f" {unit}")
    return Cell(text=text, title=title, sub=sub, bar=svg.bar(value, largest, title))


def _before(row: LayerRow) -> str:
    if row.reference_bytes is None:
        return "not in the reference"
    return "" if row.reference_bytes == row.bytes else f"was {quantity(row.reference_bytes, 'bytes')}"
