"""Which parts of a diffusion UNet depth pruning may take out whole, and what the network is without them.

Blocks: every ResNet block (the stream passes its place, through its 1x1 shortcut where the channels change, and its
output stays a skip) and every transformer layer (the last one of a transformer takes its projections along).
Pairs: a place on the way down, ResNet block and transformer, with its skip and a place on the way up that takes one.
Stages: the middle; the innermost stage of both ways, and the middle with it, which would else run on larger maps; all
layers of one transformer.

Source: pairs and stages are the removals of BK-SDM (Kim et al. 2023, arXiv:2305.15798), section 3.1; single blocks
those of SnapFusion (Li et al. 2023, arXiv:2306.00980), section 3.2.
Differs: which pairs and stages fit is found by building the configuration and comparing what each block would get.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from compress.components._unet_config import BlockConfig, Place, StageConfig, TransformerConfig, UNetConfig, places
from compress.nn.patches import Patch
from compress.nn.structure import Block, Moves, PatchSite, Removal, expanded

MIDDLE = "mid_block"


def blocks(config: UNetConfig) -> tuple[Block, ...]:
    """Every ResNet block and every transformer layer, in the order of computation."""
    return tuple(Block(name=name) for place in places(config) for name in _inside(place))


def units(config: UNetConfig) -> tuple[Block, ...]:
    """Pairs and stages; those that do not fit say why."""
    found = [_pair(config, place) for place in places(config) if place.prefix.startswith("down_blocks.")]
    stages = [_whole_transformer(place) for place in places(config) if len(place.block.layers) > 1]
    if config.mid is not None:
        takes = tuple(name for place in places(config) if place.prefix == MIDDLE for name in _inside(place))
        stages.append(Block(name=MIDDLE, unit="stage", takes=takes))
    last = len(config.down) - 1
    for i in range(last + 1):
        middle = (MIDDLE,) if i == last and config.mid is not None else ()
        parts = (f"down_blocks.{i}", *middle, f"up_blocks.{last - i}")
        reason = "its step takes the stream to the next resolution: only the innermost stage can go whole"
        unfit = reason if i < last else _unfit(config, frozenset(), frozenset(parts))
        takes = tuple(name for place in places(config) if place.prefix in parts for name in _inside(place))
        stages.append(Block(name="+".join(parts), fixed=unfit, unit="stage", takes=takes))
    return tuple(unit for pairs in found for unit in pairs) + tuple(stages)


def without_blocks(config: UNetConfig, names: Sequence[str]) -> Removal:
    """The configuration without these blocks and units.

    A ResNet block leaves a place that the stream passes, so skips and names stay; layers behind a removed one move up.
    A pair takes its places and their skip along, a stage its step between resolutions: what lies behind moves up.

    Raises:
        ValueError: a name is none of theirs, or fixed, or what is left does not fit together.
    """
    return _removal(config, names, None)


def with_patches(config: UNetConfig, names: Sequence[str], patch: Patch) -> Removal:
    """As `without_blocks`, but a patch stands in each block's place; a pair's or a stage's place goes without one.

    Where only the 1x1 shortcut of a ResNet block stays, the patch is added to that.
    """
    return _removal(config, names, patch)


def _inside(place: Place) -> list[str]:
    resnet = [place.resnet] if isinstance(place.block.hidden, int) else []
    return resnet + [f"{place.attention}.transformer_blocks.{k}" for k, _ in place.block.layers]


def _whole_transformer(place: Place) -> Block:
    takes = tuple(name for name in _inside(place) if name != place.resnet)
    return Block(name=place.attention, unit="stage", takes=takes)


def _pair(config: UNetConfig, down: Place) -> list[Block]:
    """A place on the way down with each place of the opposite stage that it can go with."""
    opposite = f"up_blocks.{len(config.down) - 1 - int(down.prefix.rpartition('.')[2])}"
    found = []
    for up in (place for place in places(config) if place.prefix == opposite):
        takes = (*_inside(down), *_inside(up))
        unfit = _unfit(config, frozenset((down.resnet, up.resnet)), frozenset())
        if takes:  # else nothing is left in either place
            found.append(Block(name=f"{down.resnet}+{up.resnet}", fixed=unfit, unit="pair", takes=takes))
    fitting = [block for block in found if block.fixed is None]
    return fitting or found[:1]


def _unfit(config: UNetConfig, gone: frozenset[str], stages: frozenset[str]) -> str | None:
    """Why the network without these places and stages would give a block other inputs than it has; None if it fits."""
    before = {place.resnet: place for place in places(config)}
    try:
        after = _shrunk(config, gone, stages)
    except ValueError as error:
        return f"without it, {error}"
    new_names = _new_names(config, gone, stages)
    for place in places(after):
        old = before[new_names[place.resnet]]
        if old.in_channels != place.in_channels:
            return f"{old.resnet} would get {place.in_channels} channels instead of {old.in_channels}"
    if any(stream != skip for stream, skip in _joined_resolutions(after)):
        return "a skip would meet a stream of another resolution"
    return None


def _stages(config: UNetConfig) -> Iterator[tuple[str, StageConfig]]:
    yield from ((f"down_blocks.{i}", stage) for i, stage in enumerate(config.down))
    yield from ((f"up_blocks.{i}", stage) for i, stage in enumerate(config.up))


def _new_names(config: UNetConfig, gone: frozenset[str], stages: frozenset[str]) -> Mapping[str, str]:
    """The ResNet blocks of the network without these places and stages -> their names before."""
    names: dict[str, str] = {}
    counts = {"down_blocks": -1, "up_blocks": -1}
    for prefix, stage in _stages(config):
        if prefix in stages:
            continue
        way = prefix.partition(".")[0]
        counts[way] += 1
        left = [name for name in (f"{prefix}.resnets.{j}" for j in range(len(stage.blocks))) if name not in gone]
        names |= {f"{way}.{counts[way]}.resnets.{j}": old for j, old in enumerate(left)}
    middle = [place.resnet for place in places(config) if place.prefix == MIDDLE and MIDDLE not in stages]
    return names | {name: name for name in middle}


def _shrunk(config: UNetConfig, gone: frozenset[str], stages: frozenset[str]) -> UNetConfig:
    """Without places (by their ResNet blocks' names) and stages; the innermost stage's step in goes with it.

    Raises:
        ValueError: what is left does not fit together.
    """

    def left(prefix: str, stage: StageConfig) -> StageConfig:
        kept = [block for j, block in enumerate(stage.blocks) if f"{prefix}.resnets.{j}" not in gone]
        return replace(stage, blocks=tuple(kept))

    remaining = {prefix: left(prefix, stage) for prefix, stage in _stages(config) if prefix not in stages}
    down = [stage for prefix, stage in remaining.items() if prefix.startswith("down")]
    if down and len(down) < len(config.down):
        down[-1] = replace(down[-1], resample=False)
    return replace(
        config,
        down=tuple(down),
        mid=None if MIDDLE in stages else config.mid,
        up=tuple(stage for prefix, stage in remaining.items() if prefix.startswith("up")),
    )


def _joined_resolutions(config: UNetConfig) -> Iterator[tuple[int, int]]:
    """For each place on the way up: how often the stream, and the skip it is joined to, was halved."""
    level, skips = 0, [0]
    for stage in config.down:
        skips += [level] * len(stage.blocks)
        if stage.resample:
            level += 1
            skips.append(level)
    for stage in config.up:
        yield from ((level, skips.pop()) for _ in stage.blocks)
        level -= stage.resample


def _removal(config: UNetConfig, names: Sequence[str], patch: Patch | None) -> Removal:
    gone = expanded(names, blocks(config), lambda: units(config))
    parts = frozenset(part for name in names if "+" in name or name == MIDDLE for part in name.split("+"))
    stages = frozenset(part for part in parts if ".resnets." not in part)
    lost = parts - stages
    new_of = {old: new for new, old in _new_names(config, lost, stages).items()}
    moves, emptied = _moved_steps(config, stages), dict[str, BlockConfig]()
    for place in places(config):
        if place.resnet not in new_of:
            moves.dropped.extend([f"{place.resnet}.", f"{place.attention}."])
            continue
        edit = _Edit(place=place, new=new_of[place.resnet], gone=gone, patch=patch, moves=moves)
        emptied[place.resnet] = BlockConfig(hidden=_without_resnet(edit), transformer=_without_layers(edit))
        if edit.new != place.resnet:
            moves.renamed.update({f"{place.resnet}.": f"{edit.new}.", f"{place.attention}.": f"{edit.attention}."})
    return moves.removal(_shrunk(_filled(config, emptied), lost, stages))


def _filled(config: UNetConfig, new: Mapping[str, BlockConfig]) -> UNetConfig:
    """The configuration with some blocks changed, by their ResNet blocks' names."""

    def changed(prefix: str, stage: StageConfig) -> StageConfig:
        found = [new.get(f"{prefix}.resnets.{j}", block) for j, block in enumerate(stage.blocks)]
        return replace(stage, blocks=tuple(found))

    return replace(
        config,
        down=tuple(changed(f"down_blocks.{i}", stage) for i, stage in enumerate(config.down)),
        mid=None if config.mid is None else changed(MIDDLE, config.mid),
        up=tuple(changed(f"up_blocks.{i}", stage) for i, stage in enumerate(config.up)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edit:
    """One place that stays, from which some blocks go."""

    place: Place
    new: str  # name of its ResNet block in the new network
    gone: frozenset[str]
    patch: Patch | None
    moves: Moves

    @property
    def attention(self) -> str:
        """Name of its transformer in the new network."""
        return self.new.replace(".resnets.", ".attentions.")


def _without_resnet(edit: _Edit) -> int | Patch | None:
    """What is in the ResNet block's place."""
    place, width = edit.place, edit.place.stage.width
    if place.resnet not in edit.gone:
        return place.block.hidden
    if place.in_channels == width:
        if edit.patch is not None:
            edit.moves.patches.append(PatchSite(block=place.resnet, place=edit.new, patch=edit.patch, width=width))
        return edit.patch
    shortcut = f"{place.resnet}.conv_shortcut"
    edit.moves.kept.append(f"{shortcut}.")
    if edit.patch is not None:
        site = PatchSite(block=place.resnet, place=edit.new, patch="pointwise", width=width, shortcut=shortcut)
        edit.moves.patches.append(site)
    return None


def _without_layers(edit: _Edit) -> tuple[TransformerConfig | Patch, ...] | Patch:
    """What is in the transformer's place. A patch behind its last layer takes the projections' place too."""
    place, width, patch, moves = edit.place, edit.place.stage.width, edit.patch, edit.moves
    transformer, old = place.block.transformer, f"{place.attention}.transformer_blocks."
    if isinstance(transformer, str) or not transformer:
        return transformer
    if all(f"{old}{k}" in edit.gone for k, _ in place.block.layers):
        moves.dropped.append(f"{place.attention}.")
        if patch is None:
            return ()
        moves.patches.append(PatchSite(block=place.attention, place=edit.attention, patch=patch, width=width))
        return patch
    left: list[TransformerConfig | Patch] = []
    for k, layer in enumerate(transformer):
        new = f"{edit.attention}.transformer_blocks.{len(left)}"
        if f"{old}{k}" not in edit.gone:
            moves.renamed[f"{old}{k}."] = f"{new}."
            left.append(layer)
        elif patch is not None:
            left.append(patch)
            moves.patches.append(PatchSite(block=f"{old}{k}", place=new, patch=patch, width=width, tokens=True))
    return tuple(left)


def _moved_steps(config: UNetConfig, stages: frozenset[str]) -> Moves:
    """Where the steps between resolutions move when stages go, and the steps that go with them."""
    moves = Moves()
    if any(part.startswith("down_blocks.") for part in stages):
        last = len(config.down) - 1
        moves.dropped.extend([f"down_blocks.{last}.", f"down_blocks.{last - 1}.downsamplers.", "up_blocks.0."])
        moves.renamed.update({f"up_blocks.{i}.": f"up_blocks.{i - 1}." for i in range(1, len(config.up))})
    return moves
