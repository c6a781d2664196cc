"""Which blocks go: budgets, scoring again, milliseconds, and what a proposal can be made into."""

from dataclasses import replace
from functools import cache, partial
from itertools import combinations
from types import SimpleNamespace

import pytest
import tiny
import torch
from pydantic import ValidationError

from compress.components import build, vae
from compress.errors import UserError
from compress.prune import depth
from compress.prune._block_latency import ROUNDS, saved_ms
from compress.prune._network import measured
from compress.quantize import rtn
from compress.records import Arch, Prediction

BLOCKS = [block.name for block in vae.blocks(tiny.DECODER)]
ARCH = tiny.decoder().arch
WHOLE = measured(ARCH, 64)
QUICK = {"samples": 1, "latent_size": 4, "pixels": 64}


@cache
def alone(name, patch):
    """What one block saves; blocks of this decoder save the same in any company."""
    change = partial(vae.with_patches, patch=patch) if patch else vae.without_blocks
    rest = measured(Arch(kind="vae.decoder", config=change(tiny.DECODER, [name]).config), 64)
    whole = WHOLE
    return whole.macs - rest.macs, whole.parameters - rest.parameters


def cost_of(names, patch):
    whole, saved = WHOLE, [alone(name, patch) for name in names]
    macs, parameters = (sum(one[i] for one in saved) for i in (0, 1))
    return SimpleNamespace(macs=whole.macs - macs, parameters=whole.parameters - parameters)


# ------------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    "given", [{}, {"blocks": 1, "to_macs_ratio": 0.5}, {"remove": ("*",), "to_parameters_ratio": 0.5}]
)
def test_exactly_one_budget(given):
    with pytest.raises(ValidationError, match="give exactly one of blocks, to_macs_ratio, to_parameters_ratio, remove"):
        depth.Config(**given)


@pytest.mark.parametrize("patch", ["none", "pointwise"])
@pytest.mark.parametrize("key, figure", [("to_macs_ratio", "macs"), ("to_parameters_ratio", "parameters")])
def test_a_ratio_is_reached_with_no_block_too_many_and_was_bounded(key, figure, patch, tmp_path):
    config = depth.Config(**{key: 0.7}, patch=patch, **QUICK)
    result = depth.apply(tiny.stage_input(tmp_path), config)
    steps = depth.propose(tiny.stage_input(tmp_path), config).steps
    whole, left = (getattr(measured(arch, 64), figure) for arch in (ARCH, result.arch))
    assert left <= 0.7 * whole < left + getattr(steps[-1], figure)
    row = result.achieved[1]
    assert row.met and row.requested == 0.7 and row.achieved == pytest.approx(left / whole, abs=1e-6)
    # every set of blocks that a search could stop with
    ends = [measured(end, 64) for end in depth.predict(Prediction(ends=(ARCH,)), config).ends]
    stand_in = None if patch == "none" else patch
    costs = {names: cost_of(names, stand_in) for n in range(len(BLOCKS) + 1) for names in combinations(BLOCKS, n)}
    for names, smaller in costs.items():
        before = [costs[tuple(n for n in names if n != last)] for last in names]
        if getattr(smaller, figure) <= 0.7 * whole < max((getattr(b, figure) for b in before), default=0):
            for bound in ("macs", "parameters"):
                values = [getattr(end, bound) for end in ends]
                assert min(values) <= getattr(smaller, bound) <= max(values)


def test_a_ratio_out_of_reach_is_refused_before_anything_runs():
    with pytest.raises(
        UserError, match=r"to_macs_ratio: 0\.01 asked for, but 0\.\d+ is left even without all that may go"
    ):
        depth.predict(Prediction(ends=(ARCH,)), depth.Config(to_macs_ratio=0.01))


def test_exactly_the_named_blocks_go(tmp_path):
    config = depth.Config(remove=("levels.0.*", "levels.2.resnets.0"), **QUICK)
    result = depth.apply(tiny.stage_input(tmp_path), config)
    assert [level.hidden for level in result.arch.config.levels] == [(), (16,), (8,), (8,)]
    assert depth.predict(Prediction(ends=(ARCH,)), config).ends == (result.arch,)
    kept = tiny.decoder().module.levels[2].resnets[1].conv1.weight
    assert torch.equal(result.module.levels[2].resnets[0].conv1.weight, kept)


@pytest.mark.parametrize("key", ["keep", "remove"])
def test_a_pattern_that_matches_nothing_is_an_error(key, tmp_path):
    config = depth.Config(**({"blocks": 1} if key == "keep" else {}), **{key: ("levels.9.*",)})
    for call in (
        lambda: depth.predict(Prediction(ends=(ARCH,)), config),
        lambda: depth.propose(tiny.stage_input(tmp_path), config),
    ):
        with pytest.raises(
            UserError, match=f"prune.depth: {key}: 'levels.9.\\*' matches no block; blocks are levels.0"
        ):
            call()


def test_a_step_between_resolutions_cannot_be_named():
    with pytest.raises(UserError, match="remove: levels.1 cannot be removed: its step takes the stream"):
        depth.predict(Prediction(ends=(ARCH,)), depth.Config(remove=("levels.1",)))


# --------------------------------------------------------------------------------------------------------------- scores


def shifting(shifts):
    """A decoder whose last level has blocks that add a constant each, to one channel of every norm group."""
    config = replace(
        tiny.DECODER, levels=(*tiny.DECODER.levels[:3], vae.Level(width=8, hidden=(8,) * len(shifts), step=None))
    )
    variant = tiny.decoder(config=config)
    for block, shift in zip(variant.module.levels[3].resnets, shifts, strict=True):
        block.conv2.weight.zero_()
        block.conv2.bias.copy_(torch.tensor([shift, 0.0] * 4))
    return variant


def test_scoring_again_beats_scoring_once(tmp_path):
    """Alone, +0.20 and +0.22 hurt least; but after the one, -0.24 makes good what the other would make worse."""
    given = tiny.stage_input(tmp_path, shifting((0.20, 0.22, -0.24)))
    found = {}
    for rescore in (True, False):
        config = depth.Config(blocks=2, keep=("levels.[0-2].*",), rescore=rescore, **QUICK)
        found[rescore] = depth.propose(given, config).steps
    assert [step.name for step in found[False]] == ["levels.3.resnets.0", "levels.3.resnets.1"]
    assert [step.name for step in found[True]] == ["levels.3.resnets.0", "levels.3.resnets.2"]
    assert found[True][1].damage < found[False][1].damage / 10


def test_per_parameters_weighs_parameters(tmp_path):
    given = tiny.stage_input(tmp_path)
    (step,) = depth.propose(given, depth.Config(blocks=1, per="parameters", **QUICK)).steps
    inputs = tiny.latents()[:1, :, 2:6, 2:6]
    target, ratios = given.variant.module(inputs), {}
    for name in BLOCKS:
        removal = vae.without_blocks(tiny.DECODER, [name])
        small = build(Arch(kind="vae.decoder", config=removal.config)).requires_grad_(False)
        small.load_state_dict(depth.rename(given.variant.module.state_dict(), removal, name))
        gone = sum(p.numel() for p in given.variant.module.get_submodule(name).parameters())
        ratios[name] = float((small(inputs) - target).square().mean()) / gone
    assert step.name == min(ratios, key=ratios.get)


def test_saved_milliseconds_are_a_difference_of_medians_taken_in_turns():
    ticks, order = [0.0], []

    def work(name, seconds):
        def run():
            order.append(name)
            ticks[0] += seconds + (5.0 if len(order) == 9 else 0.0)  # one hiccup

        return run

    saved = saved_ms(work("whole", 0.004), work("rest", 0.001), clock=lambda: ticks[0])
    assert saved == pytest.approx(3.0)
    assert len(order) == 2 * (ROUNDS + 1) and order[2:6] == ["whole", "rest", "rest", "whole"]


def test_per_milliseconds_the_choice_and_the_figures_are_on_record(tmp_path, monkeypatch):
    given, asked = tiny.stage_input(tmp_path), []

    def fake(whole, rest):
        asked.append((whole().shape, rest().shape))
        return 100.0 if len(asked) == 4 else 1e-3

    monkeypatch.setattr(depth, "saved_ms", fake)
    config = depth.Config(blocks=2, per="milliseconds", **QUICK)
    result = depth.apply(given, config)
    assert len(asked) == len(BLOCKS)  # once per block, though scored twice
    assert result.notes[0].startswith(f"removed {BLOCKS[3]}: squared error per ms saved")
    assert "100.000 ms saved on the host at hand" in result.notes[0]


def test_what_saves_nothing_comes_last(tmp_path, monkeypatch):
    monkeypatch.setattr(depth, "saved_ms", lambda whole, rest: -1.0)
    (step,) = depth.propose(tiny.stage_input(tmp_path), depth.Config(blocks=1, per="milliseconds", **QUICK)).steps
    assert step.score == float("inf") and "inf" in str(
        depth.propose(tiny.stage_input(tmp_path), depth.Config(blocks=1, per="milliseconds", **QUICK))
    )


# ------------------------------------------------------------------------------------------------------------ proposals


def test_a_proposal_removes_nothing_and_carried_out_is_apply(tmp_path):
    given, config = tiny.stage_input(tmp_path), depth.Config(blocks=3, patch="affine", **QUICK)
    before = {n: t.clone() for n, t in given.variant.module.state_dict().items()}
    proposal = depth.propose(given, config)
    assert all(torch.equal(before[n], t) for n, t in given.variant.module.state_dict().items())
    one, two = depth.carry_out(given, proposal), depth.apply(given, config)
    assert one.arch == two.arch and one.notes == two.notes
    assert all(torch.equal(one.module.state_dict()[n], t) for n, t in two.module.state_dict().items())
    short = depth.carry_out(given, proposal.first(1))
    assert len(vae.blocks(short.arch.config)) == len(BLOCKS) - 1 and short.achieved[0].requested == 1


def test_its_table_has_a_row_for_each_step(tmp_path):
    proposal = depth.propose(tiny.stage_input(tmp_path), depth.Config(blocks=2, **QUICK))
    head, *rows = str(proposal).splitlines()
    assert "per GMAC" in head and "ms saved" not in head and len(rows) == 2
    assert all(
        f"{step.parameters:,}" in row and step.name in row for step, row in zip(proposal.steps, rows, strict=True)
    )


def test_damage_is_that_of_all_steps_so_far(tmp_path):
    given = tiny.stage_input(tmp_path)
    proposal = depth.propose(given, depth.Config(blocks=3, samples=4, latent_size=8))
    for count in (1, 2, 3):
        made = depth.carry_out(given, proposal.first(count)).module(tiny.latents())
        damage = float((made - given.variant.module(tiny.latents())).square().mean())
        assert proposal.steps[count - 1].damage == pytest.approx(damage, rel=1e-4)


def test_a_proposal_of_another_component_is_refused(tmp_path):
    proposal = depth.propose(tiny.stage_input(tmp_path), depth.Config(remove=("levels.0.resnets.1",), **QUICK))
    bare = depth.apply(tiny.stage_input(tmp_path), depth.Config(remove=("levels.0.*",), **QUICK))
    other = replace(tiny.decoder(), arch=bare.arch, module=bare.module)
    with pytest.raises(UserError, match=r"no block levels\.0\.resnets\.1"):
        depth.carry_out(tiny.stage_input(tmp_path, other), proposal)


def test_a_quantized_variant_is_refused(tmp_path):
    done = rtn.apply(tiny.stage_input(tmp_path), rtn.Config(bits=8, clip=False))
    variant = replace(tiny.decoder(), arch=done.arch, module=done.module)
    with pytest.raises(UserError, match="quantized already; prune before quantizing"):
        depth.apply(tiny.stage_input(tmp_path, variant), depth.Config(blocks=1))
