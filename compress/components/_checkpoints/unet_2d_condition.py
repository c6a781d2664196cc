"""diffusers' `UNet2DConditionModel`: Stable Diffusion 1.x, 2.x and XL, BK-SDM, and whatever else it can express.

Source: diffusers 0.42, models/unets/unet_2d_condition.py. Its `attention_head_dim` is the number of heads (an old
mistake that its files keep); the tensors' names are ours.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import PositiveInt

from compress.components._checkpoints._grammar import Grammar, only, settings
from compress.components._unet_config import (
    AddedConfig,
    BlockConfig,
    StageConfig,
    TransformerConfig,
    UNetConfig,
)
from compress.components._unet_config import Grammar as Arrangement
from compress.errors import UserError
from compress.schema import Schema

Each = PositiveInt | tuple[PositiveInt, ...]
Depths = tuple[Each, ...]
PLAIN, CROSS = ("DownBlock2D", "UpBlock2D"), ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
EXPANSION = 4  # of feed-forwards, and of the time embedding


class _Config(Schema):
    """Keys of config.json, with diffusers' own defaults."""

    in_channels: PositiveInt
    out_channels: PositiveInt
    block_out_channels: tuple[PositiveInt, ...]
    down_block_types: tuple[Literal["CrossAttnDownBlock2D", "DownBlock2D"], ...]
    up_block_types: tuple[Literal["CrossAttnUpBlock2D", "UpBlock2D"], ...]
    mid_block_type: Literal["UNetMidBlock2DCrossAttn"] | None = "UNetMidBlock2DCrossAttn"
    layers_per_block: Each
    cross_attention_dim: PositiveInt
    attention_head_dim: Each = 8
    transformer_layers_per_block: PositiveInt | Depths = 1
    reverse_transformer_layers_per_block: Depths | None = None
    norm_num_groups: PositiveInt = 32
    use_linear_projection: bool = False
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    time_embedding_dim: PositiveInt | None = None
    addition_embed_type: Literal["text_time"] | None = None
    addition_time_embed_dim: PositiveInt | None = None
    projection_class_embeddings_input_dim: PositiveInt | None = None
    act_fn: Annotated[str, only("silu", "swish")] = "silu"
    norm_eps: Annotated[float, only(1e-5)] = 1e-5
    flip_sin_to_cos: Annotated[bool, only(True)] = True
    freq_shift: Annotated[int, only(0)] = 0
    downsample_padding: Annotated[int, only(1)] = 1
    mid_block_scale_factor: Annotated[float, only(1.0)] = 1.0
    resnet_out_scale_factor: Annotated[float, only(1.0)] = 1.0
    conv_in_kernel: Annotated[int, only(3)] = 3
    conv_out_kernel: Annotated[int, only(3)] = 3
    time_embedding_type: Annotated[str, only("positional")] = "positional"
    attention_type: Annotated[str, only("default")] = "default"
    center_input_sample: Annotated[bool, only(False)] = False
    only_cross_attention: Annotated[bool | tuple[bool, ...], only(False)] = False
    mid_block_only_cross_attention: Annotated[bool | None, only(None, False)] = None
    dual_cross_attention: Annotated[bool, only(False)] = False
    resnet_skip_time_act: Annotated[bool, only(False)] = False
    class_embeddings_concat: Annotated[bool, only(False)] = False
    sample_size: int | tuple[int, ...] | None = None  # nothing is built from it
    dropout: float = 0.0  # in training
    upcast_attention: bool = False  # about half precision at run time
    addition_embed_type_num_heads: int = 64  # of an embedding type that is refused


def read(config: Mapping[str, Any], part: str) -> UNetConfig:
    """The record of the UNet."""
    given = settings(_Config, config)
    heads, depths, layers = (_per_stage(given, key) for key in PER_STAGE)
    mirrored = given.reverse_transformer_layers_per_block
    if mirrored is None and any(isinstance(depth, tuple) for depth in depths):
        raise UserError("reverse_transformer_layers_per_block is missing; transformer_layers_per_block has lists")
    last = len(given.block_out_channels) - 1
    if mirrored is not None and len(mirrored) != last + 1:
        raise UserError(f"reverse_transformer_layers_per_block: {json.dumps(mirrored)}: there are {last + 1} stages")
    down, up = [], []
    for i, width in enumerate(given.block_out_channels):
        types = (given.down_block_types[i], given.up_block_types[last - i])
        attends = types[0] in CROSS or types[1] in CROSS or (i == last and given.mid_block_type is not None)
        head_dim = _head_dim(width, heads[i]) if attends else max(width // heads[i], 1)
        form = StageConfig(width=width, head_dim=head_dim, separable=False, resample=i < last, blocks=())
        back = depths[i] if mirrored is None else mirrored[last - i]
        down.append(replace(form, blocks=_blocks(width, head_dim, layers[i], types[0] in CROSS and depths[i])))
        blocks = _blocks(width, head_dim, layers[i] + 1, types[1] in CROSS and back)
        up.append(replace(form, resample=i > 0, blocks=blocks))
    return UNetConfig(
        in_channels=given.in_channels,
        out_channels=given.out_channels,
        context_width=given.cross_attention_dim,
        time_width=given.time_embedding_dim or EXPANSION * given.block_out_channels[0],
        norm_groups=given.norm_num_groups,
        grammar=Arrangement(
            time="scale_shift" if given.resnet_time_scale_shift == "scale_shift" else "add",
            gate="gelu",
            attention="softmax",
            shared_kv="none",
            projection="linear" if given.use_linear_projection else "conv",
            depth_multiplier=1,
        ),
        down=tuple(down),
        mid=_mid(down[-1], depths[-1]) if given.mid_block_type else None,
        up=tuple(reversed(up)),
        added=_added(given),
    )


PER_STAGE = ("attention_head_dim", "transformer_layers_per_block", "layers_per_block")


def _per_stage(given: _Config, key: str) -> Sequence[Any]:
    """One value for each stage on the way down, whether one was given or a list."""
    value, count = getattr(given, key), len(given.block_out_channels)
    for name in ("down_block_types", "up_block_types", *([key] if isinstance(value, tuple) else [])):
        if len(getattr(given, name)) != count:
            raise UserError(f"{name}: {json.dumps(getattr(given, name))}: block_out_channels has {count} stages")
    return value if isinstance(value, tuple) else (value,) * count


def _head_dim(width: int, heads: int) -> int:
    if width % heads:
        raise UserError(f"attention_head_dim: {heads} heads: {width} channels are no multiple of them")
    return width // heads


def _blocks(width: int, head_dim: int, count: int, depths: int | Sequence[int]) -> tuple[BlockConfig, ...]:
    """Equal ResNet blocks with equal transformer layers, `depths` of them behind each block."""
    each = (depths,) * count if isinstance(depths, int) else tuple(depths)
    if len(each) != count:
        raise UserError(f"transformer_layers_per_block: {list(each)}: its stage has {count} blocks")
    heads = width // head_dim
    layer = TransformerConfig(self_heads=heads, cross_heads=heads, feed_forward=EXPANSION * width)
    return tuple(BlockConfig(hidden=width, transformer=(layer,) * depth) for depth in each)


def _mid(last: StageConfig, depth: int | Sequence[int]) -> StageConfig:
    layers = depth if isinstance(depth, int) else depth[0]
    blocks = _blocks(last.width, last.head_dim, 2, (layers, 0))
    return StageConfig(width=last.width, head_dim=last.head_dim, separable=False, resample=False, blocks=blocks)


def _added(given: _Config) -> AddedConfig | None:
    width, waves = given.projection_class_embeddings_input_dim, given.addition_time_embed_dim
    if given.addition_embed_type is None:
        return None
    if width is None or waves is None:
        raise UserError(
            'addition_embed_type: "text_time": projection_class_embeddings_input_dim and addition_time_embed_dim '
            "must be given with it"
        )
    return AddedConfig(width=width, waves=waves)


def write(records: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that may fit."""
    record: UNetConfig = records["unet"]
    down, up, mid = record.down, record.up, record.mid
    depths, back = _depths(down), _depths(up)
    mirror = back == depths[::-1] and not any(isinstance(depth, list) for depth in depths)
    found = {
        "act_fn": "silu",
        "attention_head_dim": [max(stage.width // stage.head_dim, 1) for stage in down],
        "block_out_channels": [stage.width for stage in down],
        "cross_attention_dim": record.context_width,
        "down_block_types": [(CROSS if _crosses(stage) else PLAIN)[0] for stage in down],
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": record.in_channels,
        "layers_per_block": [len(stage.blocks) for stage in down],
        "mid_block_type": None if mid is None else "UNetMidBlock2DCrossAttn",
        "norm_num_groups": record.norm_groups,
        "out_channels": record.out_channels,
        "resnet_time_scale_shift": "scale_shift" if record.grammar.time == "scale_shift" else "default",
        "time_embedding_dim": record.time_width,
        "transformer_layers_per_block": depths,
        "up_block_types": [(CROSS if _crosses(stage) else PLAIN)[1] for stage in up],
        "use_linear_projection": record.grammar.projection == "linear",
    }
    if not mirror:
        found["reverse_transformer_layers_per_block"] = back
    if mid is not None and not _crosses(down[-1]):
        found["transformer_layers_per_block"] = [*depths[:-1], max(len(mid.blocks[0].layers), 1)]
    if record.added is not None:
        found["addition_embed_type"] = "text_time"
        found["addition_time_embed_dim"] = record.added.waves
        found["projection_class_embeddings_input_dim"] = record.added.width
    return found


def _crosses(stage: StageConfig) -> bool:
    return any(block.layers for block in stage.blocks)


def _depths(stages: Sequence[StageConfig]) -> list[int | list[int]]:
    """Transformer layers of each stage: one number where its blocks agree; 1 where it has none, which nothing reads."""
    found: list[int | list[int]] = []
    for stage in stages:
        each = [len(block.layers) for block in stage.blocks]
        found.append(max(each[0], 1) if len(set(each)) == 1 else each)
    return found


def names(part: str, ours: str, record: Any) -> tuple[str, ...]:
    """The same name."""
    return (ours,)


GRAMMAR = Grammar(
    name="UNet2DConditionModel",
    library="diffusers",
    folder="unet",
    parts={"unet": "unet.unet"},
    prefixes={"unet": ("",)},
    read=read,
    write=write,
    names=names,
)
