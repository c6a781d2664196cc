"""The VAE of a latent-diffusion model: an encoder to f8 latents and the image decoder that recipes compress.

Source: the layers are those of Rombach et al. 2022 (arXiv:2112.10752), and one configuration covers diffusers'
`AutoencoderKL` (Stable Diffusion 1.x, 2.x, XL) and the decoders of MobileDiffusion (Zhao et al. 2023, arXiv:2311.16567,
section 3.3: f8, 8 latent channels, pruned in width and depth) and SnapFusion (Li et al. 2023, arXiv:2306.00980).
Differs: an optional linear path (one 1x1 convolution and depth-to-space) beside the network, so that training starts
from what principal components already know; images are in [0, 1] on both ends, whatever range the network itself has,
and latents are those that the diffusion UNet works on.
"""

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional

from compress.components._vae_config import PATCH, Attention, DecoderConfig, EncoderConfig, Inner, Level, Mid
from compress.components._vae_structure import (
    blocks,
    channel_groups,
    units,
    with_patches,
    with_widths,
    without_blocks,
)
from compress.nn.blocks import NORM_EPS, Downsample, PixelAttention, ResnetBlock, ShortcutBlock, Upsample
from compress.nn.patches import Patch, map_patch
from compress.nn.structure import Kind

__all__ = [
    "KINDS",
    "PATCH",
    "Attention",
    "Decoder",
    "DecoderConfig",
    "Encoder",
    "EncoderConfig",
    "Level",
    "Mid",
    "blocks",
    "channel_groups",
    "units",
    "with_patches",
    "with_widths",
    "without_blocks",
]


def _resnet(inner: Inner, width: int, *, entry: int | None = None, norm_groups: int) -> nn.Module:
    """One ResNet block, or what stands in its place; `entry` is the width before a 1x1 shortcut."""
    arriving = width if entry is None else entry
    if isinstance(inner, int):
        return ResnetBlock(arriving, inner, width, norm_groups=norm_groups, projected=entry is not None)
    return ShortcutBlock(arriving, width) if inner == "shortcut" else map_patch(inner, width)


class ResolutionLevel(nn.Module):
    """The ResNet blocks of one level, then its step to the next resolution."""

    def __init__(self, level: Level, norm_groups: int, step: type[Upsample | Downsample]) -> None:
        super().__init__()
        entries = (level.entry, *[None] * len(level.hidden))
        self.resnets = nn.ModuleList(
            _resnet(hidden, level.width, entry=entry, norm_groups=norm_groups)
            for hidden, entry in zip(level.hidden, entries, strict=False)
        )
        self.step = nn.Identity() if level.step is None else step(level.width, level.step)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.resnets:
            x = block(x)
        return self.step(x)


def _attention(attention: Attention | Patch | None, width: int, norm_groups: int) -> nn.Module | None:
    if attention is None:
        return None
    if isinstance(attention, str):
        return map_patch(attention, width)
    sizes = {"scale_width": attention.scale_width, "norm_groups": norm_groups}
    return PixelAttention(width, attention.keys, attention.values, **sizes)


class MidBlock(nn.Module):
    """ResNet blocks, attention or none, ResNet blocks, all at the latents' resolution; [n, c, h, w] to the same."""

    def __init__(self, mid: Mid, width: int, norm_groups: int) -> None:
        super().__init__()
        self.before = nn.ModuleList(_resnet(h, width, norm_groups=norm_groups) for h in mid.before)
        self.attention = _attention(mid.attention, width, norm_groups)
        self.after = nn.ModuleList(_resnet(h, width, norm_groups=norm_groups) for h in mid.after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.before:
            x = block(x)
        if self.attention is not None:
            x = self.attention(x)
        for block in self.after:
            x = block(x)
        return x


class Decoder(nn.Module):
    """The diffusion UNet's latents [n, latent_channels, h, w] to images [n, 3, 8h, 8w] in [0, 1]."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        first, last, z = config.levels[0], config.levels[-1], config.latent_channels
        self.post_quant_conv = nn.Conv2d(z, z, 1) if config.quant_conv else None
        self.conv_in = nn.Conv2d(z, first.width, 3, padding=1)
        self.mid = None if config.mid is None else MidBlock(config.mid, first.width, config.norm_groups)
        self.levels = nn.ModuleList(ResolutionLevel(x, config.norm_groups, Upsample) for x in config.levels)
        self.norm_out = nn.GroupNorm(config.norm_groups, last.width, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(last.width, 3, 3, padding=1)
        self.linear = nn.Conv2d(z, 3 * PATCH * PATCH, 1) if config.linear_path else None

    def forward(self, latents: Float[torch.Tensor, "n z h w"]) -> Float[torch.Tensor, "n 3 H W"]:
        scale, shift = self.config.scaling_factor, self.config.shift_factor
        if (scale, shift) != (1.0, 0.0):
            latents = latents / scale + shift
        x = self.conv_in(latents if self.post_quant_conv is None else self.post_quant_conv(latents))
        if self.mid is not None:
            x = self.mid(x)
        for level in self.levels:
            x = level(x)
        image = self.conv_out(functional.silu(self.norm_out(x)))
        if self.linear is not None:
            image = image + functional.pixel_shuffle(self.linear(latents), PATCH)
        low, high = self.config.image_range
        if (low, high) != (0.0, 1.0):
            image = (image - low) / (high - low)
        clamped = image.clamp(0.0, 1.0)
        # In training the value is clamped but the gradient is not: a pixel driven out of range can come back.
        return image + (clamped - image).detach() if self.training else clamped


class Encoder(nn.Module):
    """Images [n, 3, 8h, 8w] in [0, 1] to the diffusion UNet's latents [n, latent_channels, h, w]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        first, last, z = config.levels[0], config.levels[-1], config.latent_channels
        self.conv_in = nn.Conv2d(3, first.width, 3, padding=1)
        self.levels = nn.ModuleList(ResolutionLevel(x, config.norm_groups, Downsample) for x in config.levels)
        self.mid = None if config.mid is None else MidBlock(config.mid, last.width, config.norm_groups)
        self.norm_out = nn.GroupNorm(config.norm_groups, last.width, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(last.width, 2 * z, 3, padding=1)
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1) if config.quant_conv else None
        self.linear = nn.Conv2d(3, z, PATCH, stride=PATCH) if config.linear_path else None

    def moments(
        self, images: Float[torch.Tensor, "n 3 H W"]
    ) -> tuple[Float[torch.Tensor, "n z h w"], Float[torch.Tensor, "n z h w"]]:
        """Mean and log-variance of the posterior, on the network's own scale, each [n, latent_channels, h, w]."""
        low, high = self.config.image_range
        if (low, high) != (0.0, 1.0):
            images = images * (high - low) + low
        x = self.conv_in(images)
        for level in self.levels:
            x = level(x)
        if self.mid is not None:
            x = self.mid(x)
        x = self.conv_out(functional.silu(self.norm_out(x)))
        mean, log_variance = (x if self.quant_conv is None else self.quant_conv(x)).chunk(2, dim=1)
        if self.linear is not None:
            mean = mean + self.linear(images)
        return mean, log_variance

    def forward(self, images: Float[torch.Tensor, "n 3 H W"]) -> Float[torch.Tensor, "n z h w"]:
        """The posterior's mean on the diffusion UNet's scale: what decoding, calibration and evaluation use."""
        mean, scale, shift = self.moments(images)[0], self.config.scaling_factor, self.config.shift_factor
        return mean if (scale, shift) == (1.0, 0.0) else (mean - shift) * scale


def _latent_shape(config: DecoderConfig, pixels: int) -> tuple[int, ...]:
    return (1, config.latent_channels, pixels // PATCH, pixels // PATCH)


KINDS = {
    "decoder": Kind(
        config=DecoderConfig,
        build=Decoder,
        input_shape=_latent_shape,
        channel_groups=channel_groups,
        with_widths=with_widths,
        blocks=blocks,
        without_blocks=without_blocks,
        units=units,
        with_patches=with_patches,
        feed="latents",
    ),
    "encoder": Kind(
        config=EncoderConfig,
        build=Encoder,
        output="latents",
        input_shape=lambda config, pixels: (1, 3, pixels, pixels),
        channel_groups=channel_groups,
        with_widths=with_widths,
        blocks=blocks,
        without_blocks=without_blocks,
        units=units,
        with_patches=with_patches,
        feed="pictures",
    ),
}
