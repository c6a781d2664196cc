"""What depth pruning would remove, to be looked at, shortened, and carried out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress.prune._depth_config import Config
from compress.records import Skipped

UNITS = {"macs": "GMAC", "parameters": "million parameters", "milliseconds": "ms"}  # of what a removal saves


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One removal."""

    name: str  # of the block or unit, before any removal
    blocks: int  # that go with it
    macs: int  # saved, less what a patch costs
    parameters: int  # saved, likewise
    milliseconds: float | None  # saved on the host at hand; None where not measured
    damage: float  # mean squared error to the component's own output, with all steps before it
    score: float  # by which it was chosen: damage that it adds per GMAC, million parameters or millisecond saved


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """The removals in their order. `print` it; `first` shortens it."""

    config: Config
    steps: tuple[Step, ...]
    left_alone: tuple[Skipped, ...]

    def first(self, count: int) -> "Proposal":
        """The first so many removals alone."""
        return replace(self, steps=self.steps[:count])

    def __str__(self) -> str:
        heads = (
            "",
            "removed",
            "MMACs saved",
            "parameters saved",
            "ms saved",
            "squared error",
            f"per {UNITS[self.config.per]}",
        )
        rows = [
            (
                f"{number}.",
                step.name,
                f"{step.macs / 1e6:,.1f}",
                f"{step.parameters:,}",
                "" if step.milliseconds is None else f"{step.milliseconds:.2f}",
                f"{step.damage:.3g}",
                f"{step.score:.3g}",
            )
            for number, step in enumerate(self.steps, start=1)
        ]
        used = [i for i in range(len(heads)) if any(row[i] for row in rows)] or [1]
        return "\n".join(_aligned([[row[i] for i in used] for row in (heads, *rows)]))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
