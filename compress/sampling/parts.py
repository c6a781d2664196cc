"""The three networks of a text-to-image model as they are put together: what each takes, and whether they fit.

A fact that a network does not tell (an exported file with free sizes) is None and fits everything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from compress.errors import UserError
from compress.sampling.generator import Networks, Settings

PATCH = 8  # image pixels per latent on each side
Fact = int | None
Call = Callable[..., np.ndarray]
Facts = TypeVar("Facts")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFacts:
    """Of a text encoder: tokens it takes, entries of its vocabulary, channels of its states."""

    positions: Fact
    vocabulary: Fact
    width: Fact


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetFacts:
    """Of a UNet: channels in and out, channels and number of the states it reads, latents on a side."""

    channels: Fact
    out: Fact
    context: Fact
    positions: Fact = None
    side: Fact = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderFacts:
    """Of a decoder: channels of its latents, latents on a side."""

    channels: Fact
    side: Fact = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Generic[Facts]):
    """One network: arrays in and out, what it tells of itself, where it runs."""

    call: Call
    facts: Facts
    runtime: str
    most: int | None = None  # the largest batch that it takes


def assemble(
    text: Part[TextFacts], unet: Part[UNetFacts], decoder: Part[DecoderFacts], settings: Settings, pixels: int
) -> Networks:
    """The networks that the generator calls, for square pictures of `pixels`.

    Raises:
        UserError: the parts do not fit each other, the settings or the size; says all that does not.
    """
    problems = misfits(text.facts, unet.facts, decoder.facts, settings)
    if problems:
        raise UserError("these parts are not of one model: " + "; ".join(problems))
    for name, side in (("UNet", unet.facts.side), ("decoder", decoder.facts.side)):
        if side is not None and side * PATCH != pixels:
            raise UserError(
                f"this {name} makes pictures of {side * PATCH} pixels, not {pixels}; export it with free sizes where "
                f"its format has them, or from its recipe with data.evaluation.size: {pixels}"
            )
    if pixels < PATCH or pixels % PATCH:
        raise UserError(f"pictures of {pixels} pixels; a multiple of {PATCH} is needed")
    limits = [part.most for part in (text, unet, decoder) if part.most is not None]
    return Networks(
        text_encoder=text.call,
        unet=unet.call,
        decoder=decoder.call,
        latent_shape=(len(settings.scale.mean), pixels // PATCH, pixels // PATCH),
        most=min(limits, default=None),
    )


def misfits(text: TextFacts, unet: UNetFacts, decoder: DecoderFacts, settings: Settings) -> list[str]:
    """Why the parts are not of one model; one phrase each."""
    channels, words = len(settings.scale.mean), settings.tokenizer
    pairs: Sequence[tuple[str, Fact, str, Fact]] = [
        ("tokens of the tokenizer", words.length, "positions of the text encoder", text.positions),
        ("tokens of the tokenizer", words.length, "states that the UNet reads", unet.positions),
        ("width of the text encoder", text.width, "context width of the UNet", unet.context),
        ("latent channels in latents.json", channels, "channels of the UNet", unet.channels),
        ("latent channels in latents.json", channels, "channels out of the UNet", unet.out),
        ("latent channels in latents.json", channels, "channels of the decoder", decoder.channels),
    ]
    found = [f"{mine} {a}, {theirs} {b}" for mine, a, theirs, b in pairs if None not in (a, b) and a != b]
    if text.vocabulary is not None and words.vocabulary > text.vocabulary:
        found.append(f"the tokenizer has {words.vocabulary} entries, the text encoder {text.vocabulary}")
    return found
