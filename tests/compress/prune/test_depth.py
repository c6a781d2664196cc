"""The harmless block goes first, tensors keep their owners, and what cannot be done is said."""

from dataclasses import replace
from itertools import combinations

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.components import build, find, read_arch, vae
from compress.errors import UserError
from compress.nn import cost
from compress.prune import depth
from compress.records import Arch, Prediction

BLOCKS = [block.name for block in vae.blocks(tiny.DECODER)]


def without_effect(*blocks):
    """The tiny decoder, in which these blocks add nothing to the stream."""
    module = tiny.decoder().module
    for name in blocks:
        module.get_submodule(name).conv2.weight.zero_()
        module.get_submodule(name).conv2.bias.zero_()
    return replace(tiny.decoder(), module=module)


def removed(result):
    return [note.split()[1].rstrip(":") for note in result.notes]


def prune(tmp_path, variant=None, **config):
    return depth.apply(tiny.stage_input(tmp_path, variant), depth.Config(**config))


def measured(arch):
    return cost.measure(build(arch), [(1, 8, 8, 8)])


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_without_effect_goes_first_and_costs_nothing(tmp_path, block):
    variant = without_effect(block)
    result = prune(tmp_path, variant, blocks=1, samples=1)
    assert removed(result) == [block]
    torch.testing.assert_close(result.module(tiny.latents()), variant.module(tiny.latents()))


def test_two_blocks_of_one_level_and_the_third_moves_to_the_front(tmp_path):
    config = replace(tiny.DECODER, levels=tiny.levels(tiny.WIDTHS, ((16, 12, 8), (16,), (8,), (8,))))
    variant = tiny.decoder(config=config)
    for j in (0, 1):
        block = variant.module.levels[0].resnets[j]
        block.conv2.weight.zero_(), block.conv2.bias.zero_()
    result = prune(tmp_path, variant, blocks=2)
    assert sorted(removed(result)) == ["levels.0.resnets.0", "levels.0.resnets.1"]  # by the names they had
    assert result.arch.config.levels[0].hidden == (8,)
    moved = result.module.levels[0].resnets[0].state_dict()
    assert all(torch.equal(moved[n], t) for n, t in variant.module.levels[0].resnets[2].state_dict().items())
    torch.testing.assert_close(result.module(tiny.latents()), variant.module(tiny.latents()))


def test_the_block_with_the_least_damage_per_mac_goes_first(tmp_path):
    variant = tiny.decoder()
    result = prune(tmp_path, variant, blocks=1)
    target = variant.module(tiny.latents())
    ratios = {}
    for name in BLOCKS:
        removal = vae.without_blocks(tiny.DECODER, [name])
        small = build(Arch(kind="vae.decoder", config=removal.config))
        small.load_state_dict(depth.rename(variant.module.state_dict(), removal, name))
        i, j = int(name.split(".")[1]), int(name.split(".")[3])
        width, hidden = tiny.WIDTHS[i], tiny.HIDDEN[i][j]
        damage = float((small(tiny.latents()).detach().double() - target.double()).square().mean())
        ratios[name] = damage / (2 * 9 * width * hidden * 4**i)
    assert removed(result) == [min(ratios, key=ratios.get)]


def test_says_what_was_asked_done_and_left_alone(tmp_path):
    result = prune(tmp_path, blocks=2, keep=("levels.0.*", "levels.2.resnets.1"))
    (achieved,) = result.achieved
    assert (achieved.requested, achieved.achieved, achieved.met) == (2, 2, True)
    assert len(vae.blocks(result.arch.config)) == len(BLOCKS) - 2
    assert [s.name for s in result.skipped] == ["levels.0.resnets.0", "levels.0.resnets.1", "levels.2.resnets.1"]
    assert {s.reason for s in result.skipped} == {"kept by the recipe"}


def test_keep_follows_a_block_that_has_moved(tmp_path):
    """`levels.2.resnets.1` becomes `.0` once the block before it is gone, and is kept all the same."""
    variant = without_effect("levels.2.resnets.0")
    result = prune(tmp_path, variant, blocks=len(BLOCKS) - 1, keep=("levels.2.resnets.1",))
    assert removed(result)[0] == "levels.2.resnets.0"
    assert [level.hidden for level in result.arch.config.levels] == [(), (), (8,), ()]
    kept = result.module.levels[2].resnets[0].conv1.weight
    assert torch.equal(kept, variant.module.levels[2].resnets[1].conv1.weight)


def test_every_block_can_go(tmp_path):
    result = prune(tmp_path, blocks=len(BLOCKS), samples=1)
    assert vae.blocks(result.arch.config) == () and result.module(tiny.latents()).isfinite().all()


@pytest.mark.parametrize("keep, left", [((), len(BLOCKS)), (("levels.0.*",), len(BLOCKS) - 2), (("*",), 0)])
def test_too_many_blocks(tmp_path, keep, left):
    config = depth.Config(blocks=left + 1, keep=keep)
    words = f"blocks: {left + 1} asked for, but only {left} can be removed"
    arch = tiny.decoder().arch
    with pytest.raises(UserError, match=words):
        depth.predict(Prediction(ends=(arch,)), config)
    with pytest.raises(UserError, match=words):
        depth.apply(tiny.stage_input(tmp_path), config)


def test_a_keep_pattern_that_matches_nothing(tmp_path):
    config = depth.Config(blocks=1, keep=("levels.0.*", "level.3.*"))
    arch = tiny.decoder().arch
    with pytest.raises(UserError, match=r"keep: 'level\.3\.\*' matches no block; blocks are levels\.0\.resnets\.0,"):
        depth.predict(Prediction(ends=(arch,)), config)
    with pytest.raises(UserError, match="matches no block"):
        depth.apply(tiny.stage_input(tmp_path), config)


def all_ends(count):
    """Every architecture that `count` removals can end with."""
    for names in combinations(BLOCKS, count):
        yield Arch(kind="vae.decoder", config=vae.without_blocks(tiny.DECODER, names).config)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_prediction_bounds_every_possible_end(count):
    arch = tiny.decoder().arch
    ends = depth.predict(Prediction(ends=(arch,)), depth.Config(blocks=count))
    predicted = [measured(end) for end in ends.ends]
    possible = [measured(end) for end in all_ends(count)]
    for figure in ("macs", "parameters"):
        low, high = (pick(getattr(one, figure) for one in predicted) for pick in (min, max))
        assert (low, high) == tuple(pick(getattr(one, figure) for one in possible) for pick in (min, max))


def test_predicted_parameters_of_md_tiny_bound_the_fine_and_the_coarse_levels():
    arch = read_arch(find("md-tiny/decoder"))
    ends = depth.predict(Prediction(ends=(arch,)), depth.Config(blocks=4)).ends
    predicted = sorted(measured(end).parameters for end in ends)
    fine = ["levels.2.resnets.0", "levels.2.resnets.1", "levels.3.resnets.0", "levels.3.resnets.1"]
    coarse = ["levels.0.resnets.0", "levels.0.resnets.1", "levels.0.resnets.2", "levels.1.resnets.0"]
    for names in (fine, coarse):
        end = Arch(kind=arch.kind, config=vae.without_blocks(arch.config, names).config)
        assert predicted[0] <= measured(end).parameters <= predicted[-1]


@given(seed=st.integers(0, 1000), count=st.integers(1, 2))
@settings(max_examples=2, deadline=None, derandomize=True)
def test_whatever_goes_the_rest_rebuilds_from_its_configuration(tmp_path_factory, seed, count):
    variant = tiny.decoder(seed)
    stage = tiny.stage_input(tmp_path_factory.getbasetemp(), variant, inputs=tiny.latents(1, 4))
    result = depth.apply(stage, depth.Config(blocks=count))
    back = build(result.arch)
    back.load_state_dict(result.module.state_dict())
    assert torch.equal(back(tiny.latents()), result.module(tiny.latents()))


def test_what_lies_outside_the_central_crop_has_no_say(tmp_path):
    inputs = tiny.latents(2, 12)
    changed = inputs.clone()
    changed[..., :2, :] = 50.0
    results = [
        depth.apply(tiny.stage_input(tmp_path, inputs=x), depth.Config(blocks=1, latent_size=8))
        for x in (inputs, changed)
    ]
    assert results[0].notes == results[1].notes


def test_an_encoder_can_be_pruned_too(tmp_path):
    stage = tiny.stage_input(tmp_path, tiny.encoder(), inputs=torch.rand(1, 3, 32, 32))
    result = depth.apply(stage, depth.Config(blocks=1, latent_size=32))
    assert len(vae.blocks(result.arch.config)) == len(BLOCKS) - 1
