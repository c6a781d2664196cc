"""What an autoencoder of the Stable Diffusion grammar is made of, as plain records; `vae` builds from them.

Source: `AutoencoderKL` of diffusers, whose configurations these records can express: level widths and depths, mid
block, 1x1 convolutions beside the latents, the range of images, the scale of latents.
Differs: every inner width is a number of its own, and a block that was pruned away is simply not in its list.
"""

import math
from dataclasses import dataclass
from typing import Literal

from compress.nn.patches import Patch

PATCH = 8  # pixels per latent on each side: four levels, three halvings


# A block by its inner width; or what stands in its place: a patch, or of a block with a 1x1 shortcut that alone.
Inner = int | Patch | Literal["shortcut"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One resolution: ResNet blocks on a stream of `width` channels, then the step to the next resolution.

    `hidden` has the inner width of each block; a block that was pruned away is not in the list, or a patch is.
    `step` is the width behind the upsampler (decoder) or downsampler (encoder), None at the last level.
    `entry` is the width in front of a first block that has a 1x1 shortcut from it to `width` (also where pruning made
    the two equal); None where the stream arrives at `width` and every shortcut is the identity.
    """

    width: int
    hidden: tuple[Inner, ...]
    step: int | None
    entry: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One head over all pixels; scores are divided by the root of `scale_width`, the keys' width before any cut."""

    keys: int
    values: int
    scale_width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mid:
    """The blocks at the latents' resolution: ResNet blocks (inner widths), attention or none, ResNet blocks."""

    before: tuple[Inner, ...]
    attention: Attention | Patch | None
    after: tuple[Inner, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Everything needed to rebuild an image decoder. Levels run from the latents' resolution to the image's.

    `quant_conv`: a 1x1 convolution on the latents. `image_range`: the network's own values of black and white.
    `scaling_factor` and `shift_factor`: latents in and out are the diffusion UNet's, (network's - shift) * scale.
    """

    latent_channels: int
    levels: tuple[Level, ...]
    norm_groups: int
    linear_path: bool
    mid: Mid | None = None
    quant_conv: bool = False
    image_range: tuple[float, float] = (0.0, 1.0)
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    def __post_init__(self) -> None:
        check(self, at_latents=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """Everything needed to rebuild an image encoder. Levels run from the image's resolution to the latents'.

    The other fields are those of `DecoderConfig`.
    """

    latent_channels: int
    levels: tuple[Level, ...]
    norm_groups: int
    linear_path: bool
    mid: Mid | None = None
    quant_conv: bool = False
    image_range: tuple[float, float] = (0.0, 1.0)
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    def __post_init__(self) -> None:
        check(self, at_latents=3)


def check(config: DecoderConfig | EncoderConfig, *, at_latents: int) -> None:
    """Refuse what could not be built, with the level and the numbers; level `at_latents` is beside the mid block.

    Raises:
        ValueError: widths that do not fit together.
    """
    problems = []
    if config.latent_channels < 1 or config.norm_groups < 1:
        problems.append("latent_channels and norm_groups must be positive")
    low, high = config.image_range
    if not -math.inf < low < high < math.inf or not 0 < config.scaling_factor < math.inf:
        problems.append(f"image_range {low}..{high} must rise and scaling_factor {config.scaling_factor} be positive")
    if not math.isfinite(config.shift_factor):
        problems.append(f"shift_factor {config.shift_factor} must be a number")
    if len(config.levels) != 4 or any((level.step is None) != (i == 3) for i, level in enumerate(config.levels)):
        problems.append(f"{len(config.levels)} levels; an f8 autoencoder has 4, and only the last has step: null")
    before = None
    for index, level in enumerate(config.levels):
        problems += _problems_of_level(config, index, at_latents)
        arrives = level.width if level.entry is None else level.entry
        if index and before != arrives:
            where = f"level {index} is {arrives} wide" + ("" if level.entry is None else " at its entry")
            problems.append(f"levels.{index - 1}: step {before}, but {where}")
        before = level.step
    problems += _problems_of_mid(config)
    if problems:
        raise ValueError("; ".join(problems))


def _problems_of_level(config: DecoderConfig | EncoderConfig, index: int, at_latents: int) -> list[str]:
    level, problems = config.levels[index], []
    has_mid = config.mid is not None and index == at_latents
    if level.entry is not None and (index == 0 or not level.hidden):
        problems.append(f"levels.{index}: an entry needs a level before it and a ResNet block behind it")
    first = 0 if level.entry is None else 1
    problems += [
        f"levels.{index}: block {j} is '{inner}', but has {'no' if j >= first else 'a'} 1x1 shortcut"
        for j, inner in enumerate(level.hidden)
        if isinstance(inner, str) and (inner == "shortcut") != (j < first)
    ]
    # Where no norm sees the level's stream, its width is free; so is the entry's behind which only a shortcut is left.
    normed = any(isinstance(x, int) for x in level.hidden[first:]) or index == len(config.levels) - 1 or has_mid
    widths = [(level.width, normed), *((width, True) for width in level.hidden if isinstance(width, int))]
    if level.entry is not None:
        widths.append((level.entry, isinstance(level.hidden[0], int) if level.hidden else False))
    return problems + [
        f"levels.{index}: {_misfit(width, config.norm_groups)}"
        for width, is_normed in widths
        if width < 1 or (is_normed and width % max(config.norm_groups, 1))
    ]


def _problems_of_mid(config: DecoderConfig | EncoderConfig) -> list[str]:
    if config.mid is None:
        return []
    problems = [
        f"mid: {_misfit(width, config.norm_groups)}"
        for width in (*config.mid.before, *config.mid.after)
        if isinstance(width, int) and (width < 1 or width % max(config.norm_groups, 1))
    ]
    if "shortcut" in (*config.mid.before, *config.mid.after):
        problems.append("mid: its blocks have no 1x1 shortcut that could be left of them")
    attention = config.mid.attention
    if isinstance(attention, Attention) and min(attention.keys, attention.values, attention.scale_width) < 1:
        problems.append("mid.attention: keys, values and scale_width must be positive")
    if not (attention or config.mid.before or config.mid.after):
        problems.append("mid: holds nothing; write mid: null")
    return problems


def _misfit(width: int, norm_groups: int) -> str:
    return f"{width} channels are not a multiple of {norm_groups} norm groups"
