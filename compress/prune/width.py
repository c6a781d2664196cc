"""Width pruning: take out channels, together with everything that makes, scales or consumes them.

Source: structured pruning by dependency groups (DepGraph, Fang et al. 2023, arXiv:2301.12900); what is left is solved
anew against the whole network's activations (He et al. 2017, arXiv:1707.06168). Importance, budget and solving have
their sources in `_importance`, `_budget` and `_reconstruct`.
Differs: groups come from the component's configuration; every GroupNorm group loses equally many channels, so group
sizes stay equal; widths are rounded to what kernels like; the network rebuilds from its configuration alone.
Cost: with `reconstruct`, for each layer that reads cut channels one pass of the calibration inputs up to it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt, model_validator

from compress.components import build, kind_of
from compress.errors import UserError
from compress.nn.batches import split, spread, take
from compress.nn.qmodules import quantized
from compress.nn.structure import ChannelGroup, FixedChannels, take_channels
from compress.prune import _budget, _importance
from compress.prune._cuts import GroupCut, Proposal
from compress.prune._importance import Watched, keep_evenly, magnitude
from compress.prune._reconstruct import Pair, Sampling, kept_outputs, readers, reconstruct
from compress.records import Achieved, Arch, Inputs, Needs, Prediction, Skipped, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.STATISTICS
Share = Annotated[float, Field(ge=0, lt=1)]


class Config(Schema):
    """How much to remove of what, and how channels are chosen."""

    ratio: float = Field(gt=0, lt=1, description="Share to remove: of each group's channels, or of what `of` says.")
    of: Literal["channels", "macs", "parameters", "latency"] = Field(
        "channels", description="What the ratio is of: each group's channels, or the whole network's cost."
    )
    ratios: dict[str, Share] = Field({}, description="Other ratios: group name (* and ?) -> ratio; the first match.")
    keep: tuple[str, ...] = Field((), description="Groups never to cut: names with * and ? wildcards.")
    round_to: PositiveInt = Field(8, description="Remaining widths are multiples of this.")
    groups: Literal["all", "inner", "stream"] = Field(
        "all", description="Cut residual streams, the insides of blocks, or both."
    )
    importance: Literal["magnitude", "activation", "taylor", "reconstruction"] = Field(
        "magnitude", description="What a channel is worth: see the methods of the same names."
    )
    spread: Literal["compete", "uniform"] = Field(
        "compete", description="With a cost: groups compete by importance per MAC, or all lose the same share."
    )
    most: float = Field(0.75, gt=0, lt=1, description="With a cost: the largest share that a group may lose.")
    reconstruct: bool = Field(True, description="Solve the layers that read cut channels anew, by least squares.")
    samples: PositiveInt = Field(16, description="Calibration inputs to measure and to solve on.")
    pixels: int = Field(256, ge=8, multiple_of=8, description="Side of their central crops, in image pixels.")
    positions: PositiveInt = Field(32768, description="Pixels or tokens of each layer's output, over all inputs.")

    @model_validator(mode="after")
    def _ratios_fit(self) -> "Config":
        if self.ratios and self.of != "channels":
            raise ValueError(f"ratios are shares of channels; with of: {self.of} the budget decides (keep protects)")
        return self


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Exact where widths depend on shares alone; where channels compete or time is measured, the widest bounds.

    Raises:
        UserError: nothing would be left, the budget cannot be met, or a pattern matches no group.
    """
    _check_patterns([kind_of(a.kind).channel_groups(a.config) for a in prediction.ends], config)
    ends = [end for arch in prediction.ends for end in _ends(arch, config)]
    return replace(prediction, ends=tuple(dict.fromkeys(ends)))


def apply(stage: StageInput, config: Config) -> StageResult:
    """Cut every group to its new width, keep the channels that matter most, and solve what reads them anew."""
    return carry_out(stage, propose(stage, config))


def propose(stage: StageInput, config: Config) -> Proposal:
    """Decide what goes, and change nothing: look at it with `str()`, change it with `adjusted`, do it with `carry_out`.

    Raises:
        UserError: nothing would be left, the budget cannot be met, a pattern matches no group, weights are integers.
    """
    arch = stage.variant.arch
    groups = kind_of(arch.kind).channel_groups(arch.config)
    _check_patterns([groups], config)
    if quantized(stage.variant.module):
        raise UserError("prune.width cuts float weights; put it before the quantize stage")
    open_groups = [g for g in groups if _closed(g, config) is None]
    scores = _scores(stage, open_groups, config)
    if config.of == "channels":
        widths, latency = new_widths(groups, config), None
    else:
        widths, latency = _within_budget(stage, open_groups, config, scores)
    bare = Proposal(config=config, before=arch, after=arch, groups=(), scores=scores, macs=(0, 0), parameters=(0, 0))
    return _filled(bare, widths, latency)


def adjusted(proposal: Proposal, widths: Mapping[str, int]) -> Proposal:
    """The proposal with other widths for some groups.

    Raises:
        UserError: a name is not a group that may be cut, or a width does not fit its norm groups.
    """
    groups = {g.name: g for g in kind_of(proposal.before.kind).channel_groups(proposal.before.config)}
    problems = [f"'{name}' is not a group that may be cut here" for name in widths if name not in proposal.scores]
    problems += [
        f"{name}: {w} is not between 1 and {groups[name].width}, a multiple of {groups[name].norm_groups}"
        for name, w in widths.items()
        if name in proposal.scores and (not 1 <= w <= groups[name].width or w % groups[name].norm_groups)
    ]
    if problems:
        raise UserError(f"prune.width: {'; '.join(problems)}")
    return _filled(proposal, {**proposal.widths, **widths}, None)


def carry_out(stage: StageInput, proposal: Proposal) -> StageResult:
    """Do what was proposed for this very variant.

    Raises:
        UserError: the proposal is for another architecture.
    """
    arch, config = stage.variant.arch, proposal.config
    if arch != proposal.before:
        raise UserError("prune.width: the proposal was made for another architecture; propose again for this variant")
    state, groups = stage.variant.module.state_dict(), kind_of(arch.kind).channel_groups(arch.config)
    kept = {
        g.name: keep_evenly(proposal.scores[g.name], proposal.widths[g.name], g.norm_groups)
        for g in groups
        if g.name in proposal.scores
    }
    module = build(proposal.after)
    module.load_state_dict(take_channels(state, groups, kept))
    module = module.requires_grad_(False).eval()
    skipped = [Skipped(name=g.name, reason=g.untouched) for g in proposal.groups if g.untouched]
    skipped += [Skipped(name=f.name, reason=f.reason) for f in _fixed(arch)]
    notes: list[str] = []
    if config.reconstruct:
        cut = [g.name for g in proposal.groups if g.after < g.before]
        names, unsolved = readers(stage.variant.module, groups, cut)
        skipped += [Skipped(name=name, reason=reason) for name, reason in unsolved.items()]
        if names:
            pair = Pair(
                whole=stage.variant.module,
                cut=module,
                outputs=kept_outputs(state, groups, kept),
                inputs=_inputs(stage, config),
            )
            notes.append(_solve_anew(pair, names, stage, config))
    return StageResult(
        arch=proposal.after,
        module=module,
        achieved=_achieved(proposal, groups),
        skipped=tuple(skipped),
        notes=tuple(notes),
    )


def new_widths(groups: Sequence[ChannelGroup], config: Config) -> dict[str, int]:
    """Group name -> width after a cut by shares of channels, for the groups that this configuration touches.

    Raises:
        UserError: the ratio leaves a group without channels.
    """
    widths, problems = {}, []
    for group in groups:
        if _closed(group, config):
            continue
        step, ratio = _step(group, config), _ratio(group, config)
        width = math.floor(group.width * (1 - ratio) / step + 0.5) * step
        if width < 1:
            problems.append(f"{group.name} ({group.width} channels)")
        widths[group.name] = min(width, group.width)
    if problems:
        raise UserError(
            f"prune.width: ratio {config.ratio} with round_to {config.round_to} leaves no channel in "
            f"{', '.join(problems)}; lower one of the two"
        )
    return widths


def _step(group: ChannelGroup, config: Config) -> int:
    """Widths are multiples of this: what kernels like (a unit may be several channels wide), and whole norm groups."""
    return math.lcm(math.lcm(config.round_to, group.unit) // group.unit, group.norm_groups)


def _ratio(group: ChannelGroup, config: Config) -> float:
    return next((r for pattern, r in config.ratios.items() if fnmatchcase(group.name, pattern)), config.ratio)


def _fixed(arch: Arch) -> tuple[FixedChannels, ...]:
    """Channels that nothing can cut, where groups are traced."""
    kind = kind_of(arch.kind)
    return kind.fixed_channels(arch.config) if kind.fixed_channels else ()


def _closed(group: ChannelGroup, config: Config) -> str | None:
    """Why this configuration does not touch a group at all."""
    if config.groups not in ("all", group.kind):
        return f"groups: {config.groups} leaves {group.kind} channels alone"
    if any(fnmatchcase(group.name, pattern) for pattern in config.keep) or _ratio(group, config) == 0:
        return "kept by the recipe"
    return None


def _check_patterns(all_groups: Sequence[Sequence[ChannelGroup]], config: Config) -> None:
    """Refuse a pattern that matches nothing: it would do nothing without a word."""
    names = list(dict.fromkeys(g.name for groups in all_groups for g in groups))
    for key, patterns in (("keep", config.keep), ("ratios", tuple(config.ratios))):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError(f"prune.width: {key}: '{pattern}' matches no group; groups are {', '.join(names)}")


def _ends(arch: Arch, config: Config) -> list[Arch]:
    kind = kind_of(arch.kind)
    groups = kind.channel_groups(arch.config)

    def cut(widths: Mapping[str, int]) -> Arch:
        return Arch(kind=arch.kind, config=kind.with_widths(arch.config, widths))

    if config.of == "channels":
        return [cut(new_widths(groups, config))]
    open_groups = [g for g in groups if _closed(g, config) is None]
    steps = _budget.evenly(open_groups, _ladders(open_groups, config))
    if config.of == "latency":
        return [arch, cut(_budget.after(steps))]
    widths = _met(steps, arch, config)
    return [cut(widths)] if config.spread == "uniform" else [arch, cut(_budget.after(steps))]


def _ladders(groups: Sequence[ChannelGroup], config: Config) -> dict[str, tuple[int, ...]]:
    return {g.name: _budget.ladder(g, _step(g, config), config.most) for g in groups}


def _met(steps: Sequence[_budget.Step], arch: Arch, config: Config) -> dict[str, int]:
    """The widths after the fewest steps that leave no more than the budget of MACs or parameters."""
    figure = config.of
    whole = getattr(_budget.counted(arch, {}), figure)
    allowed = (1 - config.ratio) * whole
    widths = _budget.shortest(steps, lambda w: getattr(_budget.counted(arch, w), figure) <= allowed)
    if widths is None:
        least = getattr(_budget.counted(arch, _budget.after(steps)), figure) / whole
        raise UserError(
            f"prune.width: ratio {config.ratio} of {figure} cannot be removed: with most: {config.most} and round_to: "
            f"{config.round_to}, {least:.1%} are left at least; raise most, or lower ratio"
        )
    return widths


def _within_budget(
    stage: StageInput, groups: Sequence[ChannelGroup], config: Config, scores: Mapping[str, torch.Tensor]
) -> tuple[dict[str, int], tuple[float, float, float] | None]:
    """The widths that meet a budget, and the latency that was measured for it."""
    arch, ladders = stage.variant.arch, _ladders(groups, config)
    if config.spread == "uniform":
        steps = _budget.evenly(groups, ladders)
    else:
        figure = "parameters" if config.of == "parameters" else "macs"
        steps = _budget.by_importance(groups, ladders, scores, _budget.prices(arch, groups, ladders, figure))
    if config.of == "latency":
        example = take(stage.inputs, 0, 1)
        return _budget.fast_enough(stage.variant, steps, example, 1 - config.ratio)
    return _met(steps, arch, config), None


def _filled(proposal: Proposal, widths: Mapping[str, int], latency: tuple[float, float, float] | None) -> Proposal:
    """The proposal with these widths, and what follows from them."""
    arch, config = proposal.before, proposal.config
    kind = kind_of(arch.kind)
    groups = kind.channel_groups(arch.config)
    after = Arch(kind=arch.kind, config=kind.with_widths(arch.config, widths))
    whole, rest = _budget.counted(arch, {}), _budget.counted(after, {})
    achieved = {f.name: f.width for f in _fixed(after)}  # a traced group of one channel is fixed
    achieved |= {g.name: g.width for g in kind.channel_groups(after.config)}
    return replace(
        proposal,
        after=after,
        groups=tuple(_group_cut(g, achieved[g.name], proposal.scores.get(g.name), config) for g in groups),
        macs=(whole.macs, rest.macs),
        parameters=(whole.parameters, rest.parameters),
        latency=latency,
    )


def _group_cut(group: ChannelGroup, after: int, scores: torch.Tensor | None, config: Config) -> GroupCut:
    untouched, lost = _closed(group, config), 0.0
    if after == group.width and untouched is None:
        untouched = f"{group.width} channels, in steps of {_step(group, config)}: nothing to remove"
    if scores is not None and after < group.width:
        total = float(scores.double().sum())
        stays = float(scores[keep_evenly(scores, after, group.norm_groups)].double().sum())
        lost = 1 - stays / total if total else 0.0
    return GroupCut(name=group.name, kind=group.kind, before=group.width, after=after, lost=lost, untouched=untouched)


def _achieved(proposal: Proposal, groups: Sequence[ChannelGroup]) -> tuple[Achieved, ...]:
    config, open_groups = proposal.config, [g for g in groups if g.name in proposal.scores]
    if config.of == "channels":
        asked = sum(g.width * _ratio(g, config) for g in open_groups)
        gone = sum(g.before - g.after for g in proposal.groups)
        step = sum(_step(g, config) / 2 for g in open_groups)
        met = abs(gone - asked) <= step and gone > 0
        what = Achieved(what="channels removed", requested=round(asked), achieved=gone, unit="channels", met=met)
        return (what,)
    if config.of == "latency":
        ratio, low, _ = proposal.latency or (float("nan"),) * 3  # not measured again after `adjusted`
        share, met = 1 - ratio, low <= 1 - config.ratio
    else:
        before, after = getattr(proposal, config.of)
        share, met = 1 - after / before, after <= (1 - config.ratio) * before
    unit = f"of all {config.of}"
    return (Achieved(what=f"{config.of} removed", requested=config.ratio, achieved=share, unit=unit, met=met),)


def _inputs(stage: StageInput, config: Config) -> Inputs:
    """Calibration inputs, pictures and latents cropped to their middle."""
    side = kind_of(stage.variant.arch.kind).input_shape(stage.variant.arch.config, config.pixels)[-1]
    return tuple(_central_crop(x, side) for x in spread(stage.inputs, config.samples))


def _central_crop(x: torch.Tensor, size: int) -> torch.Tensor:
    if x.dim() != 4:
        return x
    top, left = (max(0, (side - size) // 2) for side in x.shape[-2:])
    return x[..., top : top + size, left : left + size].contiguous()


def _scores(stage: StageInput, groups: Sequence[ChannelGroup], config: Config) -> dict[str, torch.Tensor]:
    """Importance of every channel that may be cut."""
    module = stage.variant.module
    if config.importance == "magnitude":
        return {g.name: magnitude(module.state_dict(), g) for g in groups}
    watched = Watched(
        module=module,
        batches=list(split(_inputs(stage, config), 1)),
        positions=config.positions,
        seed=stage.seed,
        progress=stage.progress,
    )
    if config.importance == "activation":
        return _importance.activation(watched, groups)
    if config.importance == "taylor":
        return _importance.taylor(watched, groups)
    return _importance.reconstruction(watched, groups, compensated=config.reconstruct)


def _solve_anew(pair: Pair, names: Sequence[str], stage: StageInput, config: Config) -> str:
    """Solve the cut network's readers anew, unless its output is no nearer for it; says what was gained."""
    before = _squared_error(pair)
    as_cut = {name: tensor.clone() for name, tensor in pair.cut.state_dict().items()}
    reconstruct(pair, names, Sampling(positions=config.positions, seed=stage.seed), stage.progress)
    after = _squared_error(pair)
    text = f"mean squared error of the output on the calibration inputs: {before:.3g} as cut, {after:.3g} after"
    if after < before:
        return f"{text} solving {len(names)} layers anew"
    pair.cut.load_state_dict(as_cut)
    return f"{text} solving {len(names)} layers anew: left as cut"


def _squared_error(pair: Pair) -> float:
    """Mean squared difference of the two networks' outputs."""
    with torch.no_grad():
        errors = [(pair.whole(*b) - pair.cut(*b)).double().square().mean() for b in split(pair.inputs, 1)]
    return float(torch.stack(errors).mean())
