"""What the terminal shows: progress with time left, plain lines in CI, tables."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from compress.runs import Event

if TYPE_CHECKING:
    from compress.plan import Forecast, Span
    from eval.gates import Verdict

PLAIN_WIDTH = 120
PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal; where there is none, wide enough for the tables."""
    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=PLAIN_WIDTH)


def gate_words(verdict: "Verdict") -> str:
    """What a gate looks at: "psnr, mean drop", "reference psnr, mean", "prune.width: channels removed"."""
    if verdict.metric == "achieved":
        return verdict.statistic
    name = f"{verdict.metric} ({verdict.net})" if verdict.net else verdict.metric
    owner = "reference's " if verdict.of == "reference" else ""
    kind = verdict.kind.removeprefix("max_") if verdict.kind not in ("min", "max") else ""
    stored = " (to baseline)" if verdict.against == "baseline" else ""
    return f"{owner}{name}, {verdict.statistic} {kind}".rstrip() + stored


class Drawer:
    """Draws events: live bars on a terminal, one plain line per event elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self.task: Any = None
        self.last_line = time.monotonic()
        self.first: tuple[float, int] | None = None  # when this process's first progress was told, and how far it was
        self.progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[text]}"),
            console=console,
            transient=True,
            disable=not self.live,
        )

    def __enter__(self) -> "Drawer":
        """Start drawing."""
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Clear the bars."""
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Draw one event."""
        if event.kind == "progress":
            self._bar(event)
            return
        self.first = None
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None
        took = f" in {event.seconds:.1f} s" if event.seconds is not None else ""
        text = f": {event.text}" if event.text else ""
        self.console.print(f"{event.kind:>9}  {event.name}{took}{text}", highlight=False, markup=False)

    def _bar(self, event: Event) -> None:
        self.first = self.first or (time.monotonic(), event.done)
        if self.live:
            if self.task is None:
                self.task = self.progress.add_task(event.name, total=event.total, text=event.text)
            self.progress.update(self.task, completed=event.done, total=event.total, text=event.text)
        elif time.monotonic() - self.last_line > PLAIN_EVERY:
            self.last_line = time.monotonic()
            line = f" progress  {event.name} {event.done}/{event.total} {event.text}{self._time_left(event)}"
            self.console.print(line, highlight=False, markup=False)

    def _time_left(self, event: Event) -> str:
        """By the pace of this process: a stage that was resumed began in the middle."""
        began, at = self.first or (0.0, event.done)
        if event.done <= at:
            return ""
        left = (time.monotonic() - began) / (event.done - at) * (event.total - event.done)
        return f", about {left:.0f} s left"


def print_json(data: Any) -> None:
    """JSON on the output stream, as it is."""
    Console().out(json.dumps(data, indent=1, allow_nan=False, default=str), highlight=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, numeric: Sequence[str] = ()) -> Table:
    """A plain table; numeric columns are right-aligned."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column in numeric
        drawn.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    return drawn


def count(value: float) -> str:
    """12_345_678 -> 12.3M."""
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:g}"


def size(value: float) -> str:
    """Bytes -> KiB or MiB."""
    return f"{value / 2**20:.2f} MiB" if value >= 2**20 else f"{value / 2**10:.1f} KiB"


def forecast_cells(forecast: "Forecast") -> tuple[str, str, str]:
    """Parameters, MACs and bytes, each a number or a span."""

    def span(value: "Span", text: Callable[[float], str]) -> str:
        low, high = text(value.low), text(value.high)
        return low if low == high else f"{low} - {high}"

    return span(forecast.parameters, count), span(forecast.macs, count), span(forecast.weight_bytes, size)


def print_verdicts(console: Console, verdicts: "Sequence[Verdict]") -> None:
    """The verdict table, the reason of each failure, and the tally."""
    from eval.gate_records import is_near

    rows = []
    for v in verdicts:
        value = "exact" if v.exact else "not measured" if v.value is None else f"{v.value:.4g}"
        near = is_near(v.metric, v.value, v.limit, v.passed)
        limit = f"{'≈' if near else '≥' if v.kind == 'min' else '≤'} {v.limit:.4g}"
        state = "[green]passed[/]" if v.passed else f"[bold red]{'UNDECIDED' if v.undecided else 'FAILED'}[/]"
        unit = "" if v.metric == "achieved" else v.unit
        rows.append((state, v.subject, gate_words(v), value, limit, unit))
    console.print(table(("", "of", "gate", "value", "limit", "unit"), rows, numeric=("value", "limit")))
    failed = [v for v in verdicts if not v.passed]
    for v in failed:
        console.print(f"{v.subject} {v.metric}: {v.reason}", highlight=False, markup=False)
    console.print(f"{len(verdicts) - len(failed)} of {len(verdicts)} gates passed", highlight=False)
