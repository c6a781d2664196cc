"""What depth pruning can end with, before anything runs: architectures that bound its MACs and parameters.

For a number of blocks the bounds are reached: the blocks with the most, and with the fewest, MACs or parameters go. For
a ratio they are those of a fractional knapsack (Dantzig 1957), so no choice of blocks lies outside. Where blocks
overlap (pairs, stages) or save more together than alone (the last layer of a transformer), a bound may be the whole
architecture, or the one without everything that may go.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

from compress.components import kind_of
from compress.errors import UserError
from compress.nn.cost import Cost
from compress.nn.structure import Block
from compress.prune._depth_config import Config, may_go, named
from compress.prune._network import Network, Saved, cut, everything, measured, network_of, removal_of, saved_by
from compress.records import Arch

Order = Sequence[str]


def ends(arch: Arch, config: Config) -> list[Arch]:
    """The bounds for one architecture; a single one where the recipe names its blocks.

    Raises:
        UserError: too little can go.
    """
    blocks = everything(kind_of(arch.kind), arch)
    if config.remove is not None:
        return [_without(arch, [b.name for b in named(blocks, config)], config)]
    whole, bare = measured(arch, config.pixels), _without_all(arch, config)
    _refuse_too_much(whole, measured(bare, config.pixels), may_go(blocks, config), config)
    single = may_go(blocks, config.model_copy(update={"units": ("blocks",)}))
    saved = {b.name: saved_by(whole, b, removal_of(arch, [b.name], config.stand_in)) for b in single}

    def adds_up(names: Order) -> bool:
        rest = measured(_without(arch, names, config), config.pixels)
        macs, parameters = sum(saved[n].macs for n in names), sum(saved[n].parameters for n in names)
        return (rest.macs, rest.parameters) == (whole.macs - macs, whole.parameters - parameters)

    exact = set(config.units) == {"blocks"} and adds_up(list(saved))
    if config.blocks is None:
        chosen = _around_ratio(saved, whole.macs, whole.parameters, config) if exact else []
        return [_without(arch, gone, config) for gone in chosen] or [arch, bare]
    found = []
    for order in (sorted(saved, key=lambda n: saved[n].macs), sorted(saved, key=lambda n: saved[n].parameters)):
        fewest, most = order[: config.blocks], order[-config.blocks :]
        found.append(_without(arch, fewest, config) if exact or adds_up(fewest) else arch)
        found.append(_without(arch, most, config) if exact else bare)
    return found


def _without(arch: Arch, names: Order, config: Config) -> Arch:
    return Arch(kind=arch.kind, config=removal_of(arch, names, config.stand_in).config if names else arch.config)


def candidates(network: Network, config: Config) -> list[Block]:
    """What may go from a network, under its names of today; `keep` is matched against those of the beginning."""
    blocks = network.kind.blocks(network.arch.config)
    if set(config.units) != {"blocks"}:
        blocks = everything(network.kind, network.arch)
    found = {block.name for block in may_go([_first_named(network, block) for block in blocks], config)}
    return [block for block in blocks if network.first_name(block.name) in found]


def _first_named(network: Network, block: Block) -> Block:
    takes = tuple(network.first_name(name) for name in block.takes)
    return replace(block, name=network.first_name(block.name), takes=takes)


def _without_all(arch: Arch, config: Config) -> Arch:
    """Without everything that may go, largest units first, for as long as anything may."""
    network = network_of(arch, {})
    if set(config.units) == {"blocks"}:
        names = [block.name for block in candidates(network, config)]
        return Arch(kind=arch.kind, config=removal_of(arch, names, None).config)
    while found := candidates(network, config):
        block = max(found, key=lambda block: block.count)
        network = cut(network, block, removal_of(network.arch, [block.name], None), {})
    return network.arch


def _refuse_too_much(whole: Cost, bare: Cost, free: Sequence[Block], config: Config) -> None:
    if config.blocks is not None and len(free) < config.blocks:
        raise too_few(free, config)
    for key, left in (
        ("to_macs_ratio", bare.macs / whole.macs),
        ("to_parameters_ratio", bare.parameters / whole.parameters),
    ):
        ratio = getattr(config, key)
        if ratio is not None and left > ratio:
            raise UserError(
                f"prune.depth: {key}: {ratio} asked for, but {left:.3f} is left even without all that may go; ask for "
                "more, shorten keep, or add stages to units"
            )


def too_few(free: Sequence[Block], config: Config) -> UserError:
    """The error where fewer can go than were asked for."""
    names = ", ".join(block.name for block in free) or "none"
    return UserError(
        f"prune.depth: blocks: {config.blocks} asked for, but only {len(free)} can be removed ({names}); "
        "ask for fewer, or shorten keep"
    )


def _around_ratio(saved: dict[str, Saved], macs: int, parameters: int, config: Config) -> list[Order]:
    """Removals that bound every way to reach the ratio and stop there.

    Whatever is chosen saves at least what is needed, and less than that without its last block.
    """
    by_macs = config.to_macs_ratio is not None
    ratio = config.to_macs_ratio if by_macs else config.to_parameters_ratio
    assert ratio is not None

    def weight(name: str) -> int:
        return saved[name].macs if by_macs else saved[name].parameters

    def value(name: str) -> int:
        return saved[name].parameters if by_macs else saved[name].macs

    needed = (macs if by_macs else parameters) * (1 - ratio)
    names = [name for name in saved if weight(name) > 0]

    def until(key: Callable[[str], float], *, reached: bool) -> list[str]:
        """Blocks in this order, until what is needed is reached, or just not."""
        order = sorted(names, key=key)
        sums = list(accumulate(weight(name) for name in order))
        stop = next(i for i, total in enumerate(sums) if total >= needed)
        return order[: stop + reached]

    def and_largest(gone: list[str], size: Callable[[str], int]) -> list[str]:
        left = [name for name in names if name not in gone]
        return [*gone, max(left, key=size)] if left else gone

    return [
        until(weight, reached=False),
        and_largest(until(weight, reached=True), weight),
        until(lambda n: value(n) / weight(n), reached=False),
        and_largest(until(lambda n: -value(n) / weight(n), reached=True), value),
    ]
