"""Convolutional blocks of a diffusion UNet: ResNet block that knows the time step, embeddings, resampling.

Source: the blocks of Rombach et al. 2022 (arXiv:2112.10752), as diffusers' `ResnetBlock2D` writes them, with its tensor
names; scale-shift of Nichol and Dhariwal 2021 (arXiv:2102.09672); separable convolutions with a depth multiplier after
MobileDiffusion (Zhao et al. 2023, arXiv:2311.16567), section 3.2.
Differs: the inner width of a block is its own number, so that one block can be narrowed without its neighbours.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional

NORM_EPS = 1e-5


class PassThrough(nn.Module):
    """What stands where a block was taken out: gives its first input back."""

    def forward(self, x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return x


def waves(numbers: Float[torch.Tensor, "*n"], channels: int) -> Float[torch.Tensor, "*n channels"]:
    """Each number as cosines, then sines, of falling frequency, in float32.

    Source: Ho et al. 2020 (arXiv:2006.11239), with the cosines first, as in Stable Diffusion.
    """
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=numbers.device) * (-math.log(10_000.0) / half)
    angles = numbers[..., None].float() * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Time steps [n] to [n, width]: waves, then two linear layers."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1 = nn.Linear(channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timesteps: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, "n width"]:
        given = waves(timesteps, self.channels).to(self.linear_1.bias.dtype)
        return self.linear_2(functional.silu(self.linear_1(given)))


class AddedEmbedding(nn.Module):
    """A pooled text state [n, pooled] and numbers [n, count] to [n, width], to be added to the time embedding.

    Source: Podell et al. 2023 (arXiv:2307.01952), section 2.2: sizes and crops of the picture as a condition.
    """

    def __init__(self, in_width: int, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1 = nn.Linear(in_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(
        self, pooled: Float[torch.Tensor, "n pooled"], numbers: Float[torch.Tensor, "n count"]
    ) -> Float[torch.Tensor, "n width"]:
        given = torch.cat([pooled, waves(numbers, self.channels).flatten(1).to(pooled.dtype)], dim=1)
        return self.linear_2(functional.silu(self.linear_1(given)))


class SeparableConv(nn.Module):
    """A 3x3 depthwise convolution that makes `multiplier` maps of each channel, then a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, multiplier: int) -> None:
        super().__init__()
        wide = in_channels * multiplier
        self.depthwise = nn.Conv2d(in_channels, wide, 3, padding=1, groups=in_channels)
        self.pointwise = nn.Conv2d(wide, out_channels, 1)

    def forward(self, x: Float[torch.Tensor, "n c_in h w"]) -> Float[torch.Tensor, "n c_out h w"]:
        return self.pointwise(self.depthwise(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class ResnetShape:
    """How one ResNet block is built. `multiplier` is None for full 3x3 convolutions."""

    in_channels: int
    hidden: int
    out_channels: int
    time_width: int
    time: Literal["add", "scale_shift"]
    norm_groups: int
    multiplier: int | None


def _conv3x3(in_channels: int, out_channels: int, multiplier: int | None) -> nn.Module:
    if multiplier is None:
        return nn.Conv2d(in_channels, out_channels, 3, padding=1)
    return SeparableConv(in_channels, out_channels, multiplier)


class TimedResnetBlock(nn.Module):
    """ResNet block with the time step between its convolutions; [n, c_in, h, w] to [n, c_out, h, w].

    `add`: a bias for each hidden channel, before the second norm. `scale_shift`: factor 1 + s and bias, behind it.
    The shortcut is the identity where `c_in == c_out`, else a 1x1 convolution.
    """

    def __init__(self, shape: ResnetShape) -> None:
        super().__init__()
        self.scale_shift = shape.time == "scale_shift"
        self.norm1 = nn.GroupNorm(shape.norm_groups, shape.in_channels, eps=NORM_EPS)
        self.conv1 = _conv3x3(shape.in_channels, shape.hidden, shape.multiplier)
        self.time_emb_proj = nn.Linear(shape.time_width, shape.hidden * (2 if self.scale_shift else 1))
        self.norm2 = nn.GroupNorm(shape.norm_groups, shape.hidden, eps=NORM_EPS)
        self.conv2 = _conv3x3(shape.hidden, shape.out_channels, shape.multiplier)
        self.conv_shortcut = (
            nn.Identity()
            if shape.in_channels == shape.out_channels
            else nn.Conv2d(shape.in_channels, shape.out_channels, 1)
        )

    def forward(
        self, x: Float[torch.Tensor, "n c_in h w"], time: Float[torch.Tensor, "n width"]
    ) -> Float[torch.Tensor, "n c_out h w"]:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        step = self.time_emb_proj(functional.silu(time))[:, :, None, None]
        if self.scale_shift:
            scale, shift = step.chunk(2, dim=1)
            hidden = self.norm2(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm2(hidden + step)
        return self.conv_shortcut(x) + self.conv2(functional.silu(hidden))


class HalvingConv(nn.Module):
    """A 3x3 convolution with stride 2, padded on all sides; [n, c, 2h, 2w] to [n, c, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[torch.Tensor, "n c h2 w2"]) -> Float[torch.Tensor, "n c h w"]:
        return self.conv(x)


class DoublingConv(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution; [n, c, h, w] to [n, c, 2h, 2w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, "n c h2 w2"]:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class TimedShortcut(nn.Module):
    """The 1x1 shortcut that is left of a ResNet block taken out; [n, c_in, h, w] to [n, c_out, h, w]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[torch.Tensor, "n c_in h w"], *_: torch.Tensor) -> Float[torch.Tensor, "n c_out h w"]:
        return self.conv_shortcut(x)
