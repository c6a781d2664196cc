"""What a diffusion UNet is built from: a plain record, block by block, that any pruned UNet can be written in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from compress.nn.attention import AttentionShape, LayerShape, Weighting
from compress.nn.patches import Patch


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """One transformer layer; 0 heads or 0 channels mean that the part is not there."""

    self_heads: int
    cross_heads: int
    feed_forward: int  # inner width of the gated feed-forward


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockConfig:
    """A ResNet block and the transformer layers behind it.

    `hidden` is the ResNet block's inner width. Where the block was taken out it is the patch in its place, or None:
    then the stream passes, through the block's 1x1 shortcut if its channels change. So it is with each transformer
    layer, and with a whole transformer.
    """

    hidden: int | Patch | None
    transformer: tuple[TransformerConfig | Patch, ...] | Patch

    @property
    def layers(self) -> tuple[tuple[int, TransformerConfig], ...]:
        """The transformer layers that are left, with their places."""
        found = enumerate(() if isinstance(self.transformer, str) else self.transformer)
        return tuple((k, layer) for k, layer in found if isinstance(layer, TransformerConfig))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One resolution on the way down or up, or the middle: blocks on a stream of `width` channels."""

    width: int
    head_dim: int  # channels of one attention head
    separable: bool  # 3x3 convolutions of the ResNet blocks are depthwise + pointwise
    resample: bool  # a step to the next resolution follows
    blocks: tuple[BlockConfig, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What is the same in all blocks of one UNet."""

    time: Literal["add", "scale_shift"]
    gate: Literal["gelu", "swish"]
    attention: Weighting
    shared_kv: Literal["none", "self", "all"]  # in which attentions the values are the keys
    projection: Literal["linear", "conv"]
    depth_multiplier: int  # of separable convolutions


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedConfig:
    """What SDXL adds to the time step: a pooled text state, and numbers (sizes of the picture) as waves."""

    width: int  # of both together
    waves: int  # channels of each number
    numbers: int = 6

    @property
    def pooled(self) -> int:
        """Channels of the pooled text state."""
        return self.width - self.numbers * self.waves


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetConfig:
    """Everything needed to rebuild a diffusion UNet. Stages run in the order of computation."""

    in_channels: int
    out_channels: int
    context_width: int  # of the text encoder's hidden states
    time_width: int
    norm_groups: int
    grammar: Grammar
    down: tuple[StageConfig, ...]
    mid: StageConfig | None  # its second ResNet block follows its first block's transformer
    up: tuple[StageConfig, ...]
    added: AddedConfig | None = None

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One block of a UNet: where it is, what it is, and how many channels it gets."""

    prefix: str  # of the stage: down_blocks.0
    index: int
    stage: StageConfig
    block: BlockConfig
    in_channels: int  # on the way up: the stream and the skip together

    @property
    def resnet(self) -> str:
        """Name of the ResNet block."""
        return f"{self.prefix}.resnets.{self.index}"

    @property
    def attention(self) -> str:
        """Name of the transformer behind it."""
        return f"{self.prefix}.attentions.{self.index}"


def places(config: UNetConfig) -> Iterator[Place]:
    """Every block, in the order of computation; walks the skips as the network does."""
    width, skips = config.down[0].width, [config.down[0].width]
    for i, stage in enumerate(config.down):
        for j, block in enumerate(stage.blocks):
            yield Place(prefix=f"down_blocks.{i}", index=j, stage=stage, block=block, in_channels=width)
            width = stage.width
            skips.append(width)
        skips += [stage.width] if stage.resample else []
    for j, block in enumerate(config.mid.blocks if config.mid else ()):
        assert config.mid is not None
        yield Place(prefix="mid_block", index=j, stage=config.mid, block=block, in_channels=width)
    for i, stage in enumerate(config.up):
        for j, block in enumerate(stage.blocks):
            joined = width + skips.pop()
            yield Place(prefix=f"up_blocks.{i}", index=j, stage=stage, block=block, in_channels=joined)
            width = stage.width


def edited(config: UNetConfig, change: Callable[[Place], BlockConfig]) -> UNetConfig:
    """The configuration with every block changed by a function."""
    new: dict[str, list[BlockConfig]] = {}
    for place in places(config):
        new.setdefault(place.prefix, []).append(change(place))

    def stage(prefix: str, old: StageConfig) -> StageConfig:
        return replace(old, blocks=tuple(new.get(prefix, ())))

    return replace(
        config,
        down=tuple(stage(f"down_blocks.{i}", s) for i, s in enumerate(config.down)),
        mid=None if config.mid is None else stage("mid_block", config.mid),
        up=tuple(stage(f"up_blocks.{i}", s) for i, s in enumerate(config.up)),
    )


def layer_shape(layer: TransformerConfig, stage: StageConfig, config: UNetConfig) -> LayerShape:
    """What one transformer layer is built from."""

    def attention(heads: int, source: int, *, shared: bool) -> AttentionShape | None:
        if not heads:
            return None
        return AttentionShape(
            width=stage.width,
            source=source,
            heads=heads,
            head_dim=stage.head_dim,
            weighting=config.grammar.attention,
            shared_kv=shared,
        )

    shared = config.grammar.shared_kv
    return LayerShape(
        width=stage.width,
        to_self=attention(layer.self_heads, stage.width, shared=shared != "none"),
        to_text=attention(layer.cross_heads, config.context_width, shared=shared == "all"),
        feed_forward=layer.feed_forward,
        activation=config.grammar.gate,
    )


def _problems(config: UNetConfig) -> list[str]:
    """Why it could not be built, all reasons at once."""
    numbers = ("in_channels", "out_channels", "context_width", "time_width", "norm_groups")
    problems = [f"{name} must be positive" for name in numbers if getattr(config, name) < 1]
    if config.grammar.depth_multiplier < 1:
        problems.append("grammar.depth_multiplier must be positive")
    added = config.added
    if added is not None and min(added.pooled, added.waves, added.numbers) < 1:
        problems.append(f"added: width {added.width} leaves {added.pooled} channels for the text; all must be positive")
    problems += _topology(config)
    return problems or [problem for place in places(config) for problem in _block_problems(place, config)]


def _topology(config: UNetConfig) -> list[str]:
    """Skips made on the way down are used up on the way up, and each halving is undone by a doubling."""
    if not config.down or not config.up or not all(s.blocks for s in (*config.down, *config.up)):
        return ["down and up need at least one stage each, and each stage a block"]
    problems = []
    made = 1 + sum(len(s.blocks) + s.resample for s in config.down)
    used = sum(len(s.blocks) for s in config.up)
    if made != used:
        problems.append(f"the way down leaves {made} skips, but the blocks on the way up take {used}")
    halvings, doublings = (sum(s.resample for s in stages) for stages in (config.down, config.up))
    if halvings != doublings:
        problems.append(f"{halvings} halvings on the way down, {doublings} doublings on the way up")
    if config.mid is not None:
        if len(config.mid.blocks) != 2 or config.mid.blocks[1].transformer or config.mid.resample:
            problems.append("mid: needs two blocks, the second without transformer, and no resample")
        if config.mid.width != config.down[-1].width:
            problems.append(f"mid: {config.mid.width} channels, but the way down ends with {config.down[-1].width}")
    return problems


def _block_problems(place: Place, config: UNetConfig) -> list[str]:
    block, stage, groups = place.block, place.stage, config.norm_groups
    problems = []
    if isinstance(block.hidden, str) and place.in_channels != stage.width:
        problems.append(f"{place.resnet}: a patch cannot take {place.in_channels} channels to {stage.width}")
    normed = [place.in_channels, block.hidden] if isinstance(block.hidden, int) else []
    problems += [
        f"{place.resnet}: {width} channels are not a multiple of {groups} norm groups"
        for width in (*normed, stage.width)
        if width < 1 or width % groups
    ]
    if not isinstance(block.transformer, str) and block.transformer and not block.layers:
        problems.append(f"{place.attention}: patches alone; write the patch in the transformer's own place")
    for k, layer in block.layers:
        sizes = (layer.self_heads, layer.cross_heads, layer.feed_forward)
        if min(sizes) < 0 or not any(sizes) or stage.head_dim < 1:
            problems.append(
                f"{place.attention}.transformer_blocks.{k}: self_heads, cross_heads and feed_forward {sizes}, head_dim "
                f"{stage.head_dim}: none may be negative, not all three 0, and a head has at least 1 channel"
            )
    return problems
