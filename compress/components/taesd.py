"""The tiny autoencoder for Stable Diffusion's latents: convolutions and ReLU, no norm, no attention.

Source: TAESD (Ollin Boer Bohan, github.com/madebyollin/taesd), as diffusers' `AutoencoderTiny` writes it: 64 channels
throughout, (3, 3, 3, 1) blocks, 1,222,531 parameters in the decoder.
Differs: inner widths and the width of each level are numbers of their own; images are clamped to [0, 1].
Its latents are those of the diffusion UNet (already multiplied by the scaling factor), not those of the other encoder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional

from compress.nn.blocks import Upsample
from compress.nn.patches import Patch, map_patch
from compress.nn.structure import (
    Block,
    ChannelGroup,
    ChannelSlice,
    Kind,
    PatchSite,
    Removal,
    expanded,
    reads,
    writes,
)

PATCH = 8  # pixels per latent on each side
LATENT_BOUND = 3.0  # the decoder bends latents into -3..3


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One resolution: blocks on a stream of `width` channels, then the step to the next resolution.

    `hidden` has the two inner widths of each block, or the patch that stands in its place; `step` the width behind the
    step, None at the last level.
    """

    width: int
    hidden: tuple[tuple[int, int] | Patch, ...]
    step: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Everything needed to rebuild a decoder. Levels run from the latents' resolution to the image's."""

    latent_channels: int
    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """Everything needed to rebuild an encoder. Levels run from the image's resolution to the latents'."""

    latent_channels: int
    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        _check(self)


Config = TypeVar("Config", DecoderConfig, EncoderConfig)


def _check(config: DecoderConfig | EncoderConfig) -> None:
    """Refuse what could not be built, with the level and the numbers.

    Raises:
        ValueError: widths that do not fit together.
    """
    levels = config.levels
    problems = [] if config.latent_channels > 0 else ["latent_channels must be positive"]
    if len(levels) != 4 or any((level.step is None) != (i == 3) for i, level in enumerate(levels)):
        problems.append(f"{len(levels)} levels; an f8 autoencoder has 4, and only the last has step: null")
    for index, level in enumerate(levels):
        if min((level.width, *(width for pair in level.hidden if isinstance(pair, tuple) for width in pair))) < 1:
            problems.append(f"levels.{index}: every width must be positive")
        if index and levels[index - 1].step != level.width:
            problems.append(
                f"levels.{index - 1}: step {levels[index - 1].step}, but level {index} is {level.width} wide"
            )
    if problems:
        raise ValueError("; ".join(problems))


class TinyBlock(nn.Module):
    """`relu(x + conv3(relu(conv2(relu(conv1(x))))))`; [n, c, h, w] to the same."""

    def __init__(self, width: int, hidden: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, hidden[0], 3, padding=1)
        self.conv2 = nn.Conv2d(hidden[0], hidden[1], 3, padding=1)
        self.conv3 = nn.Conv2d(hidden[1], width, 3, padding=1)

    def forward(self, x: Float[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, "n c h w"]:
        inner = functional.relu(self.conv2(functional.relu(self.conv1(x))))
        return functional.relu(self.conv3(inner) + x)


class TinyDownsample(nn.Module):
    """A 3x3 convolution with stride 2, without bias; [n, c_in, 2h, 2w] to [n, c_out, h, w]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)

    def forward(self, x: Float[torch.Tensor, "n c_in h w"]) -> Float[torch.Tensor, "n c_out h2 w2"]:
        return self.conv(x)


class TinyLevel(nn.Module):
    """The blocks of one level, then its step to the next resolution, if any."""

    def __init__(self, level: Level, step: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            map_patch(hidden, level.width) if isinstance(hidden, str) else TinyBlock(level.width, hidden)
            for hidden in level.hidden
        )
        self.step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.step(x)


class Decoder(nn.Module):
    """The diffusion UNet's latents [n, latent_channels, h, w] to images [n, 3, 8h, 8w] in [0, 1]."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_in = nn.Conv2d(config.latent_channels, config.levels[0].width, 3, padding=1)
        self.levels = nn.ModuleList(
            TinyLevel(x, nn.Identity() if x.step is None else Upsample(x.width, x.step, bias=False))
            for x in config.levels
        )
        self.conv_out = nn.Conv2d(config.levels[-1].width, 3, 3, padding=1)

    def forward(self, latents: Float[torch.Tensor, "n z h w"]) -> Float[torch.Tensor, "n 3 H W"]:
        bounded = torch.tanh(latents / LATENT_BOUND) * LATENT_BOUND
        x = functional.relu(self.conv_in(bounded))
        for level in self.levels:
            x = level(x)
        image = self.conv_out(x)
        clamped = image.clamp(0.0, 1.0)
        # In training the value is clamped but the gradient is not: a pixel driven out of range can come back.
        return image + (clamped - image).detach() if self.training else clamped


class Encoder(nn.Module):
    """Images [n, 3, 8h, 8w] in [0, 1] to the diffusion UNet's latents [n, latent_channels, h, w]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_in = nn.Conv2d(3, config.levels[0].width, 3, padding=1)
        self.levels = nn.ModuleList(
            TinyLevel(x, nn.Identity() if x.step is None else TinyDownsample(x.width, x.step)) for x in config.levels
        )
        self.conv_out = nn.Conv2d(config.levels[-1].width, config.latent_channels, 3, padding=1)

    def forward(self, images: Float[torch.Tensor, "n 3 H W"]) -> Float[torch.Tensor, "n z h w"]:
        x = self.conv_in(images)
        for level in self.levels:
            x = level(x)
        return self.conv_out(x)


def channel_groups(config: DecoderConfig | EncoderConfig) -> tuple[ChannelGroup, ...]:
    """The stream of each level, and the two insides of each block; no norm binds any of them."""
    groups: list[ChannelGroup] = []

    def add(name: str, width: int, slices: tuple[ChannelSlice, ...]) -> None:
        kind: Literal["stream", "inner"] = "stream" if name.endswith(".stream") else "inner"
        groups.append(ChannelGroup(name=name, kind=kind, width=width, norm_groups=1, slices=slices))

    for i, level in enumerate(config.levels):
        stream = writes("conv_in") if i == 0 else writes(f"levels.{i - 1}.step.conv", bias=False)
        for j, hidden in enumerate(level.hidden):
            block = f"levels.{i}.blocks.{j}"
            if isinstance(hidden, str):
                stream += writes(block) if hidden == "affine" else reads(f"{block}.mix") + writes(f"{block}.mix")
                continue
            first, second = hidden
            stream += reads(f"{block}.conv1") + writes(f"{block}.conv3")
            add(f"{block}.hidden1", first, writes(f"{block}.conv1") + reads(f"{block}.conv2"))
            add(f"{block}.hidden2", second, writes(f"{block}.conv2") + reads(f"{block}.conv3"))
        stream += reads("conv_out" if level.step is None else f"levels.{i}.step.conv")
        add(f"levels.{i}.stream", level.width, stream)
    return tuple(groups)


def with_widths(config: Config, widths: Mapping[str, int]) -> Config:
    """The configuration with new widths for some channel groups."""
    streams = [widths.get(f"levels.{i}.stream", level.width) for i, level in enumerate(config.levels)]
    levels = tuple(
        Level(
            width=streams[i],
            hidden=tuple(
                hidden
                if isinstance(hidden, str)
                else (
                    widths.get(f"levels.{i}.blocks.{j}.hidden1", hidden[0]),
                    widths.get(f"levels.{i}.blocks.{j}.hidden2", hidden[1]),
                )
                for j, hidden in enumerate(level.hidden)
            ),
            step=None if level.step is None else streams[i + 1],
        )
        for i, level in enumerate(config.levels)
    )
    return replace(config, levels=levels)


def blocks(config: DecoderConfig | EncoderConfig) -> tuple[Block, ...]:
    """Every block; all have identity shortcuts, so all can go. The ReLU behind the sum goes with its block."""
    return tuple(
        Block(name=f"levels.{i}.blocks.{j}")
        for i, level in enumerate(config.levels)
        for j, hidden in enumerate(level.hidden)
        if isinstance(hidden, tuple)
    )


def units(config: DecoderConfig | EncoderConfig) -> tuple[Block, ...]:
    """The blocks of each level; a level's own step between resolutions stays."""
    names = [block.name for block in blocks(config)]
    wholes = [f"levels.{i}.blocks" for i in range(len(config.levels))]
    inside = {whole: tuple(name for name in names if name.startswith(f"{whole}.")) for whole in wholes}
    found = [Block(name=whole, unit="stage", takes=takes) for whole, takes in inside.items() if len(takes) > 1]
    reason = "its step takes the stream to the next resolution; its blocks can go"
    stepping = [i for i, level in enumerate(config.levels) if level.step is not None]
    return tuple(found + [Block(name=f"levels.{i}", fixed=reason, unit="stage") for i in stepping])


def without_blocks(config: Config, names: Sequence[str]) -> Removal:
    """The configuration without these blocks; those behind a removed block move up in its level."""
    return _removal(config, names, None)


def with_patches(config: Config, names: Sequence[str], patch: Patch) -> Removal:
    """As `without_blocks`, but a patch stands in each block's place."""
    return _removal(config, names, patch)


def _removal(config: Config, names: Sequence[str], patch: Patch | None) -> Removal:
    gone = expanded(names, blocks(config), lambda: units(config))
    levels: list[Level] = []
    renamed: dict[str, str] = {}
    sites: list[PatchSite] = []
    for i, level in enumerate(config.levels):
        left: list[tuple[int, int] | Patch] = []
        for j, hidden in enumerate(level.hidden):
            old, new = f"levels.{i}.blocks.{j}", f"levels.{i}.blocks.{len(left)}"
            if old not in gone:
                renamed[f"{old}."] = f"{new}."
                left.append(hidden)
            elif patch is not None:
                left.append(patch)
                sites.append(PatchSite(block=old, place=new, patch=patch, width=level.width))
        levels.append(replace(level, hidden=tuple(left)))
    return Removal(config=replace(config, levels=tuple(levels)), renamed=renamed, patches=tuple(sites))


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
