"""diffusers' `AutoencoderKL`: the VAE of Stable Diffusion 1.x, 2.x and XL, as our image encoder and decoder.

Source: diffusers 0.42, models/autoencoders/autoencoder_kl.py; older folders name attention's layers `query`, `key`,
`value` and `proj_attn`, or keep them as 1x1 convolutions.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from compress.components._checkpoints._grammar import Grammar, only, renamed, settings
from compress.components._vae_config import Attention, DecoderConfig, EncoderConfig, Level, Mid
from compress.errors import UserError
from compress.schema import Schema

LEVELS = 4
SIDES = {"decoder": ("up_blocks", "upsamplers"), "encoder": ("down_blocks", "downsamplers")}
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


class _Config(Schema):
    """Keys of config.json, with diffusers' own defaults."""

    block_out_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=LEVELS, max_length=LEVELS)]
    latent_channels: PositiveInt
    layers_per_block: PositiveInt
    norm_num_groups: PositiveInt = 32
    in_channels: Annotated[int, only(3)] = 3
    out_channels: Annotated[int, only(3)] = 3
    down_block_types: Annotated[tuple[str, ...], only(("DownEncoderBlock2D",) * LEVELS)]
    up_block_types: Annotated[tuple[str, ...], only(("UpDecoderBlock2D",) * LEVELS)]
    act_fn: Annotated[str, only("silu", "swish")] = "silu"
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: Annotated[tuple[float, ...] | None, only(None)] = None
    latents_std: Annotated[tuple[float, ...] | None, only(None)] = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    sample_size: int | tuple[int, ...] | None = None  # nothing is built from it
    force_upcast: bool = True  # about half precision at run time


def read(config: Mapping[str, Any], part: str) -> DecoderConfig | EncoderConfig:
    """The record of one part."""
    given = settings(_Config, config)
    decodes = part == "decoder"
    widths = given.block_out_channels[::-1] if decodes else given.block_out_channels
    depth = given.layers_per_block + decodes
    arriving = (widths[0], *widths[:-1])
    inner = widths[0] if decodes else widths[-1]
    attention = Attention(keys=inner, values=inner, scale_width=inner) if given.mid_block_add_attention else None
    return (DecoderConfig if decodes else EncoderConfig)(
        latent_channels=given.latent_channels,
        levels=tuple(
            Level(width=w, hidden=(w,) * depth, step=None if i == LEVELS - 1 else w, entry=None if a == w else a)
            for i, (w, a) in enumerate(zip(widths, arriving, strict=True))
        ),
        norm_groups=given.norm_num_groups,
        linear_path=False,
        mid=Mid(before=(inner,), attention=attention, after=(inner,)),
        quant_conv=given.use_post_quant_conv if decodes else given.use_quant_conv,
        image_range=(-1.0, 1.0),
        scaling_factor=given.scaling_factor,
        shift_factor=given.shift_factor or 0.0,
    )


def write(records: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that an encoder and a decoder may share."""
    missing = [part for part in SIDES if part not in records]
    if missing:
        raise UserError(
            f"an AutoencoderKL holds an encoder and a decoder; give the {missing[0]} too, with --with FOLDER"
        )
    encoder, decoder = records["encoder"], records["decoder"]
    depths = [len(level.hidden) for level in encoder.levels]
    return {
        "act_fn": "silu",
        "block_out_channels": [level.width for level in encoder.levels],
        "down_block_types": ["DownEncoderBlock2D"] * LEVELS,
        "in_channels": 3,
        "latent_channels": encoder.latent_channels,
        "layers_per_block": max(depths),
        "mid_block_add_attention": encoder.mid is not None and encoder.mid.attention is not None,
        "norm_num_groups": encoder.norm_groups,
        "out_channels": 3,
        "scaling_factor": encoder.scaling_factor,
        "shift_factor": encoder.shift_factor or None,
        "up_block_types": ["UpDecoderBlock2D"] * LEVELS,
        "use_post_quant_conv": decoder.quant_conv,
        "use_quant_conv": encoder.quant_conv,
    }


def names(part: str, ours: str, record: Any) -> tuple[str, ...]:
    """Their names of one of our tensors."""
    if ours.startswith(("quant_conv.", "post_quant_conv.")):
        return (ours,)
    blocks, steps = SIDES[part]
    pairs = {"mid.before.0": "mid_block.resnets.0", "mid.after.0": "mid_block.resnets.1"}
    pairs |= {"levels": blocks, "step": f"{steps}.0", "shortcut": "conv_shortcut", "norm_out": "conv_norm_out"}
    if ".attention." not in ours:
        return (f"{part}.{renamed(ours, pairs)}",)
    attention = {"mid.attention": "mid_block.attentions.0", "norm": "group_norm", "out": "to_out.0"}
    name = f"{part}.{renamed(ours, attention | {x: f'to_{x}' for x in 'qkv'})}"
    return tuple(dict.fromkeys((name, renamed(name, OLD))))


GRAMMAR = Grammar(
    name="AutoencoderKL",
    library="diffusers",
    folder="vae",
    parts={"decoder": "vae.decoder", "encoder": "vae.encoder"},
    prefixes={"decoder": ("decoder.", "post_quant_conv."), "encoder": ("encoder.", "quant_conv.")},
    read=read,
    write=write,
    names=names,
    flat=lambda name: name.startswith("mid.attention.") and name.endswith(".weight") and ".norm." not in name,
)
