"""Layers solved anew: exact where they can be, never worse, in order, and in every component."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.components import kind_of
from compress.nn.structure import take_channels
from compress.prune import _reconstruct, width
from compress.prune._reconstruct import Pair, Sampling

COMPONENTS = {
    "decoder": (tiny.decoder, lambda n, seed: (tiny.latents(n, seed=seed),)),
    "encoder": (
        tiny.encoder,
        lambda n, seed: (torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)),),
    ),
    "unet": (tiny.small_unet, lambda n, seed: tiny.unet_inputs(n, seed=seed)),
    "text": (tiny.text, lambda n, seed: tiny.text_inputs(n, seed=seed)),
}
each = pytest.mark.parametrize("name", COMPONENTS)


def error(variant, result, inputs):
    return float((variant.module(*inputs) - result.module(*inputs)).square().mean())


def cut(folder, variant, inputs, **config):
    stage = tiny.stage_input(folder, variant, inputs=inputs)
    return width.apply(stage, width.Config(**{"ratio": 0.5, "round_to": 4, **config}))


@each
def test_solving_recovers_much_of_what_the_cut_lost_also_on_inputs_never_seen(tmp_path, name):
    build, inputs = COMPONENTS[name]
    variant = build()
    given, unseen = inputs(16, 0), inputs(8, 99)
    plain = cut(tmp_path, variant, given, reconstruct=False)
    solved = cut(tmp_path, variant, given)
    assert error(variant, solved, given) < 0.7 * error(variant, plain, given)
    assert error(variant, solved, unseen) < 0.9 * error(variant, plain, unseen)
    before, after = (float(word) for word in solved.notes[0].split(": ")[1].replace(",", "").split()[:4:3])
    assert before == pytest.approx(error(variant, plain, given), rel=0.01)
    assert after == pytest.approx(error(variant, solved, given), rel=0.01)
    assert solved.arch == plain.arch and not plain.notes


def chain(seed=0):
    """Two layers with a nonlinearity; the second reads what is cut."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)).double()


@given(seed=st.integers(0, 50), keep=st.sets(st.integers(0, 5), min_size=1, max_size=6))
@settings(max_examples=15)
def test_one_layer_is_the_least_squares_of_numpy(seed, keep):
    kept = torch.tensor(sorted(keep))
    with torch.random.fork_rng():
        whole = chain(seed).requires_grad_(False)
        small = nn.Sequential(nn.Conv2d(3, len(kept), 3, padding=1), nn.ReLU(), nn.Conv2d(len(kept), 4, 3, padding=1))
    small = small.double().requires_grad_(False)
    small[0].weight.copy_(whole[0].weight[kept])
    small[0].bias.copy_(whole[0].bias[kept])
    small[2].weight.copy_(whole[2].weight[:, kept])
    small[2].bias.copy_(whole[2].bias)
    x = torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pair = Pair(whole=whole, cut=small, outputs={}, inputs=(x,))
    wanted = whole(x).movedim(1, -1).flatten(0, -2).numpy()
    plain = float(((small(x) - whole(x)) ** 2).sum(1).mean())
    _reconstruct.reconstruct(pair, ["2"], Sampling(positions=10**6, seed=0), lambda *_: None)
    patches = nn.functional.unfold(small[1](small[0](x)), 3, 1, 1, 1).transpose(1, 2).flatten(0, 1).numpy()
    design = np.hstack([patches, np.ones((len(patches), 1))])
    found = np.linalg.lstsq(design, wanted, rcond=None)[0]
    best = float(((design @ found - wanted) ** 2).sum(1).mean())
    mine = float(((small(x) - whole(x)) ** 2).sum(1).mean())
    assert best - 1e-12 <= mine <= 1.1 * best + 0.01 * plain, "the least error there is, but for the ridge"
    if len(kept) == 6:
        torch.testing.assert_close(small(x), whole(x))


@pytest.mark.parametrize("name", ["decoder", "unet", "text"])
def test_nothing_changes_where_what_was_cut_was_a_copy(tmp_path, name):
    """A channel and its copy, one of them cut: the readers can be solved exactly, and the whole output comes back."""
    build, inputs = COMPONENTS[name]
    variant, given = build(), inputs(8, 0)
    ending = {"decoder": "levels.0.resnets.0.hidden", "unet": "ff.inner", "text": "mlp.inner"}[name]
    groups = kind_of(variant.arch.kind).channel_groups(variant.arch.config)
    group = next(g for g in groups if g.name.endswith(ending))
    state = variant.module.state_dict()
    for part in group.slices:  # every second channel makes what its neighbour makes, and counts for less
        if part.role != "reads":
            own = state[part.tensor].narrow(part.axis, part.offset, group.width * part.span)
            own[1::2] = own[0::2]
        else:
            state[part.tensor][:, 1::2] *= 0.5
    others = tuple(g.name for g in groups if g.name != group.name)
    stage = tiny.stage_input(tmp_path, variant, inputs=given)
    scores = {group.name: torch.tensor([2.0, 1.0]).repeat(group.width // 2)}
    solved, plain = (
        width.carry_out(stage, replace(width.propose(stage, config), scores=scores))
        for config in (
            width.Config(ratio=0.5, round_to=4, keep=others, reconstruct=reconstruct) for reconstruct in (True, False)
        )
    )
    assert error(variant, plain, given) > 1e-4
    assert error(variant, solved, inputs(4, 7)) < 1e-4 * error(variant, plain, inputs(4, 7))


def test_the_end_of_a_residual_branch_makes_up_for_what_its_stream_has_lost(tmp_path):
    """The stream is damaged before the block; the block's last layer is solved to give back the whole sum."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner, self.end = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.out = nn.Identity()

        def forward(self, x):
            stream = self.stem(x)
            return self.out(stream + self.end(self.inner(stream)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole, damaged = Block().double().requires_grad_(False), Block().double().requires_grad_(False)
    damaged.load_state_dict(whole.state_dict())
    damaged.stem.weight *= 0.5
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pair = Pair(whole=whole, cut=damaged, outputs={}, inputs=(x,))
    _reconstruct.reconstruct(pair, ["end"], Sampling(positions=10**6, seed=0), lambda *_: None)
    assert (whole(x) - damaged(x)).square().mean() < 1e-4 * whole(x).square().mean()


@given(seed=st.integers(0, 30), samples=st.integers(1, 5), ratio=st.sampled_from([0.25, 0.5]))
@settings(max_examples=6)
def test_it_is_never_worse_on_its_calibration_data(seed, samples, ratio):
    """Even where a handful of pixels could not say what a layer should be."""
    variant, inputs = tiny.decoder(seed), (tiny.latents(samples, 2, seed=seed),)
    config = {"ratio": ratio, "positions": 8}
    plain = cut(".", variant, inputs, reconstruct=False, **config)
    assert error(variant, cut(".", variant, inputs, **config), inputs) <= error(variant, plain, inputs) * (1 + 1e-6)


def test_targets_that_do_not_fit_into_memory_at_once_change_nothing(tmp_path, monkeypatch):
    variant, given = tiny.decoder(), (tiny.latents(4, 4),)
    at_once = cut(tmp_path, variant, given)
    monkeypatch.setattr(_reconstruct, "TARGET_BYTES", 1)
    one_by_one = cut(tmp_path, variant, given)
    for name, tensor in at_once.module.state_dict().items():
        assert torch.equal(tensor, one_by_one.module.state_dict()[name])


@each
def test_only_layers_that_read_what_was_cut_change(tmp_path, name):
    build, inputs = COMPONENTS[name]
    variant, given = build(), inputs(8, 0)
    groups = kind_of(variant.arch.kind).channel_groups(variant.arch.config)
    proposal = width.propose(tiny.stage_input(tmp_path, variant, inputs=given), width.Config(ratio=0.25, round_to=4))
    result = width.carry_out(tiny.stage_input(tmp_path, variant, inputs=given), proposal)
    kept = {
        n: width.keep_evenly(s, proposal.widths[n], g.norm_groups)
        for n, s in proposal.scores.items()
        for g in groups
        if g.name == n
    }
    sliced = take_channels(variant.module.state_dict(), groups, kept)
    cut_groups = [g.name for g in proposal.groups if g.after < g.before]
    names, unsolved = _reconstruct.readers(variant.module, groups, cut_groups)
    assert names and not unsolved
    for tensor, value in result.module.state_dict().items():
        layer = tensor.rpartition(".")[0]
        if layer not in names:
            assert torch.equal(value, sliced[tensor]), tensor
    assert any(not torch.equal(result.module.state_dict()[f"{n}.weight"], sliced[f"{n}.weight"]) for n in names)


def test_pictures_are_cropped_by_image_pixels_whatever_the_component(tmp_path):
    """16 image pixels are 2 latents; more than there are is all of them."""
    for variant, inputs, side in (
        (tiny.decoder(), (tiny.latents(),), 2),
        (tiny.encoder(), (torch.rand(1, 3, 32, 32),), 16),
        (tiny.unet(), tiny.unet_inputs(), 2),
    ):
        stage = tiny.stage_input(tmp_path, variant, inputs=inputs)
        cropped = width._inputs(stage, width.Config(ratio=0.5, pixels=16, samples=3))
        assert len(cropped[0]) == min(3, len(inputs[0])) and cropped[0].shape[-1] == side
    assert width._inputs(tiny.stage_input(tmp_path), width.Config(ratio=0.5))[0].shape == (4, 8, 8, 8)
