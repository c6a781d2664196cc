"""The VAE of a MobileDiffusion-style model: an encoder to f8 latents and the image decoder that recipes compress.

Source: Zhao et al. 2023 (MobileDiffusion, arXiv:2311.16567), section 3.3: an f8 autoencoder with 8 latent channels, and
decoders pruned in width and depth; the layers are those of Rombach et al. 2022 (arXiv:2112.10752), without mid block.
Differs: an optional linear path (one 1x1 convolution and depth-to-space) beside the network, so that training starts
from what principal components already know; images are in [0, 1] on both ends, not in [-1, 1].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional

from compress.nn.blocks import NORM_EPS, Downsample, ResnetBlock, Upsample
from compress.nn.structure import Block, ChannelGroup, ChannelSlice, Kind, Removal

PATCH = 8  # pixels per latent on each side: four levels, three halvings


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One resolution: ResNet blocks on a stream of `width` channels, then the step to the next resolution.

    `hidden` has the inner width of each block; a block that was pruned away is simply not in the list.
    `step` is the width behind the upsampler (decoder) or downsampler (encoder), None at the last level.
    """

    width: int
    hidden: tuple[int, ...]
    step: int | None


def _check_levels(levels: tuple[Level, ...], norm_groups: int, latent_channels: int) -> None:
    """Refuse what could not be built, with the level and the numbers.

    Raises:
        ValueError: widths that do not fit together.
    """
    problems = [] if latent_channels > 0 and norm_groups > 0 else ["latent_channels and norm_groups must be positive"]
    if len(levels) != 4 or any((level.step is None) != (i == 3) for i, level in enumerate(levels)):
        problems.append(f"{len(levels)} levels; an f8 autoencoder has 4, and only the last has step: null")
    for index, level in enumerate(levels):
        normed = level.hidden or index == len(levels) - 1  # else nothing normalises the level's stream
        problems += [
            f"levels.{index}: {width} channels are not a multiple of {norm_groups} norm groups"
            for width in (level.width, *level.hidden)
            if width < 1 or (normed and width % max(norm_groups, 1))
        ]
        before = levels[index - 1].step
        if index and before != level.width:
            problems.append(f"levels.{index - 1}: step {before}, but level {index} is {level.width} wide")
    if problems:
        raise ValueError("; ".join(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Everything needed to rebuild an image decoder. Levels run from the latents' resolution to the image's."""

    latent_channels: int
    levels: tuple[Level, ...]
    norm_groups: int
    linear_path: bool

    def __post_init__(self) -> None:
        _check_levels(self.levels, self.norm_groups, self.latent_channels)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """Everything needed to rebuild an image encoder. Levels run from the image's resolution to the latents'."""

    latent_channels: int
    levels: tuple[Level, ...]
    norm_groups: int
    linear_path: bool

    def __post_init__(self) -> None:
        _check_levels(self.levels, self.norm_groups, self.latent_channels)


class ResolutionLevel(nn.Module):
    """The ResNet blocks of one level, then its step to the next resolution."""

    def __init__(self, level: Level, norm_groups: int, step: type[Upsample | Downsample]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(level.width, hidden, level.width, norm_groups=norm_groups) for hidden in level.hidden
        )
        self.step = nn.Identity() if level.step is None else step(level.width, level.step)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.resnets:
            x = block(x)
        return self.step(x)


class Decoder(nn.Module):
    """Latents [n, latent_channels, h, w] (the encoder's own scale) to images [n, 3, 8h, 8w] in [0, 1]."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.levels[0], config.levels[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, first.width, 3, padding=1)
        self.levels = nn.ModuleList(ResolutionLevel(x, config.norm_groups, Upsample) for x in config.levels)
        self.norm_out = nn.GroupNorm(config.norm_groups, last.width, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(last.width, 3, 3, padding=1)
        self.linear = nn.Conv2d(config.latent_channels, 3 * PATCH * PATCH, 1) if config.linear_path else None

    def forward(self, latents: Float[torch.Tensor, "n z h w"]) -> Float[torch.Tensor, "n 3 H W"]:
        x = self.conv_in(latents)
        for level in self.levels:
            x = level(x)
        image = self.conv_out(functional.silu(self.norm_out(x)))
        if self.linear is not None:
            image = image + functional.pixel_shuffle(self.linear(latents), PATCH)
        clamped = image.clamp(0.0, 1.0)
        # In training the value is clamped but the gradient is not: a pixel driven out of range can come back.
        return image + (clamped - image).detach() if self.training else clamped


class Encoder(nn.Module):
    """Images [n, 3, 8h, 8w] in [0, 1] to the mean and log-variance of the latents, each [n, latent_channels, h, w]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.levels[0], config.levels[-1]
        self.conv_in = nn.Conv2d(3, first.width, 3, padding=1)
        self.levels = nn.ModuleList(ResolutionLevel(x, config.norm_groups, Downsample) for x in config.levels)
        self.norm_out = nn.GroupNorm(config.norm_groups, last.width, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(last.width, 2 * config.latent_channels, 3, padding=1)
        self.linear = nn.Conv2d(3, config.latent_channels, PATCH, stride=PATCH) if config.linear_path else None

    def moments(
        self, images: Float[torch.Tensor, "n 3 H W"]
    ) -> tuple[Float[torch.Tensor, "n z h w"], Float[torch.Tensor, "n z h w"]]:
        """Mean and log-variance of the posterior."""
        x = self.conv_in(images)
        for level in self.levels:
            x = level(x)
        mean, log_variance = self.conv_out(functional.silu(self.norm_out(x))).chunk(2, dim=1)
        if self.linear is not None:
            mean = mean + self.linear(images)
        return mean, log_variance

    def forward(self, images: Float[torch.Tensor, "n 3 H W"]) -> Float[torch.Tensor, "n z h w"]:
        """The posterior's mean: what decoding, calibration and evaluation use."""
        return self.moments(images)[0]


def _slices(module: str, role: str) -> tuple[ChannelSlice, ...]:
    """The tensors of one layer that carry a group's channels."""
    match role:
        case "writes":
            return (
                ChannelSlice(tensor=f"{module}.weight", axis=0, role="writes"),
                ChannelSlice(tensor=f"{module}.bias", axis=0, role="writes"),
            )
        case "norm":
            return (
                ChannelSlice(tensor=f"{module}.weight", axis=0, role="norm"),
                ChannelSlice(tensor=f"{module}.bias", axis=0, role="norm"),
            )
        case _:
            return (ChannelSlice(tensor=f"{module}.weight", axis=1, role="reads"),)


def channel_groups(config: DecoderConfig | EncoderConfig) -> tuple[ChannelGroup, ...]:
    """The residual stream of each level, and the inside of each ResNet block."""
    groups = []
    for i, level in enumerate(config.levels):
        writer = "conv_in" if i == 0 else f"levels.{i - 1}.step.conv"
        last = i == len(config.levels) - 1
        stream = _slices(writer, "writes")
        for j, hidden in enumerate(level.hidden):
            block = f"levels.{i}.resnets.{j}"
            stream += _slices(f"{block}.norm1", "norm") + _slices(f"{block}.conv1", "reads")
            stream += _slices(f"{block}.conv2", "writes")
            inner = _slices(f"{block}.conv1", "writes") + _slices(f"{block}.norm2", "norm")
            inner += _slices(f"{block}.conv2", "reads")
            groups.append(
                ChannelGroup(
                    name=f"{block}.hidden", kind="inner", width=hidden, norm_groups=config.norm_groups, slices=inner
                )
            )
        stream += _slices("norm_out", "norm") if last else ()
        stream += _slices("conv_out" if last else f"levels.{i}.step.conv", "reads")
        groups.append(
            ChannelGroup(
                name=f"levels.{i}.stream",
                kind="stream",
                width=level.width,
                norm_groups=config.norm_groups if level.hidden or last else 1,
                slices=stream,
            )
        )
    return tuple(groups)


def with_widths(config: DecoderConfig, widths: Mapping[str, int]) -> DecoderConfig:
    """The configuration with new widths for some channel groups."""
    streams = [widths.get(f"levels.{i}.stream", level.width) for i, level in enumerate(config.levels)]
    levels = tuple(
        Level(
            width=streams[i],
            hidden=tuple(widths.get(f"levels.{i}.resnets.{j}.hidden", h) for j, h in enumerate(level.hidden)),
            step=None if level.step is None else streams[i + 1],
        )
        for i, level in enumerate(config.levels)
    )
    return replace(config, levels=levels)


def blocks(config: DecoderConfig | EncoderConfig) -> tuple[Block, ...]:
    """Every ResNet block; all have identity shortcuts, so all can go, and each level still has its own step."""
    return tuple(
        Block(name=f"levels.{i}.resnets.{j}") for i, level in enumerate(config.levels) for j in range(len(level.hidden))
    )


def without_blocks(config: DecoderConfig, names: Sequence[str]) -> Removal:
    """The configuration without these ResNet blocks; those behind a removed block move up in its level."""
    gone = set(names)
    levels: list[Level] = []
    renamed: dict[str, str] = {}
    for i, level in enumerate(config.levels):
        kept = [j for j in range(len(level.hidden)) if f"levels.{i}.resnets.{j}" not in gone]
        levels.append(replace(level, hidden=tuple(level.hidden[j] for j in kept)))
        renamed |= {f"levels.{i}.resnets.{old}.": f"levels.{i}.resnets.{new}." for new, old in enumerate(kept)}
    return Removal(config=replace(config, levels=tuple(levels)), renamed=renamed)


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
        companion="encoder",
    ),
    "encoder": Kind(
        config=EncoderConfig,
        build=Encoder,
        input_shape=lambda config, pixels: (1, 3, pixels, pixels),
        channel_groups=channel_groups,
        with_widths=with_widths,
        blocks=blocks,
        without_blocks=without_blocks,
        companion=None,
    ),
}
