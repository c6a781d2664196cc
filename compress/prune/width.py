"""Width pruning: take out channels, together with everything that makes, scales or consumes them.

Source: structured pruning by dependency groups (DepGraph, Fang et al. 2023, arXiv:2301.12900); importance is the
magnitude of a channel's weights in all tensors of its group (Li et al. 2017, arXiv:1608.08710, per group).
Differs: groups come from the component's configuration; every GroupNorm group loses equally many channels, so group
sizes stay equal; widths are rounded to what kernels like; the network rebuilds from its configuration alone.
Cost: one pass over the weights.
"""

import math
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt

from compress.components import build, kind_of
from compress.errors import UserError
from compress.nn.structure import ChannelGroup, FixedChannels, take_channels
from compress.records import Achieved, Arch, Needs, Prediction, Skipped, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.NOTHING


class Config(Schema):
    """Which share of the channels to remove."""

    ratio: float = Field(gt=0, lt=1, description="Share of the channels to remove from each group.")
    round_to: PositiveInt = Field(8, description="Remaining widths are multiples of this.")
    groups: Literal["all", "inner", "stream"] = Field(
        "all", description="Cut residual streams, the insides of blocks, or both."
    )


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Exact for a known architecture: widths depend on the ratio alone."""

    def cut(arch: Arch) -> Arch:
        kind = kind_of(arch.kind)
        groups = kind.channel_groups(arch.config)
        return Arch(kind=arch.kind, config=kind.with_widths(arch.config, new_widths(groups, config)))

    return replace(prediction, ends=tuple(dict.fromkeys(cut(arch) for arch in prediction.ends)))


def apply(stage: StageInput, config: Config) -> StageResult:
    """Cut every group to its new width, keeping the channels with the largest weights."""
    arch, state = stage.variant.arch, stage.variant.module.state_dict()
    kind = kind_of(arch.kind)
    groups = kind.channel_groups(arch.config)
    widths = new_widths(groups, config)
    kept = {
        group.name: keep_evenly(importance(state, group), widths[group.name], group.norm_groups)
        for group in groups
        if group.name in widths
    }
    new_arch = Arch(kind=arch.kind, config=kind.with_widths(arch.config, widths))
    module = build(new_arch)
    module.load_state_dict(take_channels(state, groups, kept))
    fixed = (kind.fixed_channels or _none)(arch.config)
    achieved_widths = {f.name: f.width for f in (kind.fixed_channels or _none)(new_arch.config)}  # one channel is left
    achieved_widths |= {g.name: g.width for g in kind.channel_groups(new_arch.config)}
    cut = [g for g in groups if g.name in widths]
    before, after = sum(g.width for g in cut), sum(achieved_widths[g.name] for g in cut)
    asked = sum(g.width * config.ratio for g in cut)
    step = sum(_step(g, config) / 2 for g in cut)
    return StageResult(
        arch=new_arch,
        module=module.requires_grad_(False).eval(),
        achieved=(
            Achieved(
                what="channels removed",
                requested=round(asked),
                achieved=before - after,
                unit="channels",
                met=abs(before - after - asked) <= step and after < before,
            ),
        ),
        skipped=(
            *(
                Skipped(name=g.name, reason=_why_untouched(g, config))
                for g in groups
                if achieved_widths[g.name] == g.width
            ),
            *(Skipped(name=f.name, reason=f.reason) for f in fixed),
        ),
    )


def new_widths(groups: tuple[ChannelGroup, ...], config: Config) -> dict[str, int]:
    """Group name -> width after the cut, for the groups that this configuration touches.

    Raises:
        UserError: the ratio leaves a group without channels.
    """
    widths, problems = {}, []
    for group in groups:
        if config.groups not in ("all", group.kind):
            continue
        step = _step(group, config)
        width = math.floor(group.width * (1 - config.ratio) / step + 0.5) * step
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


def importance(state: dict[str, torch.Tensor], group: ChannelGroup) -> Float[torch.Tensor, " width"]:
    """Sum over the group's weight tensors of each channel's L2 norm, relative to the tensor's mean norm."""
    total = torch.zeros(group.width)
    for part in group.slices:
        tensor = state[part.tensor].float()
        if tensor.dim() < 2 and part.role != "norm":
            continue  # biases say nothing about a channel's size
        channels = tensor.narrow(part.axis, part.offset, group.width * part.span)
        norms = channels.movedim(part.axis, 0).reshape(group.width, -1).norm(dim=1)
        total += norms / norms.mean().clamp_min(torch.finfo(torch.float32).tiny)
    return total


def keep_evenly(scores: Float[torch.Tensor, " width"], keep: int, norm_groups: int) -> Int[torch.Tensor, " keep"]:
    """Sorted indices of the best channels, equally many from each of `norm_groups` runs of neighbours."""
    rows = scores.reshape(norm_groups, -1)
    best = rows.topk(keep // norm_groups, dim=1).indices.sort(dim=1).values
    return (best + torch.arange(norm_groups)[:, None] * rows.shape[1]).reshape(-1)


def _none(config: object) -> tuple[FixedChannels, ...]:
    return ()


def _why_untouched(group: ChannelGroup, config: Config) -> str:
    if config.groups not in ("all", group.kind):
        return f"groups: {config.groups} leaves {group.kind} channels alone"
    return f"{group.width} channels, in steps of {_step(group, config)}: nothing to remove"
