"""A width cut that has been decided but not done: what goes from each group, and what that saves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from compress.records import Arch


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCut:
    """One group of channels before and after."""

    name: str
    kind: str  # stream or inner
    before: int
    after: int
    lost: float  # share of the group's importance that goes
    untouched: str | None = None  # why nothing goes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proposal:
    """Widths, with everything needed to look at them, to change them and to carry them out."""

    config: Any  # width.Config
    before: Arch
    after: Arch
    groups: tuple[GroupCut, ...]
    scores: Mapping[str, torch.Tensor]  # importance of each channel of each group that may be cut
    macs: tuple[int, int]  # before and after, for an image of 512 x 512 pixels
    parameters: tuple[int, int]
    latency: tuple[float, float, float] | None = None  # measured: ratio, and its 95% interval

    @property
    def widths(self) -> dict[str, int]:
        """Group -> new width, for the groups that may be cut."""
        return {g.name: g.after for g in self.groups if g.name in self.scores}

    def __str__(self) -> str:
        """A table, a row for each group, and what is saved in all."""
        size = max(len(g.name) for g in self.groups) if self.groups else 0
        rows = [f"{'group':{size}}  kind    before  after  importance lost"]
        for g in self.groups:
            end = g.untouched or f"{g.lost:.1%}"
            rows.append(f"{g.name:{size}}  {g.kind:6}  {g.before:6}  {g.after:5}  {end}")
        rows += [_saved("MACs", self.macs), _saved("parameters", self.parameters)]
        if self.latency is not None:
            ratio, low, high = self.latency
            rows.append(f"latency here: {ratio:.2f} of before (95% interval {low:.2f} to {high:.2f})")
        return "\n".join(rows)


def _saved(what: str, figures: tuple[int, int]) -> str:
    before, after = figures
    return f"{what}: {before:,} -> {after:,} ({after / before:.1%})"
