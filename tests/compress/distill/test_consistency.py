"""At the clean latents the function is the identity; target and mean are as defined; a toy is learnt in one step."""

import pytest
import tiny
import torch
import toys

from compress.distill import _diffusion, consistency
from compress.distill._diffusion import CLEAN
from compress.errors import UserError

SHORT = {"steps": 3, "batch": 2, "pixels": 32, "precision": "float32", "grid": 10}


def stage(folder, **options):
    folder.mkdir(exist_ok=True)
    given = {"diffusion": tiny.diffusion(), "inputs": tiny.unet_inputs()} | options
    return tiny.stage_input(folder, tiny.unet(), teacher=tiny.unet().module, **given)


def test_the_boundary_condition():
    """f(x, end) = x whatever the network; far from it the network's x_0 alone counts."""
    walk = _diffusion.walk(tiny.diffusion().schedule)
    x, _, context = tiny.unet_inputs(2, 4)
    config = consistency.Config(**SHORT)

    class Wild(torch.nn.Module):
        def forward(self, sample, levels, *conditions):
            return 1e3 * torch.ones_like(sample)

    wild = Wild()

    ends = torch.full((2,), CLEAN)
    assert torch.equal(consistency.consistent(walk, wild, x, ends, (context,), config), x)
    far = torch.full((2,), 999)
    seen = consistency.consistent(walk, wild, x, far, (context,), config)
    assert torch.allclose(seen, walk.clean(x, wild(x, far), far), rtol=1e-4)
    skip, out = consistency.boundary(torch.arange(-1, 999))
    assert torch.all(skip.diff(dim=0) <= 0) and torch.all(out.diff(dim=0) > -1e-6)
    # sigma_data^2 / ((s t)^2 + sigma_data^2) and s t / sqrt((s t)^2 + sigma_data^2)
    assert float(skip[3]) == pytest.approx(0.25 / (30**2 + 0.25)) and float(out[3]) == pytest.approx(30 / 900.25**0.5)


def test_the_mean_follows_the_student():
    both = consistency.WithMean(torch.nn.Linear(2, 1))
    before = both.mean.weight.clone()
    with torch.no_grad():
        both.student.weight += 1.0
    both.follow(0.75)
    assert torch.allclose(both.mean.weight, before + 0.25) and not both.mean.weight.requires_grad


def test_a_perfect_student_has_nothing_to_learn(tmp_path, monkeypatch):
    """Where both ends of a jump give the same x_0 the loss is 0: data that is one single point."""
    point = torch.full((1, 8, 4, 4), 0.7)
    walk = _diffusion.walk(tiny.diffusion().schedule)

    class Perfect(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.nothing = torch.nn.Parameter(torch.zeros(1))

        def forward(self, sample, levels, *conditions):
            share = walk.share(levels.long())
            noise = (sample - share.sqrt() * point) / (1 - share).sqrt()
            return share.sqrt() * noise - (1 - share).sqrt() * point + self.nothing

    losses = []
    monkeypatch.setattr(consistency._lesson, "build", lambda arch: Perfect())
    given = tiny.stage_input(
        tmp_path, tiny.Variant(component="x", arch=tiny.unet().arch, module=Perfect()), teacher=Perfect(),
        diffusion=tiny.Diffusion(schedule=walk.schedule, clean=lambda s, b, p: (point.expand(b, -1, -1, -1),), empty=None),
        progress=lambda done, total, text: losses.append(float(text.removeprefix("loss "))),
    )  # fmt: skip
    consistency.apply(given, consistency.Config(**SHORT | {"distance": "squared", "steps": 1}))
    assert losses[0] < 1e-6


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [3])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, at):
    config = consistency.Config(**SHORT | {"steps": 4, "checkpoint_every": 2, "guidance": 2.0})
    whole = consistency.apply(stage(tmp_path / "whole"), config).module.state_dict()

    def progress(done, total, text):
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        consistency.apply(stage(tmp_path / "killed", progress=progress), config)
    again = consistency.apply(stage(tmp_path / "killed"), config).module.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_a_toy_is_learnt_in_one_step(tmp_path, monkeypatch):
    given = toys.stage(tmp_path, monkeypatch)
    config = consistency.Config(steps=500, grid=32, batch=128, lr=3e-3, pixels=32, precision="float32")
    assert toys.near_a_mode(toys.sampled(consistency.apply(given, config).module, 1)) > 0.6


def test_distances():
    made, wanted = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    assert float(consistency.distance(made, wanted, "squared")) == pytest.approx(4.5)
    assert float(consistency.distance(made, wanted, "huber")) == pytest.approx((3.0 - 1e-3) / 2, rel=1e-4)


def test_a_grid_finer_than_the_schedule_is_refused(tmp_path):
    with pytest.raises(UserError, match="grid 10, but the schedule has 6 levels"):
        consistency.apply(stage(tmp_path, diffusion=tiny.diffusion(6)), consistency.Config(**SHORT))
