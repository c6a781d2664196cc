"""Exact widths, even norms, and a cut network that equals the whole one with the removed channels masked out."""

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.components import build, vae
from compress.errors import UserError
from compress.nn.structure import take_channels
from compress.prune import width
from compress.records import Arch, Prediction

GROUPS = {group.name: group for group in vae.channel_groups(tiny.DECODER)}


def cut(tmp_path, variant=None, **config):
    """As cut: nothing is solved anew, so that what stays is what was there."""
    return width.apply(tiny.stage_input(tmp_path, variant), width.Config(**{"reconstruct": False, **config}))


def widths_of(config):
    return {group.name: group.width for group in vae.channel_groups(config)}


class MaskedNorm(nn.Module):
    """GroupNorm over the kept channels of each group alone, in double precision; the others come out as 0."""

    def __init__(self, norm, mask):
        super().__init__()
        self.norm, self.mask = norm, mask.double()

    def forward(self, x):
        groups = self.norm.num_groups
        mask = self.mask.reshape(1, groups, -1, 1)
        rows = x.reshape(x.shape[0], groups, self.mask.numel() // groups, -1)
        count = mask.sum(dim=2, keepdim=True) * rows.shape[3]
        mean = (rows * mask).sum(dim=(2, 3), keepdim=True) / count
        variance = ((rows - mean).square() * mask).sum(dim=(2, 3), keepdim=True) / count
        normed = ((rows - mean) / (variance + self.norm.eps).sqrt()).reshape(x.shape)
        out = normed * self.norm.weight.reshape(1, -1, 1, 1) + self.norm.bias.reshape(1, -1, 1, 1)
        return out * self.mask.reshape(1, -1, 1, 1)


def masked(module, kept):
    """The whole network, in which nobody sees the removed channels."""
    module = module.double()

    def mask(group):
        found = torch.zeros(GROUPS[group].width)
        found[kept[group]] = 1
        return found

    for i, level in enumerate(module.levels):
        for j, block in enumerate(level.resnets):
            block.norm1 = MaskedNorm(block.norm1, mask(f"levels.{i}.stream"))
            block.norm2 = MaskedNorm(block.norm2, mask(f"levels.{i}.resnets.{j}.hidden"))
        if not isinstance(level.step, nn.Identity):
            hide = mask(f"levels.{i}.stream").reshape(1, -1, 1, 1)
            level.step.register_forward_pre_hook(lambda part, args, hide=hide: args[0] * hide)
    module.norm_out = MaskedNorm(module.norm_out, mask("levels.3.stream"))
    return module


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cutting_equals_masking(seed):
    """Any even choice of channels, in every group at once."""
    generator = torch.Generator().manual_seed(seed)
    kept = {
        name: width.keep_evenly(torch.rand(group.width, generator=generator), group.width // 2, group.norm_groups)
        for name, group in GROUPS.items()
    }
    config = vae.with_widths(tiny.DECODER, {name: len(indices) for name, indices in kept.items()})
    small = build(Arch(kind="vae.decoder", config=config)).double()
    small.load_state_dict(take_channels(tiny.decoder().module.double().state_dict(), tuple(GROUPS.values()), kept))
    x = tiny.latents().double()
    torch.testing.assert_close(small(x), masked(tiny.decoder().module, kept)(x))


def test_the_method_cuts_what_it_scored_lowest(tmp_path):
    variant = tiny.decoder()
    result = cut(tmp_path, variant, ratio=0.5, round_to=4)
    state = variant.module.state_dict()
    kept = {
        name: width.keep_evenly(width.magnitude(state, group), group.width // 2, group.norm_groups)
        for name, group in GROUPS.items()
    }
    x = tiny.latents()
    torch.testing.assert_close(
        result.module(x).double(), masked(tiny.decoder().module, kept)(x.double()), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    "ratio, round_to, expected",
    [
        (0.5, 4, {16: 8, 8: 4}),
        (0.25, 4, {16: 12, 8: 8}),  # 6 is halfway between 4 and 8: up
        (0.3, 8, {16: 8, 8: 8}),
        (0.1, 3, {16: 12, 8: 8}),  # steps of lcm(3, 4) = 12, which is more than 8 has
        (0.7, 1, {16: 4, 8: 4}),
    ],
)
def test_widths_are_exact(tmp_path, ratio, round_to, expected):
    result = cut(tmp_path, ratio=ratio, round_to=round_to)
    assert widths_of(result.arch.config) == {name: expected[group.width] for name, group in GROUPS.items()}


@pytest.mark.parametrize("kind", ["inner", "stream"])
def test_only_the_groups_asked_for(tmp_path, kind):
    result = cut(tmp_path, ratio=0.5, round_to=4, groups=kind)
    for name, group in GROUPS.items():
        assert widths_of(result.arch.config)[name] == (group.width // 2 if group.kind == kind else group.width)
    assert {s.name for s in result.skipped} == {n for n, g in GROUPS.items() if g.kind != kind}
    assert all(f"groups: {kind} leaves" in s.reason for s in result.skipped)


def test_says_what_was_asked_and_done(tmp_path):
    (achieved,) = cut(tmp_path, ratio=0.5, round_to=4).achieved
    total = sum(group.width for group in GROUPS.values())
    assert (achieved.requested, achieved.achieved, achieved.met) == (total // 2, total // 2, True)
    nothing = cut(tmp_path, ratio=0.05, round_to=8)
    assert nothing.achieved[0].achieved == 0 and not nothing.achieved[0].met
    assert len(nothing.skipped) == len(GROUPS) and "nothing to remove" in nothing.skipped[0].reason


@given(
    norm_groups=st.sampled_from([1, 2, 4, 8]),
    per_group=st.integers(1, 6),
    share=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_norm_group_keeps_its_best_channels_equally_many(norm_groups, per_group, share, seed):
    keep = min(share, per_group)
    scores = torch.rand(norm_groups * per_group, generator=torch.Generator().manual_seed(seed))
    kept = width.keep_evenly(scores, keep * norm_groups, norm_groups).tolist()
    assert kept == sorted(set(kept)) and len(kept) == keep * norm_groups
    for group in range(norm_groups):
        members = range(group * per_group, (group + 1) * per_group)
        best = sorted(members, key=lambda channel: -scores[channel])[:keep]
        assert sorted(best) == [channel for channel in kept if channel in members]


@pytest.mark.parametrize("name", GROUPS)
def test_channels_of_no_weight_go_first(tmp_path, name):
    group, variant = GROUPS[name], tiny.decoder()
    dead = torch.arange(0, group.width, group.width // 4)  # one in each norm group
    state = variant.module.state_dict()
    for part in group.slices:
        state[part.tensor].index_fill_(part.axis, dead, 0.0)
    # round_to 4 and one channel of each norm group: a quarter of a group of 16, half of a group of 8
    ratio = 4 / group.width
    result = cut(tmp_path, variant, ratio=ratio, round_to=4)
    alive = [channel for channel in range(group.width) if channel not in dead.tolist()]
    after = result.module.state_dict()
    for part in group.slices:
        if state[part.tensor].dim() == 1:  # of no other group
            assert torch.equal(after[part.tensor], state[part.tensor][alive])


def test_importance_is_the_sum_of_relative_norms():
    group = GROUPS["levels.0.resnets.0.hidden"]
    state = tiny.decoder().module.state_dict()
    block = "levels.0.resnets.0"
    expected = []
    for tensor in (
        state[f"{block}.conv1.weight"],
        state[f"{block}.norm2.weight"].reshape(-1, 1),
        state[f"{block}.norm2.bias"].reshape(-1, 1),
        state[f"{block}.conv2.weight"].transpose(0, 1),
    ):
        norms = [float(row.double().square().sum().sqrt()) for row in tensor]
        expected.append([n / (sum(norms) / len(norms)) for n in norms])
    got = width.magnitude(state, group)
    assert got.tolist() == pytest.approx([sum(column) for column in zip(*expected, strict=True)], rel=1e-5)


@pytest.mark.parametrize("ratio, round_to", [(0.9, 8), (0.99, 1), (0.5, 64)])
def test_a_ratio_that_leaves_nothing(tmp_path, ratio, round_to):
    config = width.Config(ratio=ratio, round_to=round_to, reconstruct=False)
    arch = tiny.decoder().arch
    for attempt in (
        lambda: width.predict(Prediction(ends=(arch,)), config),
        lambda: width.apply(tiny.stage_input(tmp_path), config),
    ):
        with pytest.raises(UserError, match=f"ratio {ratio} with round_to {round_to} leaves no channel in .*levels.3"):
            attempt()


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_ratio_that_is_none(ratio):
    with pytest.raises(ValueError, match="ratio"):
        width.Config(ratio=ratio)


def test_rebuilds_from_its_configuration_alone_and_was_predicted_exactly(tmp_path):
    result = cut(tmp_path, ratio=0.4, round_to=4)
    back = build(result.arch)
    back.load_state_dict(result.module.state_dict())
    assert torch.equal(back(tiny.latents()), result.module(tiny.latents()))
    arch = tiny.decoder().arch
    predicted = width.predict(Prediction(ends=(arch,)), width.Config(ratio=0.4, round_to=4))
    assert predicted.ends == (result.arch,)


def test_a_level_that_lost_all_its_blocks_can_still_be_cut(tmp_path):
    """Its stream is normalised by nobody, so its new width need not be a multiple of the norm groups."""
    config = replace(tiny.DECODER, levels=tiny.levels(tiny.WIDTHS, ((), (16,), (8,), (8,))))
    result = cut(tmp_path, tiny.decoder(config=config), ratio=0.4, round_to=2)
    assert result.arch.config.levels[0].width == 10
    assert result.module(tiny.latents()).isfinite().all()


def test_an_encoder_can_be_cut_too(tmp_path):
    result = cut(tmp_path, tiny.encoder(), ratio=0.5, round_to=4)
    assert [level.width for level in result.arch.config.levels] == [4, 4, 8, 8]
    assert result.module(torch.rand(1, 3, 32, 32)).shape == (1, 8, 4, 4)
