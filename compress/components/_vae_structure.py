"""What may be cut in an autoencoder: its channel groups and blocks, derived from the configuration alone.

Source: dependency groups as in DepGraph (Fang et al. 2023, arXiv:2301.12900), written down instead of traced.
Channels: the residual stream of each level (the mid block is on the stream of the level beside it), the entry of a
level whose first block has a 1x1 shortcut, the inside of each ResNet block, and the keys and the values of attention.
Blocks: all of them but those with a 1x1 shortcut, which are fixed: behind such a block the stream is another one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from compress.components._vae_config import Attention, DecoderConfig, EncoderConfig, Level, Mid
from compress.nn.structure import Block, ChannelGroup, ChannelSlice, Removal, norms, reads, writes

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
                entry = arriving + norms(f"{block}.norm1") + reads(f"{block}.conv1") + reads(f"{block}.shortcut")
                groups.append(_group(f"levels.{i}.entry", "stream", level.entry, config.norm_groups, entry))
                stream += writes(f"{block}.shortcut") + writes(f"{block}.conv2")
            else:
                stream += norms(f"{block}.norm1") + reads(f"{block}.conv1") + writes(f"{block}.conv2")
            groups.append(_inner(block, hidden, config.norm_groups))
        last = i == len(config.levels) - 1
        stream += norms("norm_out") + reads("conv_out") if last else reads(f"levels.{i}.step.conv")
        groups.append(_group(f"levels.{i}.stream", "stream", level.width, config.norm_groups, stream))
    return tuple(groups)


def _group(name: str, kind: Side, width: int, norm_groups: int, slices: tuple[ChannelSlice, ...]) -> ChannelGroup:
    """A group; where no norm sees its channels, their number is free."""
    normed = any(part.role == "norm" for part in slices)
    return ChannelGroup(name=name, kind=kind, width=width, norm_groups=norm_groups if normed else 1, slices=slices)


def _inner(block: str, hidden: int, norm_groups: int) -> ChannelGroup:
    slices = writes(f"{block}.conv1") + norms(f"{block}.norm2") + reads(f"{block}.conv2")
    return _group(f"{block}.hidden", "inner", hidden, norm_groups, slices)


def _beside_mid(config: DecoderConfig | EncoderConfig) -> int:
    """The level that shares its stream with the mid block."""
    return 0 if isinstance(config, DecoderConfig) else len(config.levels) - 1


def _mid_resnets(mid: Mid) -> Iterator[tuple[str, int]]:
    yield from ((f"mid.before.{j}", hidden) for j, hidden in enumerate(mid.before))
    yield from ((f"mid.after.{j}", hidden) for j, hidden in enumerate(mid.after))


def _mid_stream(mid: Mid) -> tuple[ChannelSlice, ...]:
    slices: tuple[ChannelSlice, ...] = ()
    for block, _ in _mid_resnets(mid):
        slices += norms(f"{block}.norm1") + reads(f"{block}.conv1") + writes(f"{block}.conv2")
    if mid.attention is not None:
        slices += norms("mid.attention.norm") + writes("mid.attention.out")
        slices += reads("mid.attention.q") + reads("mid.attention.k") + reads("mid.attention.v")
    return slices


def _mid_groups(mid: Mid, norm_groups: int) -> list[ChannelGroup]:
    groups = [_inner(block, hidden, norm_groups) for block, hidden in _mid_resnets(mid)]
    if mid.attention is not None:
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
            attention=None if mid.attention is None else _narrowed_attention(mid.attention, widths),
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


def _narrowed_attention(attention: Attention, widths: Mapping[str, int]) -> Attention:
    return replace(
        attention,
        keys=widths.get("mid.attention.keys", attention.keys),
        values=widths.get("mid.attention.values", attention.values),
    )


def blocks(config: DecoderConfig | EncoderConfig) -> tuple[Block, ...]:
    """Every ResNet block, and attention. One with a 1x1 shortcut is fixed; each level still has its own step."""
    mid = [] if config.mid is None else [Block(name=name) for name, _ in _mid_resnets(config.mid)]
    if config.mid is not None and config.mid.attention is not None:
        mid.insert(len(config.mid.before), Block(name="mid.attention"))
    found = [] if _beside_mid(config) else mid
    for i, level in enumerate(config.levels):
        for j in range(len(level.hidden)):
            fixed = None
            if j == 0 and level.entry is not None:
                fixed = f"its 1x1 shortcut takes the stream from {level.entry} to {level.width} channels"
            found.append(Block(name=f"levels.{i}.resnets.{j}", fixed=fixed))
    return tuple(found + mid if _beside_mid(config) else found)


def without_blocks(config: Config, names: Sequence[str]) -> Removal:
    """The configuration without these blocks; those behind a removed block move up in its level.

    Raises:
        ValueError: a block is fixed.
    """
    gone = set(names)
    if fixed := [f"{b.name} cannot be removed: {b.fixed}" for b in blocks(config) if b.fixed and b.name in gone]:
        raise ValueError("; ".join(fixed))
    renamed: dict[str, str] = {}

    def remaining(where: str, hidden: tuple[int, ...]) -> tuple[int, ...]:
        kept = [j for j in range(len(hidden)) if f"{where}.{j}" not in gone]
        renamed.update({f"{where}.{old}.": f"{where}.{new}." for new, old in enumerate(kept)})
        return tuple(hidden[j] for j in kept)

    levels = tuple(
        replace(level, hidden=remaining(f"levels.{i}.resnets", level.hidden)) for i, level in enumerate(config.levels)
    )
    mid = config.mid
    if mid is not None:
        attention = None if "mid.attention" in gone else mid.attention
        left = Mid(
            before=remaining("mid.before", mid.before), attention=attention, after=remaining("mid.after", mid.after)
        )
        mid = left if left.before or left.after or left.attention else None
    return Removal(config=replace(config, levels=levels, mid=mid), renamed=renamed)
