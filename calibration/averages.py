"""What a layer reads on average, streamed: enough to know a rounded twin's mean error without running it.

Source: the mean of a layer's outputs is linear in what its kernel's elements read on average; its use is the bias
correction of Nagel et al. 2019 (arXiv:1906.04721), section 4.2.
Differs: the averages are exact, element by element of the kernel and with the padding, not those of the whole channel.
What a grid does to the values is seen on some that are kept, so that the grid need not be known during the pass.
Cost: one read of a layer's input.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, without their integers, are spread evenly and in step with nothing

Layer = nn.Conv2d | nn.Linear


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reads:
    """Of c input channels by a kernel of k x k2 elements; 1 x 1 for a linear layer."""

    total: Float64[Tensor, "c k k2"]  # what each element reads, summed over all outputs
    inside: Float64[Tensor, "k k2"]  # for how many outputs an element reads a value, not the padding
    count: int  # outputs per channel

    @property
    def mean(self) -> Float64[Tensor, "c k k2"]:
        """What each element reads on average, padding included."""
        return self.total / self.count

    @property
    def share_inside(self) -> Float64[Tensor, "k k2"]:
        """The part of the outputs for which an element reads a value."""
        return self.inside / self.count


def start(layer: Layer, x: Float[Tensor, "..."]) -> Reads:
    """The reads of one call of the layer on x: [n, c, h, w], or [..., c] for a linear layer."""
    x = x.detach()
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
        total = rows.sum(0, dtype=torch.float64).cpu()[:, None, None]
        return Reads(total=total, inside=torch.full((1, 1), len(rows), dtype=torch.float64), count=len(rows))
    down, across = (_window(layer, x.shape[2 + axis], axis) for axis in (0, 1))
    return Reads(
        total=_columns(x, down.read().to(x)).double().cpu() @ across.read().T,
        inside=x.shape[0] * torch.outer(down.read().sum(1), across.read().sum(1)),
        count=x.shape[0] * down.outputs * across.outputs,
    )


def _columns(x: Float[Tensor, "n c h w"], read: Float[Tensor, "k h"]) -> Float[Tensor, "c k w"]:
    """Sums over the rows that each element of a kernel's column reads, by one product with zeros and ones."""
    if x.is_contiguous(memory_format=torch.channels_last):
        lying = x.permute(0, 2, 3, 1)
        return (read @ lying.flatten(2)).sum(0).unflatten(1, lying.shape[2:]).movedim(2, 0)
    return (read @ x).sum(0)


def merge(a: Reads, b: Reads) -> Reads:
    """The reads of both."""
    return Reads(total=a.total + b.total, inside=a.inside + b.inside, count=a.count + b.count)


def some_rows(layer: Layer, value: Float[Tensor, "..."], most: int, *, turn: int = 0) -> Float[Tensor, "rows c"]:
    """All channels of an input or an output of the layer at some positions (pixels or tokens), spread evenly.

    Args:
        layer: Whose channels: axis 1 of a convolution's, the last of a linear layer's.
        value: With the samples along the first axis.
        most: How many positions of each sample, at most.
        turn: Another turn gives other positions.
    """
    value = value.detach()
    if isinstance(layer, nn.Linear):
        by_sample = value.reshape(value.shape[0], -1, value.shape[-1])
        return by_sample[:, _positions(by_sample.shape[1], most, turn)].flatten(0, 1)
    height, width = value.shape[2:]
    at = _positions(height * width, most, turn)
    return value[:, :, at // width, at % width].movedim(1, 2).flatten(0, 1)


def _positions(count: int, most: int, turn: int) -> Int64[Tensor, " p"]:
    if count <= most:
        return torch.arange(count)
    spots = torch.arange(turn * most, (turn + 1) * most, dtype=torch.float64) * GOLDEN
    return ((spots % 1.0) * count).long().clamp(max=count - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """One axis of a convolution."""

    size: int
    outputs: int
    kernel: int
    stride: int
    dilation: int
    padding: int  # before the first value

    def read(self) -> Float64[Tensor, "kernel size"]:
        """1 where an element of the kernel reads a value for some output."""
        at = (
            torch.arange(self.outputs) * self.stride + torch.arange(self.kernel)[:, None] * self.dilation - self.padding
        )
        at = torch.where((at >= 0) & (at < self.size), at, self.size)  # the padding is one more column, to be left out
        return torch.zeros(self.kernel, self.size + 1, dtype=torch.float64).scatter(1, at, 1.0)[:, : self.size]


def _window(layer: nn.Conv2d, size: int, axis: int) -> _Window:
    kernel, dilation, stride = layer.kernel_size[axis], layer.dilation[axis], layer.stride[axis]
    reach = dilation * (kernel - 1)
    if isinstance(layer.padding, str):
        both = reach if layer.padding == "same" else 0
        before = both // 2
    else:
        before = cast("tuple[int, int]", layer.padding)[axis]
        both = 2 * before
    return _Window(
        size=size,
        outputs=(size + both - reach - 1) // stride + 1,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        padding=before,
    )
