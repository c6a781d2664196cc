"""Convolutional blocks of a latent-diffusion autoencoder: ResNet block, attention over pixels, upsampler, downsampler.

Source: the blocks of Rombach et al. 2022 (arXiv:2112.10752), as diffusers' `ResnetBlock2D`, `Attention`, `Upsample2D`
and `Downsample2D` write them.
Differs: the inner width of a block is its own number, so one block can be narrowed without its neighbours; an
upsampler may change the width, so that every ResNet block behind it has an identity shortcut and can be removed whole;
attention projects with 1x1 convolutions, not with linear layers, so that a decoder is made of convolutions alone.
"""

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional

NORM_EPS = 1e-6


class ResnetBlock(nn.Module):
    """`shortcut(x) + conv2(swish(norm2(conv1(swish(norm1(x))))))`; [n, c_in, h, w] to [n, c_out, h, w].

    The shortcut is a 1x1 convolution where `projected`, else the identity. It is asked for, not read from the widths:
    after pruning, both may happen to be equal.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, out_channels: int, *, norm_groups: int, projected: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(norm_groups, hidden_channels, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(hidden_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if projected else nn.Identity()

    def forward(self, x: Float[torch.Tensor, "n c_in h w"]) -> Float[torch.Tensor, "n c_out h w"]:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(functional.silu(self.norm2(hidden)))


class ShortcutBlock(nn.Module):
    """The 1x1 shortcut that is left of a ResNet block taken out; [n, c_in, h, w] to [n, c_out, h, w]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[torch.Tensor, "n c_in h w"]) -> Float[torch.Tensor, "n c_out h w"]:
        return self.shortcut(x)


class PixelAttention(nn.Module):
    """`x + out(softmax(q k / sqrt(scale_width)) v)` between all pixels, one head; [n, c, h, w] to the same.

    `scale_width` is the width of the keys before any of them was cut: the scores keep their scale.
    Cost: h * w * h * w * (keys + values) MACs beside the projections, and a matrix of (h * w)^2 scores.
    """

    def __init__(self, channels: int, keys: int, values: int, *, scale_width: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=NORM_EPS)
        self.q = nn.Conv2d(channels, keys, 1)
        self.k = nn.Conv2d(channels, keys, 1)
        self.v = nn.Conv2d(channels, values, 1)
        self.out = nn.Conv2d(values, channels, 1)
        self.scale = scale_width**-0.5

    def forward(self, x: Float[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, "n c h w"]:
        normed = self.norm(x)
        q, k, v = (project(normed).flatten(2) for project in (self.q, self.k, self.v))
        weights = torch.softmax((q * self.scale).transpose(1, 2) @ k, dim=-1)
        mixed = v @ weights.transpose(1, 2)
        return x + self.out(mixed.unflatten(2, x.shape[2:]))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution; [n, c_in, h, w] to [n, c_out, 2h, 2w]."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Float[torch.Tensor, "n c_in h w"]) -> Float[torch.Tensor, "n c_out h2 w2"]:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    """A 3x3 convolution with stride 2, padded on the right and bottom only; [n, c_in, 2h, 2w] to [n, c_out, h, w]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2)

    def forward(self, x: Float[torch.Tensor, "n c_in h w"]) -> Float[torch.Tensor, "n c_out h2 w2"]:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))
