"""Traced groups against an oracle that knows nothing of them: hidden channels, and norms that do not see them."""

import re

import networks
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from compress import components
from compress.nn.stand_in import stand_in
from compress.nn.structure import example_inputs, take_channels
from compress.nn.tracing.graph import Untraceable
from compress.nn.tracing.groups import traced
from compress.nn.trial import seeded_state

LATENTS = torch.zeros(1, 4, 4, 4)


class MaskedNorm(nn.Module):
    """A GroupNorm or LayerNorm whose means and variances are those of the kept channels."""

    def __init__(self, norm, mask):
        super().__init__()
        self.norm, self.mask = norm, mask.double()

    def forward(self, x):
        last = isinstance(self.norm, nn.LayerNorm)
        x = x.movedim(-1, 1) if last else x
        groups = 1 if last else self.norm.num_groups
        shape = (1, self.mask.numel(), *[1] * (x.dim() - 2))
        if last:  # every position by itself
            mask, axes, rows = self.mask.reshape(shape), (1,), x
        else:
            rows = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
            mask, axes = self.mask.reshape(1, groups, -1, *[1] * (x.dim() - 2)), tuple(range(2, rows.dim()))
        count = mask.expand_as(rows).sum(axes, keepdim=True)
        mean = (rows * mask).sum(axes, keepdim=True) / count
        variance = ((rows - mean).square() * mask).sum(axes, keepdim=True) / count
        normed = ((rows - mean) / (variance + self.norm.eps).sqrt()).reshape(x.shape)
        out = normed * self.norm.weight.reshape(shape) + self.norm.bias.reshape(shape)
        return out.movedim(1, -1) if last else out


def masked(module, groups, kept):
    """The whole network, in which nothing sees the removed channels."""
    state, masks = module.state_dict(), {}
    for group in groups:
        gone = [c for c in range(group.width) if c not in kept[group.name].tolist()]
        silent = not any(part.role == "reads" for part in group.slices)
        for part in group.slices:
            entries = [part.offset + c * part.span + k for c in gone for k in range(part.span)]
            if part.role == "reads" or silent:
                state[part.tensor].index_fill_(part.axis, torch.tensor(entries, dtype=torch.long), 0.0)
            if state[part.tensor].dim() == 1:
                masks.setdefault(part.tensor, torch.ones(len(state[part.tensor])))[entries] = 0
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.GroupNorm | nn.LayerNorm) and f"{name}.weight" in masks:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, MaskedNorm(part, masks[f"{name}.weight"]))
    return module


def sizes_after(state, groups, kept):
    return {name: tuple(tensor.shape) for name, tensor in take_channels(state, groups, kept).items()}


def some_kept(groups, seed):
    """A random choice of each group's channels, equally many in each norm group, at least one."""
    generator, kept = torch.Generator().manual_seed(seed), {}
    for group in groups:
        run = group.width // group.norm_groups
        count = int(torch.randint(1, run + 1, (1,), generator=generator))
        rows = [
            torch.randperm(run, generator=generator)[:count].sort().values + i * run for i in range(group.norm_groups)
        ]
        kept[group.name] = torch.cat(rows)
    return kept


def check(module, seed):
    """Cutting equals hiding, in double precision; returns the groups."""
    found = traced(module, (LATENTS,))
    whole = stand_in(module, {}, ())
    whole.load_state_dict(seeded_state(whole, seed))
    whole = whole.double()
    kept = some_kept(found.groups, seed)
    cut_state = take_channels(whole.state_dict(), found.groups, kept)
    small = stand_in(whole, sizes_after(whole.state_dict(), found.groups, kept), ())
    small.load_state_dict(cut_state)
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        cut = small(x)
        torch.testing.assert_close(
            cut, masked(whole, found.groups, kept)(x), rtol=1e-6, atol=1e-8 * float(cut.abs().max())
        )
    return found


NAMES = sorted(networks.STEPS)


@settings(
    max_examples=4, phases=(Phase.explicit, Phase.generate)
)  # an export takes a second: shrinking would take hours
@given(names=st.lists(st.sampled_from(NAMES), min_size=4, max_size=6), seed=st.integers(0, 1000))
def test_cutting_equals_hiding_in_networks_of_many_shapes(names, seed):
    check(networks.network(names), seed)


@pytest.mark.parametrize("names", [NAMES[:6], NAMES[6:12], NAMES[12:]], ids=", ".join)
def test_every_step_can_be_followed(names):
    found = check(networks.network([*names, "narrow"], width=16), 1)
    assert [f.reason for f in found.fixed] == ["they are what the module gives out"]
    assert found.groups[0].name == "0"
    assert all(part.tensor for group in found.groups for part in group.slices)


def cells(group):
    """A group as a set of channels, each the set of its places."""
    return frozenset(
        frozenset((p.tensor, p.axis, p.offset + c * p.span + k) for p in group.slices for k in range(p.span))
        for c in range(group.width)
    )


@pytest.mark.parametrize(
    "name", ["taesd/decoder", "md-tiny/decoder", pytest.param("mobilediffusion-lite/decoder", marks=pytest.mark.slow)]
)
def test_traced_groups_are_those_that_the_component_states(name):
    """The statement was made from the configuration, by other code that never saw the graph."""
    arch = components.read_arch(components.find(name))
    kind = components.kind_of(arch.kind)
    with torch.device("meta"):
        module = kind.build(arch.config).eval()
    found = traced(module, example_inputs(kind, arch.config, 64))
    stated = {cells(g): (g.width, g.norm_groups, g.unit) for g in kind.channel_groups(arch.config)}
    assert {cells(g): (g.width, g.norm_groups, g.unit) for g in found.groups} == stated
    assert [f.name for f in found.fixed] == ["conv_out"]


class Odd(nn.Module):
    """Between two convolutions of eight channels, whatever is given."""

    def __init__(self, between):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 3, 1)
        self.other, self.grouped = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1, groups=2)
        self.between, self.pixels = between, nn.Linear(16, 16)

    def forward(self, x):
        return self.two(self.between(self, self.one(x), x))


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (lambda m, y, x: y + functional.pad(x, (0, 0, 0, 0, 0, 4)), "combined with values of fixed channels"),
        (lambda m, y, x: y / y.norm(dim=1, keepdim=True), "linalg_vector_norm"),
        (lambda m, y, x: y / y.mean(1, keepdim=True), "summed or compared"),
        (lambda m, y, x: torch.softmax(y, dim=1), "summed or compared"),
        (lambda m, y, x: torch.cat([y[:, 4:], y[:, :4]], 1), "picked by position"),
        (lambda m, y, x: torch.cat(y.split([6, 2], 1)[::-1], 1), "unequal sizes"),
        (lambda m, y, x: m.grouped(y), "a convolution in 2 groups of several channels"),
        (lambda m, y, x: y.roll(1, 1), "picked by position"),
        (lambda m, y, x: torch.cumsum(y, 1), "summed or compared"),
        (lambda m, y, x: torch.einsum("nchw,ncij->nchw", y, y), "in|einsum|known"),
    ],
)
def test_what_cannot_be_followed_is_fixed_with_the_operation_and_the_line(between, words):
    found = traced(Odd(between).eval(), (LATENTS,))
    (reason,) = [f.reason for f in found.fixed if f.name == "one"]
    assert re.search(words, reason)
    assert "test_groups.py, line" in reason
    assert "one" not in {group.name for group in found.groups}


def test_a_single_channel_that_scales_others_is_fixed_alone():
    found = traced(Odd(lambda m, y, x: y * m.other(x)[:, :1]).eval(), (LATENTS,))
    assert {group.name for group in found.groups} == {"one"}
    assert [
        f.name for f in found.fixed if "picked by position in" in f.reason or "picked by position (" in f.reason
    ] == ["other"]


def test_norm_groups_that_span_two_layers_bind_both():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.norm = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 2, 1), nn.GroupNorm(2, 8)
            self.out = nn.Conv2d(8, 3, 1)

        def forward(self, x):
            return self.out(self.norm(torch.cat([self.one(x), self.other(x)], 1)))

    found = traced(Joined().eval(), (LATENTS,))
    assert found.groups == ()
    assert {f.name for f in found.fixed if "'norm' normalises them in 2 groups" in f.reason} == {"one", "other"}


def test_a_layer_that_is_used_twice_binds_what_it_reads():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.shared, self.out = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 3, 1)

        def forward(self, x):
            return self.out(self.shared(torch.relu(self.shared(self.a(x)))))

    (group,) = check(Twice().eval(), 3).groups
    assert {(p.tensor, p.axis) for p in group.slices if p.tensor == "shared.weight"} == {
        ("shared.weight", 0),
        ("shared.weight", 1),
    }


def test_a_branch_on_a_value_cannot_be_exported():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(Untraceable):
        traced(Branch().eval(), (LATENTS,))
