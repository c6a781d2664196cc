"""Convolutional blocks of a latent-diffusion autoencoder: ResNet block, upsampler, downsampler.

Source: the blocks of Rombach et al. 2022 (arXiv:2112.10752), as diffusers' `ResnetBlock2D` writes them.
Differs: the inner width of a block is its own number, so one block can be narrowed without its neighbours, and an
upsampler may change the width, so that every ResNet block behind it has an identity shortcut and can be removed whole.
"""

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional

NORM_EPS = 1e-6


class ResnetBlock(nn.Module):
    """`shortcut(x) + conv2(swish(norm2(conv1(swish(norm1(x))))))`; [n, c_in, h, w] to [n, c_out, h, w].

    The shortcut is the identity where `c_in == c_out`, else a 1x1 convolution.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, *, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(norm_groups, hidden_channels, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(hidden_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[torch.Tensor, "n c_in h w"]) -> Float[torch.Tensor, "n c_out h w"]:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(functional.silu(self.norm2(hidden)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution; [n, c_in, h, w] to [n, c_out, 2h, 2w]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Float[torch.Tensor, "n c_in h w"]) -> Float[torch.Tensor, "n c_out h2 w2"]:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Downsample(nn.Module):
    """A 3x3 convolution with stride 2, padded on the right and bottom only; [n, c_in, 2h, 2w] to [n, c_out, h, w]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2)

    def forward(self, x: Float[torch.Tensor, "n c_in h w"]) -> Float[torch.Tensor, "n c_out h2 w2"]:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))
