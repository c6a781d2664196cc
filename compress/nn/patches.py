"""What stands in for a removed block: a scale and bias of each channel, or one 1x1 convolution, added to the stream.

Source: linear regression, in the block's own place: y = x + f(x) becomes y = x + A x + b, with A diagonal (`affine`) or
full (`pointwise`).
Differs: the identity stays outside of the 1x1 convolution, so that rounding its weights never touches the stream.
Cost: 2 c parameters and no MACs that are counted; or c * c + c parameters and c * c MACs per position.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import nn

Patch = Literal["affine", "pointwise"]


class MapAffine(nn.Module):
    """`weight * x + bias` for each channel; [n, c, h, w] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, x: Float[torch.Tensor, "n c h w"], *_: torch.Tensor) -> Float[torch.Tensor, "n c h w"]:
        return x * self.weight + self.bias


class MapPointwise(nn.Module):
    """`x + mix(x)` with a 1x1 convolution; [n, c, h, w] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Float[torch.Tensor, "n c h w"], *_: torch.Tensor) -> Float[torch.Tensor, "n c h w"]:
        return x + self.mix(x)


class TokenAffine(nn.Module):
    """`weight * x + bias` for each channel; [n, t, c] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[torch.Tensor, "n t c"], *_: torch.Tensor) -> Float[torch.Tensor, "n t c"]:
        return x * self.weight + self.bias


class TokenPointwise(nn.Module):
    """`x + mix(x)` with a linear layer; [n, t, c] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x: Float[torch.Tensor, "n t c"], *_: torch.Tensor) -> Float[torch.Tensor, "n t c"]:
        return x + self.mix(x)


def map_patch(patch: Patch, width: int) -> nn.Module:
    """The patch of a block on feature maps [n, c, h, w]."""
    return MapAffine(width) if patch == "affine" else MapPointwise(width)


def token_patch(patch: Patch, width: int) -> nn.Module:
    """The patch of a block on tokens [n, t, c]."""
    return TokenAffine(width) if patch == "affine" else TokenPointwise(width)
