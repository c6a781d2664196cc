"""What may be cut in an autoencoder: its channel groups and blocks, derived from the configuration alone.

Source: dependency groups as in DepGraph (Fang et al. 2023, arXiv:2301.12900), written down instead of traced.
Channels: the residual stream of each level (the mid block is on the stream of the level beside it), the entry of a
level whose first block has a 1x1 shortcut, the inside of each ResNet block, and the keys and the values of attention.
Blocks: all of them; of a block with a 1x1 shortcut, the shortcut stays, because behind it the stream is another one.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from compress.components._vae_config import Attention, DecoderConfig, EncoderConfig, Inner, Level, Mid
from compress.nn.patches import Patch
from compress.nn.structure import (
    Block,
    ChannelGroup,
    ChannelSlice,
    Moves,
    PatchSite,
    Removal,
    expanded,
    norms,
    reads,
    writes,
)

Config = TypeVar("Config", DecoderConfig, EncoderConfig)
Side = Literal["stream", "inner"]


def channel_groups(config: DecoderConfig | EncoderConfig) -> tuple[ChannelGroup, ...]:
    """Every set of channels that must be cut together, level by level; those of the mid block come with its level."""
    groups: list[ChannelGroup] = []
    for i, level in enumerate(config.levels):
        arriving = writes("conv_in" if i == 0 else f"levels.{i - 1}.step.conv")
        stream: tuple[ChannelSlice, ...] = () if level.entry is not None else arriving
        if config.mid is not None and i == _beside_mid(config):
            stream += _mid_stream(config.mid)
            groups += _mid_groups(config.mid, config.norm_groups)
        for j, hidden in enumerate(level.hidden):
            block = f"levels.{i}.resnets.{j}"
            if j == 0 and level.entry is not None:
                entry, stream = arriving + reads(f"{block}.shortcut"), stream + writes(f"{block}.shortcut")
                if isinstance(hidden, int):
                    entry += norms(f"{block}.norm1") + reads(f"{block}.conv1")
                    stream += writes(f"{block}.conv2")
                groups.append(_group(f"levels.{i}.entry", "stream", level.entry, config.norm_groups, entry))
            else:
                stream += _on_stream(block, hidden)
            if isinstance(hidden, int):
                groups.append(_inner(block, hidden, config.norm_groups))
        last = i == len(config.levels) - 1
        stream += norms("norm_out") + reads("conv_out") if last else reads(f"levels.{i}.step.conv")
        groups.append(_group(f"levels.{i}.stream", "stream", level.width, config.norm_groups, stream))
    return tuple(groups)


def _group(name: str, kind: Side, width: int, norm_groups: int, slices: tuple[ChannelSlice, ...]) -> ChannelGroup:
    """A group; where no norm sees its channels, their number is free."""
    normed = any(part.role == "norm" for part in slices)
    return ChannelGroup(name=name, kind=kind, width=width, norm_groups=norm_groups if normed else 1, slices=slices)


def _on_stream(block: str, inner: Inner) -> tuple[ChannelSlice, ...]:
    """What a ResNet block with an identity shortcut, or its patch, does with the stream."""
    if isinstance(inner, int):
        return norms(f"{block}.norm1") + reads(f"{block}.conv1") + writes(f"{block}.conv2")
    return writes(block) if inner == "affine" else reads(f"{block}.mix") + writes(f"{block}.mix")


def _inner(block: str, hidden: int, norm_groups: int) -> ChannelGroup:
    slices = writes(f"{block}.conv1") + norms(f"{block}.norm2") + reads(f"{block}.conv2")
    return _group(f"{block}.hidden", "inner", hidden, norm_groups, slices)


def _beside_mid(config: DecoderConfig | EncoderConfig) -> int:
    """The level that shares its stream with the mid block."""
    return 0 if isinstance(config, DecoderConfig) else len(config.levels) - 1


def _mid_resnets(mid: Mid) -> Iterator[tuple[str, Inner]]:
    yield from ((f"mid.before.{j}", hidden) for j, hidden in enumerate(mid.before))
    yield from ((f"mid.after.{j}", hidden) for j, hidden in enumerate(mid.after))


def _mid_stream(mid: Mid) -> tuple[ChannelSlice, ...]:
    slices: tuple[ChannelSlice, ...] = ()
    for block, inner in _mid_resnets(mid):
        slices += _on_stream(block, inner)
    if isinstance(mid.attention, str):
        slices += _on_stream("mid.attention", mid.attention)
    elif mid.attention is not None:
        slices += norms("mid.attention.norm") + writes("mid.attention.out")
        slices += reads("mid.attention.q") + reads("mid.attention.k") + reads("mid.attention.v")
    return slices


def _mid_groups(mid: Mid, norm_groups: int) -> list[ChannelGroup]:
    groups = [_inner(block, hidden, norm_groups) for block, hidden in _mid_resnets(mid) if isinstance(hidden, int)]
    if isinstance(mid.attention, Attention):
        # A score is a sum over the keys' channels: queries and keys are cut together, and nothing else sees them.
        keys = writes("mid.attention.q") + writes("mid.attention.k")
        values = writes("mid.attention.v") + reads("mid.attention.out")
        groups.append(_group("mid.attention.keys", "inner", mid.attention.keys, norm_groups, keys))
        groups.append(_group("mid.attention.values", "inner", mid.attention.values, norm_groups, values))
    return groups


def with_widths(config: Config, widths: Mapping[str, int]) -> Config:
    """The configuration with new widths for some channel groups."""
    cut = [_narrowed(i, level, widths) for i, level in enumerate(config.levels)]
    arriving = [level.width if level.entry is None else level.entry for level in cut]
    levels = tuple(replace(level, step=None if level.step is None else arriving[i + 1]) for i, level in enumerate(cut))
    mid = config.mid
    if mid is not None:
        mid = Mid(
            before=tuple(widths.get(f"mid.before.{j}.hidden", h) for j, h in enumerate(mid.before)),
            attention=_narrowed_attention(mid.attention, widths),
            after=tuple(widths.get(f"mid.after.{j}.hidden", h) for j, h in enumerate(mid.after)),
        )
    return replace(config, levels=levels, mid=mid)


def _narrowed(index: int, level: Level, widths: Mapping[str, int]) -> Level:
    return replace(
        level,
        width=widths.get(f"levels.{index}.stream", level.width),
        hidden=tuple(widths.get(f"levels.{index}.resnets.{j}.hidden", h) for j, h in enumerate(level.hidden)),
        entry=None if level.entry is None else widths.get(f"levels.{index}.entry", level.entry),
    )


def _narrowed_attention(attention: Attention | Patch | None, widths: Mapping[str, int]) -> Attention | Patch | None:
    if not isinstance(attention, Attention):
        return attention
    return replace(
        attention,
        keys=widths.get("mid.attention.keys", attention.keys),
        values=widths.get("mid.attention.values", attention.values),
    )


def blocks(config: DecoderConfig | EncoderConfig) -> tuple[Block, ...]:
    """Every ResNet block and attention, in the order in which they run; patches and lone shortcuts are none."""
    mid = [] if config.mid is None else [name for name, inner in _mid_resnets(config.mid) if isinstance(inner, int)]
    if config.mid is not None and isinstance(config.mid.attention, Attention):
        mid.insert(sum(isinstance(inner, int) for inner in config.mid.before), "mid.attention")
    found = [
        f"levels.{i}.resnets.{j}"
        for i, level in enumerate(config.levels)
        for j, inner in enumerate(level.hidden)
        if isinstance(inner, int)
    ]
    return tuple(Block(name=name) for name in (found + mid if _beside_mid(config) else mid + found))


def units(config: DecoderConfig | EncoderConfig) -> tuple[Block, ...]:
    """The ResNet blocks of each level, and the whole mid block; a level's own step between resolutions stays."""
    names = [block.name for block in blocks(config)]
    wholes = ["mid", *(f"levels.{i}.resnets" for i in range(len(config.levels)))]
    inside = {whole: tuple(name for name in names if name.startswith(f"{whole}.")) for whole in wholes}
    found = [Block(name=whole, unit="stage", takes=takes) for whole, takes in inside.items() if len(takes) > 1]
    reason = "its step takes the stream to the next resolution; its ResNet blocks can go"
    stepping = [i for i, level in enumerate(config.levels) if level.step is not None]
    return tuple(found + [Block(name=f"levels.{i}", fixed=reason, unit="stage") for i in stepping])


def without_blocks(config: Config, names: Sequence[str]) -> Removal:
    """The configuration without these blocks or units; those behind a removed block move up in its level.

    Of a block with a 1x1 shortcut, that shortcut stays.

    Raises:
        ValueError: a name is none of theirs, or fixed.
    """
    return _removal(config, names, None)


def with_patches(config: Config, names: Sequence[str], patch: Patch) -> Removal:
    """As `without_blocks`, but a patch stands in each block's place; it is added to a 1x1 shortcut where there is one.

    Raises:
        ValueError: a name is none of theirs, or fixed.
    """
    return _removal(config, names, patch)


def _removal(config: Config, names: Sequence[str], patch: Patch | None) -> Removal:
    gone, moves = expanded(names, blocks(config), lambda: units(config)), Moves()
    levels = []
    for i, level in enumerate(config.levels):
        row = _Row(where=f"levels.{i}.resnets", width=level.width, projected=level.entry is not None)
        levels.append(replace(level, hidden=_remaining(row, level.hidden, gone, patch, moves)))
    mid, width = config.mid, config.levels[_beside_mid(config)].width
    if mid is not None:
        left = Mid(
            before=_remaining(_Row(where="mid.before", width=width), mid.before, gone, patch, moves),
            attention=patch if "mid.attention" in gone else mid.attention,
            after=_remaining(_Row(where="mid.after", width=width), mid.after, gone, patch, moves),
        )
        if patch is not None and "mid.attention" in gone:
            moves.patches.append(PatchSite(block="mid.attention", place="mid.attention", patch=patch, width=width))
        mid = left if left.before or left.after or left.attention else None
    return moves.removal(replace(config, levels=tuple(levels), mid=mid))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """ResNet blocks one after the other: where they are, their stream, and whether the first has a 1x1 shortcut."""

    where: str
    width: int
    projected: bool = False


def _remaining(
    row: _Row, hidden: Sequence[Inner], gone: Collection[str], patch: Patch | None, moves: Moves
) -> tuple[Inner, ...]:
    """What is left of a row of blocks; where tensors move is noted in `moves`."""
    left: list[Inner] = []
    for j, inner in enumerate(hidden):
        old, new = f"{row.where}.{j}", f"{row.where}.{len(left)}"
        if old not in gone:
            moves.renamed[f"{old}."] = f"{new}."
            left.append(inner)
        elif row.projected and j == 0:
            shortcut = f"{old}.shortcut"
            moves.kept.append(f"{shortcut}.")
            left.append("shortcut")
            if patch is not None:
                site = PatchSite(block=old, place=new, patch="pointwise", width=row.width, shortcut=shortcut)
                moves.patches.append(site)
        elif patch is not None:
            left.append(patch)
            moves.patches.append(PatchSite(block=old, place=new, patch=patch, width=row.width))
    return tuple(left)
