"""The order in which channels are missed least: greedy removal, each step scored exactly from second moments.

Source: Optimal Brain Surgeon (Hassibi et al. 1993) by whole columns, as in ZipLM (Kurtic et al. 2023,
arXiv:2302.04089): the inverse of the inputs' second moments gives the least error without a channel, and the inverse
without it, in closed form.
Differs: a channel is all elements of a kernel, and is read by several layers at once, whose errors add up; within each
norm group channels go at the same pace. Norms are taken as they were: that the others' statistics change is not seen.
Cost: channels * d^2 * kernel elements multiply-adds per layer, d = input channels * kernel elements.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

DAMPING = 1e-6  # of the mean second moment: a channel that is always 0 has no inverse
PACE = 1e-5  # each score in a norm group is larger by this share than the one before: the order survives rounding


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Consumer:
    """A layer that reads a group: which of its columns, and the second moments of all of them."""

    weight: Float64[Tensor, "o d"]
    gram: Float64[Tensor, "d d"]
    first: int  # column of the group's first channel
    size: int  # columns of the whole group; each channel has equally many neighbours


class _Solved:
    """A layer whose remaining columns are solved anew after every removal."""

    def __init__(self, consumer: Consumer, width: int) -> None:
        gram = consumer.gram
        damping = DAMPING * gram.diagonal().mean() + torch.finfo(torch.float64).tiny
        self.inverse = torch.linalg.inv(gram + damping * torch.eye(len(gram), dtype=torch.float64))
        self.weight = consumer.weight.clone()
        self.columns = consumer.first + torch.arange(consumer.size).reshape(width, -1)

    def damages(self) -> Float64[Tensor, " width"]:
        """What the removal of each channel adds to the squared error."""
        blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        gone = blocks.diagonal(dim1=1, dim2=2).abs().sum(1) == 0
        blocks = blocks + gone[:, None, None] * torch.eye(blocks.shape[1], dtype=torch.float64)
        parts = self.weight[:, self.columns].permute(1, 2, 0)  # channel, element, output
        return (parts * torch.linalg.solve(blocks, parts)).sum((1, 2))

    def remove(self, channel: int) -> None:
        """Take the channel out and let the others make up for it."""
        own = self.columns[channel]
        rows = torch.linalg.solve(self.inverse[own][:, own], self.inverse[own])
        self.weight -= self.weight[:, own] @ rows
        self.inverse -= self.inverse[:, own] @ rows
        self.weight[:, own] = 0.0
        self.inverse[own] = 0.0
        self.inverse[:, own] = 0.0


class _Zeroed:
    """A layer that loses columns and keeps the others as they are."""

    def __init__(self, consumer: Consumer, width: int) -> None:
        self.gram, self.weight = consumer.gram, consumer.weight
        self.columns = consumer.first + torch.arange(consumer.size).reshape(width, -1)
        blocks = self.gram[self.columns[:, :, None], self.columns[:, None, :]]
        parts = self.weight[:, self.columns].transpose(0, 1)  # channel, output, element
        self.alone = ((parts @ blocks) * parts).sum((1, 2))
        self.missing = torch.zeros_like(self.weight)  # the removed columns' outputs against every input

    def damages(self) -> Float64[Tensor, " width"]:
        """What the removal of each channel adds to the squared error."""
        return self.alone + 2 * (self.weight * self.missing).sum(0)[self.columns].sum(1)

    def remove(self, channel: int) -> None:
        """Take the channel out."""
        own = self.columns[channel]
        self.missing += self.weight[:, own] @ self.gram[own]


def eliminate(
    consumers: Sequence[Consumer], width: int, norm_groups: int, *, compensated: bool
) -> Float64[Tensor, " width"]:
    """A score for each channel, rising in the order of removal: the squared error that its removal adds.

    Within a norm group no score is below one before it, so that what is kept by score is what the search would keep.
    """
    layers: list[_Solved | _Zeroed] = [(_Solved if compensated else _Zeroed)(c, width) for c in consumers]
    scores, gone = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.bool)
    per_group = width // norm_groups
    last = torch.zeros(norm_groups, dtype=torch.float64)
    for _ in range(per_group):
        waiting = torch.ones(norm_groups, dtype=torch.bool)  # for their loss of this round
        while waiting.any():
            damages = sum((layer.damages() for layer in layers), torch.zeros(width, dtype=torch.float64))
            closed = gone | ~waiting.repeat_interleave(per_group)
            channel = int(damages.masked_fill(closed, torch.inf).argmin())
            home = channel // per_group
            last[home] = max(float(damages[channel]), float(last[home]) * (1 + PACE) + torch.finfo(torch.float32).tiny)
            scores[channel], gone[channel], waiting[home] = last[home], True, False
            for layer in layers:
                layer.remove(channel)
    return scores
