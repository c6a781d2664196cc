"""Budgets met after rounding and by no more than one step, shares by pattern, proposals to look at and to change."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.components import build, kind_of
from compress.errors import UserError
from compress.nn import cost
from compress.nn.structure import ChannelGroup
from compress.prune import _budget, width
from compress.records import Arch, Prediction
from eval.metrics import latency

COMPONENTS = {"decoder": tiny.decoder, "encoder": tiny.encoder, "unet": tiny.small_unet, "text": tiny.text}


def config_of(**config):
    return width.Config(**{"ratio": 0.5, "round_to": 4, "reconstruct": False, **config})


def proposed(folder, variant=None, **config):
    return width.propose(tiny.stage_input(folder, variant), config_of(**config))


def widths_of(arch):
    return {g.name: g.width for g in kind_of(arch.kind).channel_groups(arch.config)}


# ------------------------------------------------------------------------------------------------------------ steps


@given(
    norm_groups=st.sampled_from([1, 2, 4]),
    per_group=st.integers(1, 12),
    round_to=st.integers(1, 16),
    unit=st.sampled_from([1, 4, 6]),
    most=st.floats(0.05, 0.95),
)
@settings(max_examples=80)
def test_a_ladder_has_every_width_that_is_allowed(norm_groups, per_group, round_to, unit, most):
    group = ChannelGroup(
        name="g", kind="inner", width=norm_groups * per_group, norm_groups=norm_groups, slices=(), unit=unit
    )
    step = width._step(group, width.Config(ratio=0.5, round_to=round_to))
    expected = [
        w
        for w in range(group.width - 1, 0, -1)
        if w % norm_groups == 0 and w * unit % round_to == 0 and (group.width - w) / group.width <= most + 1e-9
    ]
    assert list(_budget.ladder(group, step, most)) == expected


@given(count=st.integers(1, 9), limit=st.integers(0, 9))
@settings(max_examples=40)
def test_the_fewest_steps_that_are_enough(count, limit):
    steps = [_budget.Step(group=f"g{i}", width=1, gone=1, rank=i) for i in range(count)]
    found = _budget.shortest(steps, lambda widths: len(widths) >= limit)
    assert found is None if limit > count else list(found) == [f"g{i}" for i in range(limit)]


def test_importance_per_cost_decides_and_a_group_shrinks_in_order():
    """Two groups, one of them ten times as dear; by hand."""
    cheap, dear = (ChannelGroup(name=n, kind="inner", width=4, norm_groups=2, slices=()) for n in ("cheap", "dear"))
    scores = {"cheap": torch.tensor([1.0, 4.0, 2.0, 3.0]), "dear": torch.tensor([9.0, 40.0, 50.0, 11.0])}
    ladders = {"cheap": (2,), "dear": (2,)}
    steps = _budget.by_importance((cheap, dear), ladders, scores, {"cheap": 1.0, "dear": 10.0})
    assert [(s.group, s.rank) for s in steps] == [("dear", 20 / 20), ("cheap", 3 / 2)]


# ----------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    "name, of, spread",
    [
        ("decoder", "macs", "compete"),
        ("decoder", "parameters", "uniform"),
        ("encoder", "parameters", "compete"),
        ("unet", "macs", "compete"),
        ("text", "macs", "uniform"),
    ],
)
def test_the_budget_is_met_and_one_step_less_would_miss_it(tmp_path, name, of, spread):
    variant, ratio = COMPONENTS[name](), 0.3
    stage, config = tiny.stage_input(tmp_path, variant), config_of(of=of, ratio=ratio, spread=spread, round_to=1)
    result = width.apply(stage, config)
    (achieved,) = result.achieved
    assert achieved.met and achieved.requested == ratio <= achieved.achieved
    inputs = {"encoder": (torch.rand(1, 3, 64, 64),), "unet": tiny.unet_inputs(1, 64), "text": tiny.text_inputs(1)}
    given = inputs.get(name, (tiny.latents(1),))
    before, after = (getattr(cost.measure(m, given), of) for m in (variant.module, result.module))
    if name != "unet" or of == "parameters":  # attention's share depends on how many tokens of text there are
        assert 1 - after / before == pytest.approx(achieved.achieved, abs=1e-9)
    largest = max(_budget_of_a_step(variant.arch, result.arch, of))
    assert achieved.achieved <= ratio + largest


def _budget_of_a_step(before, after, of):
    """What giving one group its next larger width would cost, as a share of the whole."""
    widths, whole = widths_of(after), getattr(_budget.counted(before, {}), of)
    less = getattr(_budget.counted(before, widths), of)
    for group in kind_of(before.kind).channel_groups(before.config):
        if widths[group.name] < group.width:
            kept = {n: w for n, w in widths.items() if n != group.name}
            kept[group.name] = widths[group.name] + group.norm_groups
            yield (getattr(_budget.counted(before, kept), of) - less) / whole


def test_competing_groups_lose_where_nothing_is_lost(tmp_path):
    """One block's insides are almost silent: under a budget they go first; with equal shares they do not."""
    variant, block = tiny.decoder(), "levels.1.resnets.0"
    variant.module.state_dict()[f"{block}.conv2.weight"].mul_(1e-3)
    config = {"of": "macs", "ratio": 0.2, "importance": "taylor", "samples": 2}
    competing = proposed(tmp_path, variant, **config)
    uniform = proposed(tmp_path, variant, spread="uniform", **config)
    assert competing.widths[f"{block}.hidden"] == 4 < uniform.widths[f"{block}.hidden"]
    assert competing.macs[1] <= 0.8 * competing.macs[0] and uniform.macs[1] <= 0.8 * uniform.macs[0]


@pytest.mark.parametrize("of", ["macs", "parameters"])
@pytest.mark.parametrize("spread", ["compete", "uniform"])
def test_the_plan_bounds_what_comes(tmp_path, of, spread):
    config = config_of(of=of, spread=spread, ratio=0.4)
    arch = tiny.decoder().arch
    ends = width.predict(Prediction(ends=(arch,)), config).ends
    after = proposed(tmp_path, of=of, spread=spread, ratio=0.4).after
    assert ends == (after,) if spread == "uniform" else len(ends) == 2
    for figure in ("macs", "parameters"):
        bounds = [getattr(_budget.counted(end, {}), figure) for end in ends]
        assert min(bounds) <= getattr(_budget.counted(after, {}), figure) <= max(bounds)


def test_a_budget_that_cannot_be_met(tmp_path):
    config = config_of(of="macs", ratio=0.9, most=0.5)
    for attempt in (
        lambda: width.predict(Prediction(ends=(tiny.decoder().arch,)), config),
        lambda: width.apply(tiny.stage_input(tmp_path), config),
    ):
        with pytest.raises(
            UserError, match=r"ratio 0.9 of macs cannot be removed: .*most: 0.5 .*\d% are left at least"
        ):
            attempt()


def test_latency_is_measured_until_it_is_low_enough(tmp_path, monkeypatch):
    """With a clock that counts MACs: the same answer as a budget of MACs, and every measurement is of a real network."""
    seen = []

    def paired_ratio(reference, candidate, *, sampling):
        before, after = (cost.measure(module, (tiny.latents(1),)) for module in (reference, candidate))
        seen.append(sampling.seconds)
        ratio = after.macs / before.macs
        return latency.LatencyRatio(
            ratio=ratio, low=ratio - 0.01, high=ratio + 0.01, noise_floor=0.0, reference_ms=(), candidate_ms=(),
            pairs=7, threads=1, host="", runtime="",
        )  # fmt: skip

    monkeypatch.setattr(latency, "paired_ratio", paired_ratio)
    monkeypatch.setattr(_budget, "_work", lambda module, example: module)
    by_time, by_macs = proposed(tmp_path, of="latency"), proposed(tmp_path, of="macs")
    assert by_time.widths == by_macs.widths
    assert len(seen) <= 10 and seen[-1] == 3 * seen[0], "a bisection, and the chosen one once more, longer"
    (achieved,) = width.carry_out(tiny.stage_input(tmp_path), by_time).achieved
    assert achieved.met and achieved.achieved == pytest.approx(1 - by_time.macs[1] / by_time.macs[0], abs=1e-6)
    changed = width.adjusted(by_time, {})
    assert not width.carry_out(tiny.stage_input(tmp_path), changed).achieved[0].met, "a new network was not measured"
    with pytest.raises(UserError, match=r"0\.95 of the latency cannot be removed on this host"):
        proposed(tmp_path, of="latency", ratio=0.95)


# ------------------------------------------------------------------------------------------------------------ shares


def test_ratios_by_pattern_the_first_match_counts(tmp_path):
    found = proposed(tmp_path, ratios={"levels.0.resnets.1.*": 0.0, "levels.0.*": 0.25}, ratio=0.5).widths
    assert "levels.0.resnets.1.hidden" not in found
    assert found["levels.0.resnets.0.hidden"] == found["levels.0.stream"] == 12
    assert found["levels.1.stream"] == 8 and found["levels.3.stream"] == 4


@pytest.mark.parametrize("config", [{}, {"of": "macs"}])
def test_what_is_kept_is_a_named_row(tmp_path, config):
    stage = tiny.stage_input(tmp_path)
    result = width.apply(stage, config_of(keep=("*.stream",), ratio=0.3, **config))
    streams = {n: w for n, w in widths_of(tiny.decoder().arch).items() if n.endswith("stream")}
    assert {n: w for n, w in widths_of(result.arch).items() if n.endswith("stream")} == streams
    assert {s.name for s in result.skipped if s.reason == "kept by the recipe"} == set(streams)


@pytest.mark.parametrize("key, value", [("keep", ("level.*",)), ("ratios", {"*.hiden": 0.5})])
def test_a_pattern_that_matches_nothing(tmp_path, key, value):
    config = config_of(**{key: value})
    for attempt in (
        lambda: width.predict(Prediction(ends=(tiny.decoder().arch,)), config),
        lambda: width.propose(tiny.stage_input(tmp_path), config),
    ):
        with pytest.raises(UserError, match=f"{key}: '{re.escape(next(iter(value)))}' matches no group; groups are "):
            attempt()


def test_shares_of_single_groups_and_a_budget_exclude_each_other():
    with pytest.raises(ValueError, match="of: macs the budget decides"):
        width.Config(ratio=0.5, of="macs", ratios={"*": 0.5})


# --------------------------------------------------------------------------------------------------------- proposals


def test_looking_changes_nothing_and_carrying_out_is_applying(tmp_path):
    stage, config = tiny.stage_input(tmp_path), config_of(reconstruct=True, importance="taylor")
    before = {n: t.clone() for n, t in stage.variant.module.state_dict().items()}
    proposal = width.propose(stage, config)
    assert all(torch.equal(t, before[n]) for n, t in stage.variant.module.state_dict().items())
    one, two = width.carry_out(stage, proposal), width.apply(stage, config)
    assert one.arch == two.arch == proposal.after and (one.achieved, one.notes) == (two.achieved, two.notes)
    assert all(torch.equal(t, two.module.state_dict()[n]) for n, t in one.module.state_dict().items())


def test_the_table_says_what_goes(tmp_path):
    proposal = proposed(tmp_path, keep=("levels.3.*",))
    rows = str(proposal).splitlines()
    assert len(rows) == 1 + len(proposal.groups) + 2
    assert re.fullmatch(r"levels.0.stream +stream +16 +8 +\d+\.\d%", next(r for r in rows if "levels.0.stream" in r))
    assert next(r for r in rows if "levels.3.stream" in r).endswith("8      8  kept by the recipe")
    whole, rest = (_budget.counted(a, {}) for a in (proposal.before, proposal.after))
    assert rows[-2:] == [
        f"MACs: {whole.macs:,} -> {rest.macs:,} ({rest.macs / whole.macs:.1%})",
        f"parameters: {whole.parameters:,} -> {rest.parameters:,} ({rest.parameters / whole.parameters:.1%})",
    ]


def test_a_proposal_can_be_changed_by_hand(tmp_path):
    stage, proposal = tiny.stage_input(tmp_path), proposed(tmp_path)
    changed = width.adjusted(proposal, {"levels.0.stream": 12, "levels.1.resnets.0.hidden": 16})
    assert changed.macs[1] > proposal.macs[1] and changed.widths == {
        **proposal.widths, "levels.0.stream": 12, "levels.1.resnets.0.hidden": 16,
    }  # fmt: skip
    assert widths_of(width.carry_out(stage, changed).arch) == changed.widths
    for widths, words in (
        ({"levels.9.stream": 8}, "'levels.9.stream' is not a group that may be cut here"),
        ({"levels.0.stream": 10}, "levels.0.stream: 10 is not between 1 and 16, a multiple of 4"),
        ({"levels.0.stream": 20}, "levels.0.stream: 20 is not between 1 and 16"),
    ):
        with pytest.raises(UserError, match=words):
            width.adjusted(proposal, widths)


def test_a_proposal_is_for_one_architecture(tmp_path):
    proposal, other = (
        proposed(tmp_path),
        replace(tiny.DECODER, levels=tiny.levels(tiny.WIDTHS, ((16,), *tiny.HIDDEN[1:]))),
    )
    with pytest.raises(UserError, match="made for another architecture"):
        width.carry_out(tiny.stage_input(tmp_path, tiny.decoder(config=other)), proposal)


def test_integers_are_not_cut(tmp_path):
    from compress.quantize import rtn

    stage = tiny.stage_input(tmp_path)
    integers = rtn.apply(stage, rtn.Config())
    variant = replace(stage.variant, module=integers.module)
    with pytest.raises(UserError, match="put it before the quantize stage"):
        width.propose(tiny.stage_input(tmp_path, variant), config_of())


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_proposed_network_rebuilds_from_its_configuration(tmp_path, name):
    variant = COMPONENTS[name]()
    proposal = proposed(tmp_path, variant, ratio=0.25)
    result = width.carry_out(tiny.stage_input(tmp_path, variant), proposal)
    build(Arch(kind=variant.arch.kind, config=result.arch.config)).load_state_dict(result.module.state_dict())


def test_the_example_in_the_documents_runs(tmp_path, capsys):
    text = (Path(__file__).parents[3] / "docs" / "pruning.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = {"stage": tiny.stage_input(tmp_path)}
    exec(example, names)
    assert names["result"].arch == names["proposal"].after != tiny.decoder().arch
    assert "levels.0.stream" in capsys.readouterr().out
