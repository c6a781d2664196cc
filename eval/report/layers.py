"""The variant layer by layer, and what its stages measured of each layer, as tables and charts."""

from collections.abc import Sequence
from dataclasses import dataclass

from eval.report import svg
from eval.report.figures import NOT_MEASURED, amount, exact, number, quantity
from eval.report.records import LayerRow, StageTable
from eval.report.tables import Cell

_PARTED = ", "  # what was measured, and of which alternative: "mse alone, 4 bits"
_CHOSEN, _ACTIVATIONS = "bits", "activation bits"  # columns that say which alternative was taken
_FLOAT = 32


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
class Chart:
    """One quantity of every row, an alternative beside the other."""

    what: str  # "mse alone"
    drawing: str  # SVG
    key: str  # what the marks stand for: "4: 4 bits, 8: 8 bits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A stage's table as it is read, with its charts; none where nothing can be drawn."""

    stage: str
    title: str
    headers: tuple[str, ...]
    numeric: tuple[bool, ...]
    lines: tuple[tuple[str, ...], ...]
    charts: tuple[Chart, ...]
    chosen: bool  # whether the marks say which alternative was taken


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
    """A stage's table, and a chart of each quantity that was measured of several alternatives."""
    return Drawn(
        stage=table.stage,
        title=table.title,
        headers=table.columns,
        numeric=tuple(any(isinstance(row[i], int | float) for row in table.rows) for i in range(len(table.columns))),
        lines=tuple(tuple(_written(value) for value in row) for row in table.rows),
        charts=tuple(_chart(table, what, columns) for what, columns in alternatives(table).items()),
        chosen=_CHOSEN in table.columns,
    )


def alternatives(table: StageTable) -> dict[str, tuple[int, ...]]:
    """Quantity -> its columns, those that are named alike up to the first comma."""
    found: dict[str, tuple[int, ...]] = {}
    for i, name in enumerate(table.columns):
        what, comma, _ = name.partition(_PARTED)
        if i and comma:
            found[what] = (*found.get(what, ()), i)
    return found


def _chart(table: StageTable, what: str, columns: Sequence[int]) -> Chart:
    options = [table.columns[i].partition(_PARTED)[2] for i in columns]
    marks = _marks(options)
    rows = [
        svg.Lane(
            label=str(row[0]),
            values=tuple(value if isinstance(value := row[i], int | float) else None for i in columns),
            chosen=_chosen(table, row, options),
        )
        for row in table.rows
    ]
    names = [f"{what}, {option}" for option in options]
    return Chart(
        what=what,
        drawing=svg.lanes(rows, names=names, marks=marks, title=f"{table.title}: {what}"),
        key=", ".join(f"{mark}: {option}" for mark, option in zip(marks, options, strict=True)),
    )


def _marks(options: Sequence[str]) -> list[str]:
    """The number that an option begins with; with a letter where several begin with one."""
    numbers = [option.partition(" ")[0][:2] for option in options]
    return [
        one if numbers.count(one) == 1 else f"{one[:1]}{chr(ord('a') + numbers[:i].count(one) % 26)}"
        for i, one in enumerate(numbers)
    ]


def _chosen(table: StageTable, row: Sequence[object], options: Sequence[str]) -> int | None:
    """The place of the option that was taken; None where the layer stays in float, or nothing says it."""
    if _CHOSEN not in table.columns:
        return None
    taken = f"{row[table.columns.index(_CHOSEN)]} bits"
    activations = row[table.columns.index(_ACTIVATIONS)] if _ACTIVATIONS in table.columns else _FLOAT
    taken += "" if activations == _FLOAT else f", {activations}-bit activations"
    return options.index(taken) if taken in options else None


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
