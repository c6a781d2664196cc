"""Extremes, mean and energy of every channel of an activation, streamed.

Source: the merging of means and second moments is plain addition of sums, in float64.
Cost: four numbers per channel, whatever the number of samples.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor

from calibration.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Statistics of each of c channels over everything that was seen."""

    minimum: Float[Tensor, " c"]
    maximum: Float[Tensor, " c"]
    total: Float[Tensor, " c"]  # sum of the values, float64
    squares: Float[Tensor, " c"]  # sum of their squares, float64
    count: int  # values per channel

    @property
    def mean(self) -> Float[Tensor, " c"]:
        """Average of each channel."""
        return self.total / self.count

    @property
    def energy(self) -> Float[Tensor, " c"]:
        """Average square of each channel."""
        return self.squares / self.count

    @property
    def peak(self) -> Float[Tensor, " c"]:
        """Largest magnitude of each channel."""
        return torch.maximum(-self.minimum, self.maximum)


def start(tensor: Num[Tensor, "..."], axis: int, *, name: str = "the tensor") -> Moments:
    """The moments of one tensor's channels along `axis`.

    Raises:
        DataError: the tensor is empty, or holds NaN or infinity; the message has `name`.
    """
    if tensor.numel() == 0:
        raise DataError(f"{name} is empty; run the module on inputs with at least one value")
    rows = tensor.detach().movedim(axis, 0).flatten(1).float()
    low, high = rows.aminmax(dim=1)
    if not (low.isfinite().all() and high.isfinite().all()):
        raise DataError(f"{name} holds NaN or infinity; check the weights and the inputs of the module")
    return Moments(
        minimum=low,
        maximum=high,
        total=rows.sum(dim=1, dtype=torch.float64),
        squares=rows.square().sum(dim=1, dtype=torch.float64),
        count=rows.shape[1],
    )


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both together."""
    return Moments(
        minimum=torch.minimum(a.minimum, b.minimum),
        maximum=torch.maximum(a.maximum, b.maximum),
        total=a.total + b.total,
        squares=a.squares + b.squares,
        count=a.count + b.count,
    )
