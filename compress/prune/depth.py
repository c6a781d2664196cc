"""Depth pruning: take out whole blocks, the one that does the least damage per MAC or millisecond saved first.

Source: SnapFusion (Li et al. 2023, arXiv:2306.00980), section 3.2: blocks ranked by change of quality over change of
latency; BK-SDM (Kim et al. 2023, arXiv:2305.15798) for removing a block behind an identity shortcut, a pair of blocks
with their skip, or whole stages.
Differs: damage is what a removal adds to the squared error to the component's own output, MACs stand for latency unless
`per` says otherwise, and every remaining block is scored again after each removal, because two blocks that are each
harmless need not be harmless together. A patch, fitted in closed form, may stand in for each removed block.
With `per: milliseconds` the choice depends on the host and the moment: it is kept with the variant, and a run that
starts anew may choose otherwise.
Cost: (blocks + 1) * removals / 2 passes over the calibration inputs.

From Python: `propose` chooses, `print` shows, `carry_out` removes; `apply` is both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch

from compress.errors import UserError
from compress.nn import cost
from compress.nn.batches import outputs, spread, take
from compress.nn.qmodules import quantized
from compress.nn.structure import Block
from compress.prune._block_latency import saved_ms
from compress.prune._depth_bounds import candidates, ends, too_few
from compress.prune._depth_config import Config, check_patterns, is_kept, named
from compress.prune._network import (
    Network,
    Saved,
    cut,
    everything,
    measured,
    network_of,
    removal_of,
    rename,
    saved_by,
    units_of,
)
from compress.prune._patch_fit import fit_patches
from compress.prune._removals import UNITS, Proposal, Step
from compress.records import Achieved, Inputs, Needs, Prediction, Skipped, StageInput, StageResult

__all__ = ["NEEDS", "Config", "Proposal", "Step", "apply", "carry_out", "predict", "propose", "rename"]

NEEDS = Needs.STATISTICS


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Bounds on what the removals can end with; certain where the recipe names the blocks.

    Raises:
        UserError: too little can go, or a pattern matches nothing.
    """
    blocks = [b for arch in prediction.ends for b in everything(network_of(arch, {}).kind, arch)]
    check_patterns(blocks, config)
    found = [end for arch in prediction.ends for end in ends(arch, config)]
    return replace(prediction, ends=tuple(dict.fromkeys(found)))


def apply(stage: StageInput, config: Config) -> StageResult:
    """Choose what to remove, greedily, scoring all that remains before each removal; then remove it."""
    return carry_out(stage, propose(stage, config))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What stays the same during a search."""

    stage: StageInput
    config: Config
    inputs: Inputs  # that are scored on
    target: torch.Tensor  # what the component makes of them
    whole: cost.Cost
    wanted: tuple[str, ...]  # what the recipe names


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    step: Step
    network: Network  # without it


def propose(stage: StageInput, config: Config) -> Proposal:
    """What to remove, in which order, at which cost; nothing is removed.

    Raises:
        UserError: the variant is quantized, too little can go, or a pattern matches nothing.
    """
    if quantized(stage.variant.module):
        raise UserError("prune.depth: this variant is quantized already; prune before quantizing")
    network = network_of(stage.variant.arch, stage.variant.module.state_dict())
    blocks = everything(network.kind, network.arch)
    check_patterns(blocks, config)
    ends(network.arch, config)  # refuses what cannot be reached, before anything is measured
    inputs = tuple(_central_crop(x, config.latent_size) for x in spread(stage.inputs, config.samples))
    task = _Task(
        stage=stage,
        config=config,
        inputs=inputs,
        target=outputs(network.module(), inputs, config.samples),
        whole=measured(network.arch, config.pixels),
        wanted=tuple(block.name for block in named(blocks, config)),
    )
    steps: list[Step] = []
    known: dict[str, Step] = {}
    while found := _next(task, network, steps):
        best = _best(task, network, found, known, steps)
        network = best.network
        steps.append(best.step)
    return Proposal(config=config, steps=tuple(steps), left_alone=_left_alone(blocks, config))


def carry_out(stage: StageInput, proposal: Proposal) -> StageResult:
    """The variant without what the proposal names, its patches fitted on all calibration inputs.

    Raises:
        UserError: the proposal is another component's.
    """
    config, variant = proposal.config, stage.variant
    network = network_of(variant.arch, variant.module.state_dict())
    for number, step in enumerate(proposal.steps):
        stage.progress(number, len(proposal.steps), f"removing {step.name}")
        block = _called(network, step.name)
        removal = removal_of(network.arch, [block.name], config.stand_in)
        fits = fit_patches(network.module(), stage.inputs, removal.patches, config.ridge) if removal.patches else {}
        network = cut(network, block, removal, fits)
    return StageResult(
        arch=network.arch,
        module=network.module(),
        achieved=_achieved(stage, proposal, network),
        skipped=proposal.left_alone,
        notes=tuple(_note(step, config) for step in proposal.steps),
    )


def _next(task: _Task, network: Network, steps: Sequence[Step]) -> list[Block]:
    """What may go next; nothing where the budget is met."""
    config = task.config
    if config.remove is not None:
        return [_called(network, task.wanted[len(steps)])] if len(steps) < len(task.wanted) else []
    left = Saved(
        macs=task.whole.macs - sum(step.macs for step in steps),
        parameters=task.whole.parameters - sum(step.parameters for step in steps),
    )
    met = (
        len(steps) == config.blocks
        if config.blocks is not None
        else left.macs <= (config.to_macs_ratio or 1) * task.whole.macs
        and left.parameters <= (config.to_parameters_ratio or 1) * task.whole.parameters
    )
    if met:
        return []
    found = candidates(network, config)
    if not found:
        raise too_few(found, config) if config.blocks else UserError("prune.depth: nothing is left that may go")
    return found


def _called(network: Network, name: str) -> Block:
    """The block or unit that had this name in the beginning."""
    for block in chain(network.kind.blocks(network.arch.config), units_of(network.kind, network.arch)):
        if network.first_name(block.name) == name:
            if block.fixed:
                raise UserError(f"prune.depth: {name} cannot be removed after the others: {block.fixed}")
            return block
    raise UserError(f"prune.depth: this component has no block {name}, or has lost it to another removal")


def _best(
    task: _Task, network: Network, found: Sequence[Block], known: dict[str, Step], steps: Sequence[Step]
) -> _Scored:
    """The candidate with the least damage for what it saves; `known` holds what was measured in earlier rounds."""
    config = task.config
    if not config.rescore:
        found = _unknown_and_best(network, found, known)
    removals = [removal_of(network.arch, [block.name], config.stand_in) for block in found]
    sites = {site.block: site for removal in removals for site in removal.patches}
    module = network.module()
    fits = fit_patches(module, task.inputs, tuple(sites.values()), config.ridge) if sites else {}
    whole, scored = measured(network.arch, config.pixels), []
    for index, (block, removal) in enumerate(zip(found, removals, strict=True)):
        name = network.first_name(block.name)
        task.stage.progress(len(steps) * len(found) + index, (len(steps) + 1) * len(found), f"scoring {name}")
        without = cut(network, block, removal, fits)
        rest = without.module()
        milliseconds = known[name].milliseconds if name in known else None
        if config.per == "milliseconds" and milliseconds is None:
            one = take(task.inputs, 0, 1)
            with torch.no_grad():
                milliseconds = saved_ms(partial(module, *one), partial(rest, *one))
        sizes = saved_by(whole, block, removal)
        step = Step(
            name=name,
            blocks=block.count,
            macs=sizes.macs,
            parameters=sizes.parameters,
            milliseconds=milliseconds,
            damage=float((outputs(rest, task.inputs, config.samples) - task.target).square().mean()),
            score=math.inf,
        )
        step = replace(step, score=_score(step, steps[-1].damage if steps else 0.0, config))
        known.setdefault(name, step)
        scored.append(_Scored(step=step, network=without))
    return min(scored, key=lambda one: (one.step.score, -one.step.macs))


def _unknown_and_best(network: Network, found: Sequence[Block], known: dict[str, Step]) -> list[Block]:
    """What was never scored, and the best of what was."""
    names = [network.first_name(block.name) for block in found]
    best = min((name for name in names if name in known), key=lambda name: known[name].score, default=None)
    return [block for block, name in zip(found, names, strict=True) if name == best or name not in known]


def _score(step: Step, before: float, config: Config) -> float:
    """Damage added per what is saved; what saves nothing, or leaves no numbers, comes last."""
    sizes = {"macs": step.macs / 1e9, "parameters": step.parameters / 1e6, "milliseconds": step.milliseconds or 0.0}
    saved = sizes[config.per]
    return max(step.damage - before, 0.0) / saved if saved > 0 and math.isfinite(step.damage) else math.inf


def _left_alone(blocks: Sequence[Block], config: Config) -> tuple[Skipped, ...]:
    """What is fixed or kept, of all that the recipe looks at."""
    seen = [b for b in blocks if config.remove is not None or f"{b.unit}s" in config.units]
    reasons = {b.name: b.fixed or ("kept by the recipe" if is_kept((b.name, *b.takes), config) else None) for b in seen}
    return tuple(Skipped(name=name, reason=reason) for name, reason in reasons.items() if reason)


def _achieved(stage: StageInput, proposal: Proposal, network: Network) -> tuple[Achieved, ...]:
    """Blocks by counting those of both architectures; ratios by measuring both."""
    config, before = proposal.config, stage.variant.arch
    asked = sum(step.blocks for step in proposal.steps)
    removed = len(network.kind.blocks(before.config)) - len(network.kind.blocks(network.arch.config))
    rows = [Achieved(what="blocks removed", requested=asked, achieved=removed, unit="blocks", met=removed == asked)]
    whole, left = measured(before, config.pixels), measured(network.arch, config.pixels)
    for ratio, what, now, then in (
        (config.to_macs_ratio, "MACs left", left.macs, whole.macs),
        (config.to_parameters_ratio, "parameters left", left.parameters, whole.parameters),
    ):
        if ratio is not None:
            met = now <= ratio * then
            rows.append(Achieved(what=what, requested=ratio, achieved=round(now / then, 6), unit="share", met=met))
    return tuple(rows)


def _note(step: Step, config: Config) -> str:
    saved = "" if step.milliseconds is None else f", {step.milliseconds:.3f} ms saved on the host at hand"
    patch = "" if config.stand_in is None else f"; patch: {config.patch}"
    return f"removed {step.name}: squared error per {UNITS[config.per]} saved {step.score:.3g}{saved}{patch}"


def _central_crop(inputs: torch.Tensor, size: int) -> torch.Tensor:
    """The middle of pictures and latents; text and time steps whole."""
    if inputs.dim() != 4:
        return inputs
    top, left = (max(0, (side - size) // 2) for side in inputs.shape[-2:])
    return inputs[..., top : top + size, left : left + size]
