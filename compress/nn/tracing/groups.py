"""Traced channels as channel groups: what may be cut, in the terms of `nn.structure`, and what may not, and why.

A group is all channels that lie in the same tensors in the same way. It must be expressible: channel `i` at
`offset + i * span` of each axis, with norm groups that do not tear it apart.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from compress.nn.structure import ChannelGroup, ChannelSlice, FixedChannels
from compress.nn.tracing.graph import trace
from compress.nn.tracing.identities import Identities, Normed, Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """The channels of a network: groups that may be cut, and those that may not."""

    groups: tuple[ChannelGroup, ...]
    fixed: tuple[FixedChannels, ...]


Channel = tuple[int, Sequence[Position]]  # its identity, and every place of it


def traced(module: nn.Module, inputs: tuple[Tensor, ...]) -> Traced:
    """The groups of a module in eval mode.

    Raises:
        Untraceable: torch cannot export it.
    """
    channels = trace(module, inputs)
    why, normed = channels.fixed(), channels.normed()
    groups, fixed, taken = list[ChannelGroup](), list[FixedChannels](), set[str]()
    for members in _alike(channels):
        name = _name(members, taken)
        taken.add(name)
        reason = next((why[label] for label, _ in members if label in why), None)
        made = _group(name, members, normed) if reason is None else reason
        if isinstance(made, str):
            fixed.append(FixedChannels(name=name, width=len(members), reason=made))
        else:
            groups.append(made)
    return Traced(groups=tuple(groups), fixed=tuple(fixed))


def _alike(channels: Identities) -> list[list[Channel]]:
    """Channels that lie in the same tensors equally often, in the order of the trace and then of their first place."""
    found: dict[tuple[tuple[str, int, int], ...], list[Channel]] = defaultdict(list)
    for label, positions in channels.classes().items():
        counts: dict[tuple[str, int], int] = defaultdict(int)
        for position in positions:
            counts[position.tensor, position.axis] += 1
        signature = tuple(sorted((tensor, axis, count) for (tensor, axis), count in counts.items()))
        found[signature].append((label, positions))
    return [sorted(members, key=_first_index) for members in found.values()]


def _first_index(channel: Channel) -> int:
    positions = channel[1]
    lead = min((p.tensor, p.axis) for p in positions)
    return min(p.index for p in positions if (p.tensor, p.axis) == lead)


def _name(members: Sequence[Channel], taken: set[str]) -> str:
    """The layer that makes the channels first, and a number where it makes several groups."""
    positions = members[0][1]
    writer = next((p for p in positions if p.role == "writes"), positions[0])
    name = writer.tensor.rpartition(".")[0] or writer.tensor
    number = next(n for n in range(1, len(taken) + 2) if (name if n == 1 else f"{name}:{n}") not in taken)
    return name if number == 1 else f"{name}:{number}"


def _group(name: str, members: Sequence[Channel], normed: Sequence[Normed]) -> ChannelGroup | str:
    """The group, or why it cannot be stated as one."""
    slices = _slices(members)
    if isinstance(slices, str):
        return slices
    norm_groups = _norm_groups(members, normed)
    if isinstance(norm_groups, str):
        return norm_groups
    makers = {s.tensor for s in slices if s.role == "writes" and s.tensor.endswith("weight")}
    if not makers:
        return "no layer of the module makes them"
    if len(members) < 2:
        return "it is a single channel"
    per_channel: dict[tuple[str, int], int] = defaultdict(int)
    for part in slices:
        per_channel[part.tensor, part.axis] += part.span
    return ChannelGroup(
        name=name,
        kind="stream" if len(makers) > 1 else "inner",
        width=len(members),
        norm_groups=norm_groups,
        slices=slices,
        unit=min(per_channel.values()),
    )


def _slices(members: Sequence[Channel]) -> tuple[ChannelSlice, ...] | str:
    slices = []
    roles = {(p.tensor, p.axis): p.role for p in members[0][1]}
    for (tensor, axis), role in roles.items():
        indices = [
            sorted(p.index for p in positions if (p.tensor, p.axis) == (tensor, axis)) for _, positions in members
        ]
        runs = _runs(indices[0])
        stated = [
            sorted(start + i * span + k for start, span in runs for k in range(span)) for i in range(len(members))
        ]
        if stated != indices:
            return f"they do not lie evenly along axis {axis} of {tensor}"
        slices += [ChannelSlice(tensor=tensor, axis=axis, role=role, span=span, offset=start) for start, span in runs]
    return tuple(slices)


def _runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours as (start, length)."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and sum(runs[-1]) == index:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return runs


def _norm_groups(members: Sequence[Channel], normed: Sequence[Normed]) -> int | str:
    """How many runs of neighbours must lose equally many channels, or why that cannot be said."""
    ours, least = [label for label, _ in members], 1
    for norm in normed:
        if norm.groups == 1 or not set(norm.channels) & set(ours):
            continue
        span = len(norm.channels) // len(ours)
        if norm.channels != tuple(label for label in ours for _ in range(span)):
            return f"'{norm.name}' normalises them in {norm.groups} groups together with others, or in another order"
        least = math.lcm(least, norm.groups)
    if len(ours) % least:
        return f"their {len(ours)} channels are not a multiple of the {least} groups that they are normalised in"
    if least == len(ours) and least > 1:
        return f"each of the {least} groups that they are normalised in has one channel"
    return least
