"""What may be cut in a network: channels that go together, and blocks that can be taken out.

Source: dependency groups as in DepGraph (Fang et al. 2023, arXiv:2301.12900).
Differs: a component states its groups from its configuration, so nothing is traced, nothing is guessed, and the cut
network rebuilds from the new configuration alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from compress.nn.patches import Patch


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSlice:
    """One axis of one tensor that carries the channels of a group.

    Channel `i` of the group is entries `offset + i * span` to `offset + (i + 1) * span` of the axis: an attention head
    spans its channels, and the second half of a gated projection has the offset of the first half's width.
    """

    tensor: str  # name in the state dict
    axis: int
    role: Literal["writes", "reads", "norm"]  # makes the channels, consumes them, or scales each of them
    span: int = 1
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """Channels that must be cut together, e.g. a residual stream or the inside of one ResNet block."""

    name: str
    kind: Literal["stream", "inner"]
    width: int
    norm_groups: int  # GroupNorm groups over these channels; each must keep equally many channels
    slices: tuple[ChannelSlice, ...]
    unit: int = 1  # what one of `width` is to a kernel: a head of 64 channels counts 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedChannels:
    """Channels that must stay as they are, and why."""

    name: str
    width: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A part that depth pruning may remove whole, or the reason why it may not."""

    name: str  # qualified module name; several joined by "+" where they only go together
    fixed: str | None = None  # why it cannot be removed
    unit: Literal["block", "pair", "stage"] = "block"
    takes: tuple[str, ...] = ()  # the blocks in a pair or stage

    @property
    def count(self) -> int:
        """How many blocks go with it."""
        return len(self.takes) or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSite:
    """Where a patch stands in for a block, and the block from whose input and output it is learnt."""

    block: str  # the module that goes, under its old name
    place: str  # the module that is the patch, or keeps the shortcut, under its new name
    patch: Patch
    width: int  # channels of the stream
    tokens: bool = False  # [n, t, c] instead of [n, c, h, w]
    shortcut: str | None = None  # the 1x1 convolution inside of the block that stays: the patch is added to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """An architecture without some blocks, and where the remaining tensors moved (old name -> new name)."""

    config: Any
    renamed: Mapping[str, str]
    dropped: tuple[str, ...] = ()  # prefixes of tensors that go with the blocks, but are not inside them
    kept: tuple[str, ...] = ()  # prefixes of tensors inside the blocks that stay: 1x1 shortcuts
    patches: tuple[PatchSite, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """What a removal does to tensors, noted down block by block."""

    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    patches: list[PatchSite] = field(default_factory=list)

    def removal(self, config: Any) -> Removal:
        """All of it, with the architecture that is left."""
        return Removal(
            config=config,
            renamed=self.renamed,
            dropped=tuple(self.dropped),
            kept=tuple(self.kept),
            patches=tuple(self.patches),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What the pipeline needs to know of one kind of component; each component file declares its own."""

    config: type
    build: Callable[[Any], nn.Module]
    input_shape: Callable[[Any, int], tuple[int, ...]]  # (config, image pixels) -> one input's shape, batch of 1
    channel_groups: Callable[[Any], tuple[ChannelGroup, ...]]
    with_widths: Callable[[Any, Mapping[str, int]], Any]  # group name -> new width
    blocks: Callable[[Any], tuple[Block, ...]]
    without_blocks: Callable[[Any, Sequence[str]], Removal]
    feed: str  # the file of compress/feeds that has this kind's inputs
    output: Literal["image", "latents", "prediction", "states"] = "image"  # what it makes; its name in exported files
    inputs: Callable[[Any, int], tuple[torch.Tensor, ...]] | None = None  # on the meta device, where there are several
    units: Callable[[Any], tuple[Block, ...]] | None = None  # pairs and stages: blocks that can go together
    with_patches: Callable[[Any, Sequence[str], Patch], Removal] | None = None  # as without_blocks, but patched
    fixed_channels: Callable[[Any], tuple[FixedChannels, ...]] | None = None  # where groups are traced, not stated
    bind: Callable[[Any, Sequence[Any]], Any] | None = None  # gives a configuration the code that it names, if it may


def example_inputs(kind: Kind, config: Any, pixels: int) -> tuple[torch.Tensor, ...]:
    """All inputs of one forward pass for an image of `pixels` x `pixels`, batch of 1, on the meta device."""
    if kind.inputs is not None:
        return kind.inputs(config, pixels)
    return (torch.zeros(kind.input_shape(config, pixels), device="meta"),)


def writes(layer: str, *, bias: bool = True) -> tuple[ChannelSlice, ...]:
    """The tensors of a convolution or linear layer that make a group's channels."""
    weight = ChannelSlice(tensor=f"{layer}.weight", axis=0, role="writes")
    return (weight, ChannelSlice(tensor=f"{layer}.bias", axis=0, role="writes")) if bias else (weight,)


def reads(layer: str) -> tuple[ChannelSlice, ...]:
    """The tensor of a convolution or linear layer that consumes a group's channels."""
    return (ChannelSlice(tensor=f"{layer}.weight", axis=1, role="reads"),)


def norms(layer: str) -> tuple[ChannelSlice, ...]:
    """The tensors of a norm that scale each of a group's channels."""
    return (
        ChannelSlice(tensor=f"{layer}.weight", axis=0, role="norm"),
        ChannelSlice(tensor=f"{layer}.bias", axis=0, role="norm"),
    )


def expanded(names: Sequence[str], blocks: Sequence[Block], units: Callable[[], Sequence[Block]]) -> frozenset[str]:
    """The blocks that these names of blocks and units stand for; units are found only where a name asks for one.

    Raises:
        ValueError: a name is none of theirs, or fixed.
    """
    known = {block.name: block for block in blocks}
    if not known.keys() >= set(names):
        known |= {unit.name: unit for unit in units()}
    problems = [f"{name} is no block; blocks are {', '.join(known)}" for name in names if name not in known]
    chosen = [known[name] for name in names if name in known]
    problems += [f"{block.name} cannot be removed: {block.fixed}" for block in chosen if block.fixed]
    if problems:
        raise ValueError("; ".join(problems))
    return frozenset(name for block in chosen for name in block.takes or (block.name,))


def moved(name: str, renamed: Mapping[str, str]) -> str:
    """The new name of a tensor or module (its name and a dot): the longest prefix that moved decides."""
    prefix = max((old for old in renamed if name.startswith(old)), key=len, default=None)
    return name if prefix is None else renamed[prefix] + name.removeprefix(prefix)


def stays(
    shapes: Mapping[str, Sequence[int]], groups: Sequence[ChannelGroup], kept: Mapping[str, torch.Tensor]
) -> dict[tuple[str, int], torch.Tensor]:
    """(tensor, axis) -> which entries of that axis stay, for every axis that a cut group is on."""
    masks: dict[tuple[str, int], torch.Tensor] = {}  # offsets count before any cut, so each axis is cut once
    for group in groups:
        if group.name in kept:
            alive = torch.zeros(group.width, dtype=torch.bool, device="cpu")
            alive[kept[group.name]] = True
            for part in group.slices:
                size = shapes[part.tensor][part.axis]
                mask = masks.setdefault((part.tensor, part.axis), torch.ones(size, dtype=torch.bool, device="cpu"))
                mask[part.offset : part.offset + group.width * part.span] = alive.repeat_interleave(part.span)
    return masks


def take_channels(
    state: Mapping[str, torch.Tensor], groups: Sequence[ChannelGroup], kept: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A state dict with only the kept channels (group name -> sorted indices) of each group."""
    cut = dict(state)
    for (name, axis), mask in stays({name: t.shape for name, t in state.items()}, groups, kept).items():
        cut[name] = cut[name].index_select(axis, mask.nonzero()[:, 0].to(cut[name].device))
    return {name: tensor.contiguous() for name, tensor in cut.items()}
