"""Channel identities: a number for every channel that a layer makes, merged when two must go or stay together.

Source: union-find (Galler and Fischer 1964), used on single channels where DepGraph (Fang et al. 2023,
arXiv:2301.12900) uses whole layers; so concatenation, splits, gates and pixel shuffles need no rules of their own.
Every value of a traced network carries a tensor of its own shape that says, for each element, to which channel it
belongs; 0 says to none.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

PAIR = 1 << 31  # two identities as one number
Role = Literal["writes", "reads", "norm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """One entry of one axis of one tensor of the state dict that belongs to a channel."""

    tensor: str
    axis: int
    index: int
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Normed:
    """A normalisation over groups of neighbouring channels: `channels[i]` is the identity of its i-th channel."""

    name: str
    groups: int
    channels: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class Identities:
    """All channels of one network while it is traced."""

    parents: list[int] = field(default_factory=lambda: [0])
    reasons: dict[int, str] = field(default_factory=dict)  # identity -> why it is fixed
    places: dict[tuple[str, int, int], tuple[int, Role]] = field(default_factory=dict)
    pinned: dict[str, str] = field(default_factory=dict)  # tensor -> why no axis of it may be cut
    norms: list[tuple[str, int, tuple[int, ...]]] = field(default_factory=list)

    def fresh(self, count: int) -> Int[Tensor, " count"]:
        """New channels that nothing is known of yet."""
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def find(self, label: int) -> int:
        """The number that stands for everything merged with `label`."""
        while self.parents[label] != label:
            self.parents[label] = self.parents[self.parents[label]]
            label = self.parents[label]
        return label

    def settled(self, labels: Tensor) -> Tensor:
        """The same labels, each as the number that stands for its channel now."""
        core, shape = labels, labels.shape
        for axis in range(labels.dim()):
            if labels.shape[axis] > 1 and labels.stride(axis) == 0:
                core = core.narrow(axis, 0, 1)
        if not core.any():
            return labels
        known, where = core.unique(return_inverse=True)
        roots = torch.tensor([self.find(label) for label in known.tolist()], dtype=torch.int64)
        return roots[where].expand(shape)

    def fix(self, labels: Tensor | Iterable[int], reason: str) -> None:
        """These channels must stay; the first reason is kept."""
        found = labels.unique().tolist() if isinstance(labels, Tensor) else labels
        for label in found:
            if label:
                self.reasons.setdefault(int(label), reason)

    def merge(self, one: Tensor, other: Tensor, reason: str) -> None:
        """Channels at the same place of two tensors go together; beside a 0 they are fixed, for this reason."""
        one, other = narrowed(one, other)
        pairs = (one.reshape(-1) * PAIR + other.reshape(-1)).unique()
        for a, b in zip((pairs // PAIR).tolist(), (pairs % PAIR).tolist(), strict=True):
            if a and b:
                low, high = sorted((self.find(a), self.find(b)))
                self.parents[high] = low
            else:
                self.fix((a, b), reason)

    def merge_along(self, labels: Tensor, axes: Sequence[int], reason: str) -> Tensor:
        """Everything along these axes goes together; returns the labels with one entry along each."""
        for axis in axes:
            first = labels.narrow(axis, 0, 1)
            self.merge(labels, first.expand_as(labels), reason)
            labels = first
        return labels

    def place(self, tensor: str, axis: int, channels: Int[Tensor, " n"], role: Role) -> None:
        """Entry i of this axis belongs to `channels[i]`; an axis that was placed before joins the two."""
        for index, label in enumerate(channels.tolist()):
            before, _ = self.places.setdefault((tensor, axis, index), (label, role))
            if before != label:
                shared = f"they share {tensor} with channels that are fixed"
                self.merge(torch.tensor([before]), torch.tensor([label]), shared)

    def classes(self) -> dict[int, list[Position]]:
        """Channels that go together -> every place of theirs, in the order of the trace."""
        found: dict[int, list[Position]] = defaultdict(list)
        for (tensor, axis, index), (label, role) in self.places.items():
            if label:
                found[self.find(label)].append(Position(tensor=tensor, axis=axis, index=index, role=role))
        return dict(found)

    def fixed(self) -> dict[int, str]:
        """Channels that must stay, and why."""
        why: dict[int, str] = {}
        for label, reason in self.reasons.items():
            why.setdefault(self.find(label), reason)
        for (tensor, _, _), (label, _) in self.places.items():
            if label and tensor in self.pinned:
                why.setdefault(self.find(label), self.pinned[tensor])
        return why

    def normed(self) -> list[Normed]:
        """Every normalisation over groups of channels."""
        return [
            Normed(name=name, groups=groups, channels=tuple(self.find(c) for c in channels))
            for name, groups, channels in self.norms
        ]


def varying(labels: Tensor) -> list[int]:
    """The axes along which identities differ."""
    return [
        axis
        for axis, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True))
        if size > 1 and stride != 0 and not torch.equal(labels, labels.narrow(axis, 0, 1).expand_as(labels))
    ]


def compacted(labels: Tensor) -> Tensor:
    """The same labels, holding no memory along axes where they do not differ."""
    shape, kept = labels.shape, varying(labels)
    for axis in range(labels.dim()):
        if axis not in kept and labels.shape[axis] > 1:
            labels = labels.narrow(axis, 0, 1)
    return labels.clone().expand(shape)


def narrowed(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both without the axes along which neither holds memory."""
    one, other = torch.broadcast_tensors(one, other)
    for axis in range(one.dim()):
        if one.shape[axis] > 1 and one.stride(axis) == other.stride(axis) == 0:
            one, other = one.narrow(axis, 0, 1), other.narrow(axis, 0, 1)
    return one, other
