"""Which widths meet a budget: channels leave in steps, the steps of all groups stand in one line, and a prefix goes.

Source: global ranking by importance per cost, as in Molchanov et al. 2019 (arXiv:1906.10771); latency in the place of
its proxy as in SnapFusion (Li et al. 2023, arXiv:2306.00980).
Differs: a step is what kernels and norm groups allow, so the budget is met after rounding, to within one step; the cost
of a candidate is counted on its real architecture, and latency is measured on it, not summed from a table.
Cost: one pass on the meta device per group, and a dozen more; for latency a dozen paired measurements.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from compress.components import build, cost_of, kind_of
from compress.errors import UserError
from compress.nn import cost
from compress.nn.structure import ChannelGroup
from compress.records import Arch, Inputs, Variant
from eval.metrics import latency

LATENCY_SECONDS = 2.0  # per candidate; three times as long for the one that is chosen
PIXELS = 512  # side of the image that MACs are counted for: attention's share depends on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Some channels of one group that leave together."""

    group: str
    width: int  # what is left of the group after it
    gone: int  # channels that go
    rank: float  # steps leave in rising order


def ladder(group: ChannelGroup, step: int, most: float) -> tuple[int, ...]:
    """The widths that a group can be cut to, falling: multiples of `step` that lose at most the share `most`."""
    top = (group.width - 1) // step * step
    return tuple(w for w in range(top, 0, -step) if group.width - w <= most * group.width + 1e-9)


def evenly(groups: Sequence[ChannelGroup], ladders: Mapping[str, Sequence[int]]) -> list[Step]:
    """Steps ranked so that all groups shrink by the same share."""
    steps = []
    for group in groups:
        before = group.width
        for width in ladders[group.name]:
            rank = 1 - (before + width) / 2 / group.width  # the share gone in the middle of the step
            steps.append(Step(group=group.name, width=width, gone=before - width, rank=rank))
            before = width
    return sorted(steps, key=lambda s: s.rank)


def by_importance(
    groups: Sequence[ChannelGroup],
    ladders: Mapping[str, Sequence[int]],
    scores: Mapping[str, torch.Tensor],
    price: Mapping[str, float],
) -> list[Step]:
    """Steps ranked by the importance that goes per cost that is saved; a later step of a group never before an earlier.

    Args:
        groups: The groups that may be cut.
        ladders: The widths that each can have.
        scores: Each channel's importance, comparable between groups.
        price: What one channel of a group costs.
    """
    steps = []
    for group in groups:
        rows = scores[group.name].double().reshape(group.norm_groups, -1).sort(dim=1).values.sum(0)
        before, rank = group.width, -torch.inf
        for width in ladders[group.name]:
            first, last = ((group.width - w) // group.norm_groups for w in (before, width))
            worth = float(rows[first:last].sum()) / max(price[group.name] * (before - width), 1e-30)
            rank = max(rank, worth)
            steps.append(Step(group=group.name, width=width, gone=before - width, rank=rank))
            before = width
    return sorted(steps, key=lambda s: s.rank)


def after(steps: Sequence[Step]) -> dict[str, int]:
    """Group -> width once these steps have been taken."""
    return {step.group: step.width for step in steps}


def shortest(steps: Sequence[Step], enough: Callable[[dict[str, int]], bool]) -> dict[str, int] | None:
    """The widths after the fewest steps that are enough, by bisection; None where all of them are not."""
    if not enough(after(steps)):
        return None
    low, high = 0, len(steps)  # `high` steps are enough
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(after(steps[:middle])) else (middle + 1, high)
    return after(steps[:high])


def counted(arch: Arch, widths: Mapping[str, int]) -> cost.Cost:
    """What the network costs with these widths."""
    kind = kind_of(arch.kind)
    return cost_of(Arch(kind=arch.kind, config=kind.with_widths(arch.config, widths)), PIXELS)


def prices(
    arch: Arch, groups: Sequence[ChannelGroup], ladders: Mapping[str, Sequence[int]], figure: str
) -> dict[str, float]:
    """What one channel of each group costs, all others at their width: `figure` is "macs" or "parameters"."""
    whole = getattr(counted(arch, {}), figure)
    found = {}
    for group in groups:
        for width in ladders[group.name][:1]:
            found[group.name] = (whole - getattr(counted(arch, {group.name: width}), figure)) / (group.width - width)
    return found


def fast_enough(
    variant: Variant, steps: Sequence[Step], example: Inputs, ratio: float
) -> tuple[dict[str, int], tuple[float, float, float]]:
    """The widths after the fewest steps whose latency is this share of the variant's; and that, measured once more.

    In torch on this host, structure against structure: the candidates' weights are arbitrary. Measured, so not
    reproducible to the bit; the second measurement is free of the luck by which the first was chosen.

    Raises:
        UserError: even all steps together are not enough.
    """

    def measured(widths: Mapping[str, int], seconds: float) -> latency.LatencyRatio:
        kind = kind_of(variant.arch.kind)
        candidate = build(Arch(kind=variant.arch.kind, config=kind.with_widths(variant.arch.config, widths)))
        sampling = latency.Sampling(seconds=seconds, min_pairs=7)
        return latency.paired_ratio(_work(variant.module, example), _work(candidate, example), sampling=sampling)

    widths = shortest(steps, lambda w: measured(w, LATENCY_SECONDS).ratio <= ratio)
    if widths is None:
        raise UserError(
            f"prune.width: {1 - ratio:.2f} of the latency cannot be removed on this host with every group at its least "
            "width; lower ratio, or raise most"
        )
    found = measured(widths, 3 * LATENCY_SECONDS)
    return widths, (found.ratio, found.low, found.high)


def _work(module: nn.Module, example: Inputs) -> Callable[[], object]:
    def work() -> object:
        with torch.no_grad():
            return module(*example)

    return work
