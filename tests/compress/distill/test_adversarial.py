"""Heads see the teacher's features, losses are the paper's, a toy is learnt in one step."""

import pytest
import tiny
import torch
import toys

from compress.distill import _diffusion, adversarial
from compress.errors import UserError

SHORT = {"steps": 3, "batch": 2, "pixels": 32, "precision": "float32"}


def stage(folder, **options):
    folder.mkdir(exist_ok=True)
    given = {"diffusion": tiny.diffusion(), "inputs": tiny.unet_inputs()} | options
    return tiny.stage_input(folder, tiny.unet(), teacher=tiny.unet().module, **given)


def test_heads_judge_every_stage_of_the_unet(tmp_path):
    names, channels = adversarial.features_of(tiny.unet().module, stage(tmp_path))
    assert {"down_blocks.0", "down_blocks.1", "up_blocks.0", "up_blocks.1"} <= set(names)
    assert dict(zip(names, channels, strict=True))["down_blocks.1"] == 16
    judge = adversarial.Judge(channels, 12, seed=0)
    features = [torch.randn(2, c, 3, 3, generator=torch.Generator().manual_seed(c)) for c in channels]
    one, two = (judge(features, torch.full((2, 5, 12), fill)) for fill in (0.0, 1.0))
    assert all(v.shape == (2, 1, 3, 3) for v in one)
    assert not any(torch.equal(a, b) for a, b in zip(one, two, strict=True))  # they know the text
    with pytest.raises(UserError, match="no block of the teacher gives maps"):
        adversarial.features_of(torch.nn.Linear(3, 3), tiny.stage_input(tmp_path, inputs=torch.zeros(1, 3)))


def test_the_discriminators_loss_is_hinge_and_the_slope_on_real_features():
    """Heads that are one known linear function: verdict 2 x, so its slope is 2 at each of the four places."""

    class Doubled(adversarial.Judge):
        def __init__(self):
            super().__init__([1], 0, 0)

        def forward(self, features, states):
            return [2.0 * f for f in features]

    real, fake = torch.full((3, 1, 2, 2), 0.2), torch.full((3, 1, 2, 2), -0.1)
    hinge = (1 - 0.4) + (1 - 0.2)
    assert adversarial.told_apart(Doubled(), [real], [fake], None, 0.0).item() == pytest.approx(hinge)
    with_slope = adversarial.told_apart(Doubled(), [real], [fake], None, 0.01).item()
    assert with_slope == pytest.approx(hinge + 0.01 * 4 * 2.0**2)
    far = adversarial.told_apart(Doubled(), [real + 9], [fake - 9], None, 0.0).item()
    assert far == 0.0


def test_distillation_is_weighted_by_the_signal_and_gives_the_teacher_no_gradient(tmp_path):
    given, config = stage(tmp_path), adversarial.Config(**SHORT | {"guidance": 2.0})
    teacher = _diffusion.teacher_of(given, config)
    clean, context = given.diffusion.clean(0, 2, 32)
    made = clean.clone().requires_grad_()
    draws, again = (_diffusion.Draws(given, config, 0) for _ in range(2))
    loss = adversarial.distillation(teacher, made, draws, (context,), config)
    at = again.whole(0, 1000, 2)
    noised = teacher.walk.noised(clean, again.noise(clean), at)
    wanted = teacher.clean(noised, at, (context,), config)
    factor = teacher.walk.share(at).sqrt()
    assert loss.item() == pytest.approx(float((factor * (clean - wanted).square()).mean()), rel=1e-5)
    (slope,) = torch.autograd.grad(loss, made)
    assert torch.allclose(slope, 2 * factor * (clean - wanted) / clean.numel(), atol=1e-6)


class Killed(Exception):
    pass


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    config = adversarial.Config(**SHORT | {"checkpoint_every": 2})
    whole = adversarial.apply(stage(tmp_path / "whole"), config)

    def progress(done, total, text):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        adversarial.apply(stage(tmp_path / "killed", progress=progress), config)
    again = adversarial.apply(stage(tmp_path / "killed"), config).module.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.module.state_dict().items())
    assert whole.achieved[1].what == "sampling steps" and whole.achieved[1].achieved == 4


def test_a_toy_is_learnt_in_one_step(tmp_path, monkeypatch):
    given = toys.stage(tmp_path, monkeypatch)
    assert toys.from_a_mode(toys.sampled(given.teacher, 1)) > 0.8
    config = adversarial.Config(
        steps=250, batch=64, lr=3e-3, students=1, distillation=0.0, judge_lr_factor=3.0, pixels=32, precision="float32"
    )
    assert toys.from_a_mode(toys.sampled(adversarial.apply(given, config).module, 1)) < 0.5
