"""The trial passes what may be cut, and catches a group that is wrong in any one place."""

from dataclasses import replace

import pytest
import tiny
import torch

from compress.components import build, vae
from compress.nn import trial
from compress.records import Arch

GROUPS = vae.channel_groups(tiny.DECODER)


def case():
    def made(widths):
        return build(Arch(kind="vae.decoder", config=vae.with_widths(tiny.DECODER, widths)))

    whole = made({})
    inputs = trial.seeded_inputs([torch.zeros(1, 8, 4, 4)])
    return trial.Case(build=made, inputs=inputs, state=trial.seeded_state(whole))


def test_the_groups_that_a_component_states_pass():
    assert trial.failures(case(), GROUPS) == {}


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_group_that_misses_one_reader_is_caught_and_only_that_one(which):
    group = [g for g in GROUPS if g.kind == "inner"][which]
    wrong = replace(group, slices=tuple(part for part in group.slices if part.role != "reads"))
    others = [wrong if g is group else g for g in GROUPS]
    assert list(trial.failures(case(), others)) == [group.name]


def test_a_reader_with_another_order_of_channels_is_caught():
    """Same shapes, so nothing fails: only the numbers tell."""
    one, other = [g for g in GROUPS if g.kind == "inner" and g.width == 16][:2]
    reads = [next(p for p in g.slices if p.role == "reads") for g in (one, other)]
    wrong = replace(one, slices=tuple(reads[1] if p == reads[0] else p for p in one.slices))
    assert trial.failures(case(), [wrong])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_spare_channels_are_spread_evenly_over_the_norm_groups(groups):
    copies, neighbours = trial.spare(replace(GROUPS[0], width=12, norm_groups=groups))
    run = 12 // groups
    assert torch.equal(copies // run, neighbours // run)
    assert len(set((copies // run).bincount(minlength=groups).tolist())) == 1
    assert not set(copies.tolist()) & set(neighbours.tolist())
