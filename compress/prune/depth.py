"""Depth pruning: take out whole blocks, the one that does the least damage per MAC saved first.

Source: SnapFusion (Li et al. 2023, arXiv:2306.00980), section 3.2: blocks ranked by change of quality over change of
latency; BK-SDM (Kim et al. 2023, arXiv:2305.15798) for removing a block behind an identity shortcut.
Differs: damage is the squared error to the component's own output, MACs stand for latency, and every remaining block is
scored again after each removal, because two blocks that are each harmless need not be harmless together.
Cost: (blocks + 1) * removals / 2 passes over the calibration inputs.
"""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from pydantic import Field, PositiveInt

from compress.components import build, kind_of
from compress.errors import UserError
from compress.nn import cost
from compress.nn.batches import take
from compress.nn.structure import Block, Kind, Removal, example_inputs
from compress.records import Achieved, Arch, Inputs, Needs, Prediction, Skipped, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.STATISTICS


class Config(Schema):
    """How many blocks to remove, and which to leave alone."""

    blocks: PositiveInt = Field(description="How many blocks to remove.")
    keep: tuple[str, ...] = Field((), description="Blocks never to remove: names with * and ? wildcards.")
    samples: PositiveInt = Field(8, description="Calibration inputs to score on.")
    latent_size: PositiveInt = Field(16, description="Side of the central crop of each input to score on.")


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Bounds: the blocks with the most, and with the fewest, MACs or parameters go.

    Raises:
        UserError: too few blocks can go, or a keep pattern matches none.
    """
    _check_keep(prediction.ends, config)
    ends = []
    for arch in prediction.ends:
        kind = kind_of(arch.kind)
        names = [b.name for b in _candidates(kind, arch, config)]
        saved = _saved(kind, arch, names)
        orders = sorted(names, key=lambda n: saved[n].macs), sorted(names, key=lambda n: saved[n].parameters)
        ends += [
            Arch(kind=arch.kind, config=kind.without_blocks(arch.config, gone).config)
            for order in orders
            for gone in (order[: config.blocks], order[-config.blocks :])
        ]
    return replace(prediction, ends=tuple(dict.fromkeys(ends)))


def apply(stage: StageInput, config: Config) -> StageResult:
    """Remove `config.blocks` blocks, greedily, scoring all that remain before each removal."""
    arch, state = stage.variant.arch, stage.variant.module.state_dict()
    kind = kind_of(arch.kind)
    _check_keep((arch,), config)
    _candidates(kind, arch, config)
    all_blocks = kind.blocks(arch.config)
    inputs = tuple(_central_crop(x, config.latent_size) for x in take(stage.inputs, 0, config.samples))
    original = {b.name: b.name for b in all_blocks}  # today's name -> the name before any removal
    notes = []
    with torch.no_grad():
        target = stage.variant.module(*inputs)
        rounds = config.blocks
        for done in range(rounds):
            names = [b.name for b in _candidates(kind, arch, config, original)]
            saved, scores = _saved(kind, arch, names), {}
            for index, name in enumerate(names):
                stage.progress(done * len(all_blocks) + index, rounds * len(all_blocks), f"scoring {original[name]}")
                scores[name] = _damage(arch, state, name, inputs, target) / saved[name].macs
            victim = min(names, key=lambda name: scores[name])
            notes.append(f"removed {original[victim]}: squared error per GMAC saved {scores[victim] * 1e9:.3g}")
            removal = kind.without_blocks(arch.config, [victim])
            state = rename(state, removal, victim)
            original = _rename_blocks(original, removal, victim)
            arch = Arch(kind=arch.kind, config=removal.config)
    module = build(arch)
    module.load_state_dict(state)
    removed = len(all_blocks) - len(kind.blocks(arch.config))
    return StageResult(
        arch=arch,
        module=module.requires_grad_(False).eval(),
        achieved=(
            Achieved(
                what="blocks removed",
                requested=config.blocks,
                achieved=removed,
                unit="blocks",
                met=removed == config.blocks,
            ),
        ),
        skipped=_left_alone(all_blocks, config),
        notes=tuple(notes),
    )


def rename(state: dict[str, torch.Tensor], removal: Removal, block: str) -> dict[str, torch.Tensor]:
    """The state dict of the network without `block`: its tensors dropped, those behind it under their new names."""
    new = {}
    for name, tensor in state.items():
        if name.startswith((f"{block}.", *removal.dropped)):
            continue
        prefix = next((old for old in removal.renamed if name.startswith(old)), None)
        new[name if prefix is None else removal.renamed[prefix] + name.removeprefix(prefix)] = tensor
    return new


def _rename_blocks(original: dict[str, str], removal: Removal, block: str) -> dict[str, str]:
    return {
        removal.renamed.get(f"{name}.", f"{name}.").removesuffix("."): before
        for name, before in original.items()
        if name != block
    }


def _candidates(kind: Kind, arch: Arch, config: Config, original: dict[str, str] | None = None) -> list[Block]:
    """Blocks that may go; `keep` is matched against the names that the blocks had before any removal."""
    names = original or {}
    kept = [b for b in kind.blocks(arch.config) if b.fixed is None and not _is_kept(names.get(b.name, b.name), config)]
    if not kept or (original is None and len(kept) < config.blocks):
        raise UserError(
            f"prune.depth: blocks: {config.blocks} asked for, but only {len(kept)} can be removed "
            f"({', '.join(b.name for b in kept) or 'none'}); ask for fewer, or shorten keep"
        )
    return kept


def _is_kept(name: str, config: Config) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in config.keep)


def _check_keep(archs: Sequence[Arch], config: Config) -> None:
    """Refuse a keep pattern that matches nothing: it would protect nothing without a word."""
    names = list(dict.fromkeys(b.name for arch in archs for b in kind_of(arch.kind).blocks(arch.config)))
    for pattern in config.keep:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"prune.depth: keep: '{pattern}' matches no block; blocks are {', '.join(names)}")


def _left_alone(blocks: Sequence[Block], config: Config) -> tuple[Skipped, ...]:
    reasons = {b.name: b.fixed or ("kept by the recipe" if _is_kept(b.name, config) else None) for b in blocks}
    return tuple(Skipped(name=name, reason=reason) for name, reason in reasons.items() if reason)


class _Saved(NamedTuple):
    macs: int
    parameters: int


def _saved(kind: Kind, arch: Arch, blocks: Sequence[str]) -> dict[str, _Saved]:
    """What each block costs by itself."""

    def measured(config: object) -> cost.Cost:
        with torch.device("meta"):
            module = kind.build(config)
        return cost.measure(module, example_inputs(kind, config, 64))

    whole = measured(arch.config)
    rest = {block: measured(kind.without_blocks(arch.config, [block]).config) for block in blocks}
    return {
        block: _Saved(macs=whole.macs - other.macs, parameters=whole.parameters - other.parameters)
        for block, other in rest.items()
    }


def _damage(arch: Arch, state: dict[str, torch.Tensor], block: str, inputs: Inputs, target: torch.Tensor) -> float:
    """Mean squared difference that the network without `block` makes."""
    removal = kind_of(arch.kind).without_blocks(arch.config, [block])
    module = build(Arch(kind=arch.kind, config=removal.config))
    module.load_state_dict(rename(state, removal, block))
    return float((module(*inputs) - target).square().mean())


def _central_crop(inputs: torch.Tensor, size: int) -> torch.Tensor:
    """The middle of pictures and latents; text and time steps whole."""
    if inputs.dim() != 4:
        return inputs
    top, left = (max(0, (side - size) // 2) for side in inputs.shape[-2:])
    return inputs[..., top : top + size, left : left + size]
