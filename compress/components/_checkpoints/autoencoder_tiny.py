"""diffusers' `AutoencoderTiny`: TAESD, as our tiny encoder and decoder.

Source: diffusers 0.42, models/autoencoders/autoencoder_tiny.py; its tensors are numbered in one flat list of layers.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from compress.components._checkpoints._grammar import Grammar, only, settings
from compress.components.taesd import LATENT_BOUND, DecoderConfig, EncoderConfig, Level
from compress.errors import UserError
from compress.schema import Schema

LEVELS = 4
Four = Annotated[tuple[PositiveInt, ...], Field(min_length=LEVELS, max_length=LEVELS)]


class _Config(Schema):
    """Keys of config.json, with diffusers' own defaults."""

    encoder_block_out_channels: Four
    decoder_block_out_channels: Four
    num_encoder_blocks: Four = (1, 3, 3, 3)
    num_decoder_blocks: Four = (3, 3, 3, 1)
    latent_channels: PositiveInt = 4
    in_channels: Annotated[int, only(3)] = 3
    out_channels: Annotated[int, only(3)] = 3
    act_fn: Annotated[str, only("relu")] = "relu"
    upsample_fn: Annotated[str, only("nearest")] = "nearest"
    upsampling_scaling_factor: Annotated[int, only(2)] = 2
    scaling_factor: Annotated[float, only(1.0)] = 1.0
    shift_factor: Annotated[float, only(0.0)] = 0.0
    latent_magnitude: Annotated[float, only(LATENT_BOUND)] = LATENT_BOUND
    latent_shift: float = 0.5  # of latents stored as pictures, which decoding does not do
    force_upcast: bool = False  # about half precision at run time
    block_out_channels: tuple[PositiveInt, ...] | None = None  # written by diffusers beside the two; says nothing more


def read(config: Mapping[str, Any], part: str) -> DecoderConfig | EncoderConfig:
    """The record of one part."""
    given = settings(_Config, config)
    decodes = part == "decoder"
    key = f"{part}_block_out_channels"
    widths: tuple[int, ...] = getattr(given, key)
    if len(set(widths)) > 1:
        raise UserError(f"{key}: {list(widths)}: only one width throughout can be read")
    depths = given.num_decoder_blocks if decodes else given.num_encoder_blocks
    levels = tuple(
        Level(width=w, hidden=((w, w),) * depth, step=None if i == LEVELS - 1 else w)
        for i, (w, depth) in enumerate(zip(widths, depths, strict=True))
    )
    return (DecoderConfig if decodes else EncoderConfig)(latent_channels=given.latent_channels, levels=levels)


def write(records: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that an encoder and a decoder may share."""
    missing = [part for part in GRAMMAR.parts if part not in records]
    if missing:
        raise UserError(
            f"an AutoencoderTiny holds an encoder and a decoder; give the {missing[0]} too, with --with FOLDER"
        )
    found: dict[str, Any] = {"act_fn": "relu", "in_channels": 3, "out_channels": 3, "upsample_fn": "nearest"}
    found["latent_channels"] = records["decoder"].latent_channels
    found["upsampling_scaling_factor"] = 2
    for part, record in records.items():
        found[f"{part}_block_out_channels"] = [record.levels[0].width] * LEVELS
        found[f"num_{part}_blocks"] = [len(level.hidden) for level in record.levels]
    return found


def names(part: str, ours: str, record: Any) -> tuple[str, ...]:
    """Their name of one of our tensors: its number in the list, counted as diffusers builds it."""
    layer, _, leaf = ours.rpartition(".")
    return (f"{part}.layers.{_numbers(part, record)[layer]}.{leaf}",)


def _numbers(part: str, record: DecoderConfig | EncoderConfig) -> dict[str, str]:
    """Our layer -> its place: the decoder puts an activation behind its first layer, and upsamples before it steps."""
    found, place = {"conv_in": "0"}, 2 if part == "decoder" else 1
    for i, level in enumerate(record.levels):
        last = level.step is None
        for j in range(len(level.hidden)):
            found |= {f"levels.{i}.blocks.{j}.conv{k + 1}": f"{place}.conv.{2 * k}" for k in range(3)}
            place += 1
        place += part == "decoder" and not last
        found["conv_out" if last else f"levels.{i}.step.conv"] = str(place)
        place += 1
    return found


GRAMMAR = Grammar(
    name="AutoencoderTiny",
    library="diffusers",
    folder="vae",
    parts={"decoder": "taesd.decoder", "encoder": "taesd.encoder"},
    prefixes={"decoder": ("decoder.",), "encoder": ("encoder.",)},
    read=read,
    write=write,
    names=names,
)
