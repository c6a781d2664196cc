"""An architecture with its tensors, and the same without some blocks: what depth pruning passes from step to step."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from compress.components import build, cost_of, kind_of
from compress.errors import UserError
from compress.nn import cost
from compress.nn.patches import Patch
from compress.nn.structure import Block, Kind, Removal, moved
from compress.prune._patch_fit import LinearFit, patch_tensors
from compress.records import Arch


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What the network is smaller by."""

    macs: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A component in one state. `names`: what its blocks, and the parts of its units, were called in the beginning."""

    arch: Arch
    state: Mapping[str, torch.Tensor]
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """What the component's file declares."""
        return kind_of(self.arch.kind)

    def module(self) -> nn.Module:
        """The module, sharing the tensors."""
        with torch.device("meta"):
            module = build(self.arch)
        module.load_state_dict(dict(self.state), assign=True)
        return module.requires_grad_(False).eval()

    def first_name(self, name: str) -> str:
        """What a block or unit was called before any removal."""
        return "+".join(self.names.get(part, part) for part in name.split("+"))


def network_of(arch: Arch, state: Mapping[str, torch.Tensor]) -> Network:
    """A network before any removal."""
    parts = [part for block in everything(kind_of(arch.kind), arch) for part in block.name.split("+")]
    return Network(arch=arch, state=state, names={part: part for part in parts})


def units_of(kind: Kind, arch: Arch) -> Iterator[Block]:
    """Pairs and stages, fixed or not; found when the first one is asked for."""
    yield from () if kind.units is None else kind.units(arch.config)


def everything(kind: Kind, arch: Arch) -> tuple[Block, ...]:
    """Blocks and units, fixed or not."""
    return (*kind.blocks(arch.config), *units_of(kind, arch))


def removal_of(arch: Arch, names: Sequence[str], patch: Patch | None) -> Removal:
    """The architecture without these blocks, patched or not.

    Raises:
        UserError: this kind of component has no patches.
    """
    kind = kind_of(arch.kind)
    if patch is None:
        return kind.without_blocks(arch.config, names)
    if kind.with_patches is None:
        raise UserError(f"prune.depth: patch: {arch.kind} cannot hold patches; leave it at none")
    return kind.with_patches(arch.config, names, patch)


def rename(state: Mapping[str, torch.Tensor], removal: Removal, *blocks: str) -> dict[str, torch.Tensor]:
    """The state dict without `blocks`: their tensors dropped, those that remain under their new names."""
    gone = (*(f"{block}." for block in blocks), *removal.dropped)
    left = {name: x for name, x in state.items() if name.startswith(removal.kept) or not name.startswith(gone)}
    return {moved(name, removal.renamed): tensor for name, tensor in left.items()}


def cut(network: Network, block: Block, removal: Removal, fits: Mapping[str, LinearFit]) -> Network:
    """The network without a block or unit, and with its patches."""
    blocks = block.takes or (block.name,)
    state = rename(network.state, removal, *blocks) | patch_tensors(removal.patches, fits, network.state)
    gone = {*blocks, *block.name.split("+")}
    names = {
        moved(f"{now}.", removal.renamed).removesuffix("."): first
        for now, first in network.names.items()
        if now not in gone
    }
    return Network(arch=Arch(kind=network.arch.kind, config=removal.config), state=state, names=names)


def measured(arch: Arch, pixels: int) -> cost.Cost:
    """The cost of one forward pass for an image of that size."""
    return cost_of(arch, pixels)


def saved_by(whole: cost.Cost, block: Block, removal: Removal) -> Saved:
    """What goes with a block, less what its patches cost; from the cost of the whole network alone."""
    gone = (*(f"{name}." for name in block.takes or (block.name,)), *removal.dropped)
    layers = [
        layer
        for layer in whole.layers
        if f"{layer.name}.".startswith(gone) and not f"{layer.name}.".startswith(removal.kept)
    ]
    macs, parameters = sum(layer.macs for layer in layers), sum(layer.parameters for layer in layers)
    for site in removal.patches:
        if site.shortcut is None and site.patch == "affine":
            parameters -= 2 * site.width
        elif site.shortcut is None:
            first = next(x for x in whole.layers if x.name.startswith(f"{site.block}.") and x.weights)
            parameters -= site.width * (site.width + 1)
            macs -= site.width**2 * first.activations // first.channels
    return Saved(macs=macs, parameters=parameters)
