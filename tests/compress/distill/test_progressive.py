"""The target is where two teacher steps lead, phases hand on, a kill changes nothing, a toy is learnt in one step."""

import pytest
import tiny
import torch
import toys
from pydantic import ValidationError

from compress.distill import _diffusion, progressive
from compress.errors import UserError
from compress.sampling import ddim

SHORT = {"steps": 2, "batch": 2, "pixels": 32, "precision": "float32", "first": 4, "last": 2}


def stage(folder, **options):
    folder.mkdir(exist_ok=True)
    given = {"diffusion": tiny.diffusion(), "inputs": tiny.unet_inputs()} | options
    return tiny.stage_input(folder, tiny.unet(), teacher=tiny.unet().module, **given)


@pytest.mark.parametrize("count", [1, 4])
def test_one_step_to_the_target_is_two_steps_of_the_sampler(tmp_path, count):
    """The sampler that pictures are made with is the oracle: float64, one level for the whole batch."""
    given = stage(tmp_path)
    config = progressive.Config(**SHORT | {"guidance": 2.0})
    teacher = _diffusion.teacher_of(given, config)
    clean, context = given.diffusion.clean(0, 3, 32)
    walk, empty = teacher.walk, given.diffusion.empty[0].expand_as(context)

    def predict(sample, step):
        level = torch.full((3,), float(step))
        with_text, without = (teacher.net(sample.float(), level, c) for c in (context, empty))
        return (without + 2.0 * (with_text - without)).double()

    seen = []

    def recording(sample, step):
        seen.append((int(step), sample))
        return predict(sample, step)

    with torch.no_grad():
        last = ddim.solve(recording, clean.double(), walk.schedule, 2 * count)
        seen.append((-1, last))
        for (level, here), (_, there) in zip(seen[::2], seen[2::2], strict=False):
            levels = torch.full((3,), level)
            aim = progressive.target(teacher, here.float(), levels, count, (context,), config)
            following = torch.tensor([walk.grid(count)[walk.grid(count).index(level) + 1]]).expand(3)
            assert torch.allclose(walk.jump(here.float(), aim, levels, following).double(), there, atol=2e-4)


def test_each_phase_follows_the_one_before(tmp_path, monkeypatch):
    teachers = []
    original = progressive.target

    def noting(teacher, sample, levels, count, conditions, lesson):
        teachers.append((count, teacher.guidance, teacher.net))
        assert set(levels.tolist()) <= set(teacher.walk.grid(count)[:-1])
        return original(teacher, sample, levels, count, conditions, lesson)

    monkeypatch.setattr(progressive, "target", noting)
    result = progressive.apply(stage(tmp_path), progressive.Config(**SHORT | {"guidance": 3.0, "last": 1}))
    assert [(count, guidance) for count, guidance, _ in teachers] == [(4, 3.0)] * 2 + [(2, 1.0)] * 2 + [(1, 1.0)] * 2
    assert len({id(net) for _, _, net in teachers}) == 3
    training, sampling = result.achieved
    assert (training.requested, training.achieved, training.met) == (6, 6, True)
    assert (sampling.what, sampling.achieved, sampling.met) == ("sampling steps", 1, True)


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 4])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, at):
    config = progressive.Config(**SHORT | {"steps": 3, "checkpoint_every": 2})
    whole = progressive.apply(stage(tmp_path / "whole"), config).module.state_dict()

    def progress(done, total, text):
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        progressive.apply(stage(tmp_path / "killed", progress=progress), config)
    again = progressive.apply(stage(tmp_path / "killed"), config).module.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_a_toy_is_learnt_in_one_step(tmp_path, monkeypatch):
    given = toys.stage(tmp_path, monkeypatch)
    assert toys.near_a_mode(toys.sampled(given.teacher, 1)) == 0.0
    assert toys.near_a_mode(toys.sampled(given.teacher, 16)) > 0.9
    config = progressive.Config(steps=120, first=8, last=1, batch=128, lr=3e-3, pixels=32, precision="float32")
    assert toys.near_a_mode(toys.sampled(progressive.apply(given, config).module, 1)) > 0.75


def test_weights_of_the_error():
    made, wanted = torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 1.0)
    share = torch.full((1, 1, 1, 1), 0.2)  # a signal-to-noise ratio of 1/4
    assert float(progressive.loss_of(made, wanted, share, "snr_plus_one")) == pytest.approx(4 * 1.25)
    assert float(progressive.loss_of(made, wanted, share, "truncated_snr")) == pytest.approx(4.0)


def test_what_cannot_be_done_is_named(tmp_path):
    with pytest.raises(ValidationError, match="first: 12 does not become last: 4 by halving"):
        progressive.Config(first=12, last=4)
    with pytest.raises(UserError, match="this component is none"):
        progressive.apply(stage(tmp_path, diffusion=None), progressive.Config(**SHORT))
    with pytest.raises(UserError, match=r"guidance 3.0 needs the states of an empty text"):
        given = stage(tmp_path, diffusion=tiny.diffusion(guided=False))
        progressive.apply(given, progressive.Config(**SHORT | {"guidance": 3.0}))
    with pytest.raises(UserError, match="first 4 halves 8 steps, of 6 at most"):
        progressive.apply(stage(tmp_path, diffusion=tiny.diffusion(6)), progressive.Config(**SHORT))
