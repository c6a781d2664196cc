"""Features are matched by name, measured in the teacher's units, and draw the student's blocks to the teacher's."""

from dataclasses import replace

import pytest
import tiny
import torch

from compress.distill import feature
from compress.distill._watching import watched
from compress.errors import UserError
from compress.prune import width
from compress.quantize import rtn
from compress.records import Variant

SHORT = {"batch": 2, "pixels": 32, "precision": "float32"}


def noisy(amount=0.3):
    """The tiny decoder with its weights disturbed: same blocks, same widths."""
    variant = tiny.decoder()
    module = tiny.decoder().module
    generator = torch.Generator().manual_seed(7)
    state = {
        n: t + amount * t.std() * torch.randn(t.shape, generator=generator) if t.dim() > 1 else t
        for n, t in module.state_dict().items()
    }
    module.load_state_dict(state)
    return replace(variant, module=module)


def narrow(folder):
    folder.mkdir(exist_ok=True)
    result = width.apply(tiny.stage_input(folder), width.Config(ratio=0.5, round_to=4))
    return Variant(component="tiny/decoder", arch=result.arch, module=result.module)


def distill(folder, student, **config):
    folder.mkdir(exist_ok=True)
    return feature.apply(tiny.stage_input(folder, student), feature.Config(**SHORT | config))


def block_error(module):
    """Of every common block's output on inputs that were never trained on, the teacher's inputs running through it."""
    teacher, x = tiny.decoder().module, tiny.latents(seed=5)
    names = feature.blocks_of(teacher)
    with torch.no_grad(), watched(teacher, names) as theirs:
        teacher(x)
    with torch.no_grad(), watched(module, names) as ours:
        module(x)
    return sum(float(feature.feature_error(ours[n], theirs[n])) for n in theirs) / len(theirs)


@pytest.mark.parametrize("mode", ["joint", "blockwise"])
def test_blocks_come_nearer_to_the_teachers_on_inputs_never_seen(tmp_path, mode):
    student = noisy()
    result = distill(tmp_path, student, steps=30, lr=3e-3, mode=mode)
    assert block_error(result.module) < 0.6 * block_error(student.module)
    assert all(item.met for item in result.achieved)


def test_a_narrower_student_is_matched_by_its_energy_maps(tmp_path):
    student = narrow(tmp_path / "narrow")
    result = distill(tmp_path / "kd", student, steps=30, lr=3e-3)
    assert block_error(result.module) < 0.8 * block_error(student.module)


def test_the_error_is_in_the_teachers_own_units():
    target = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert float(feature.feature_error(torch.zeros_like(target), target)) == pytest.approx(1.0)
    assert float(feature.feature_error(1.1 * target, target)) == pytest.approx(0.01, rel=1e-4)
    assert float(feature.feature_error(110 * target, 100 * target)) == pytest.approx(0.01, rel=1e-4)


def test_energy_maps_by_hand():
    made, target = torch.zeros(1, 2, 1, 2), torch.zeros(1, 1, 1, 2)
    made[0, :, 0, 0], target[0, 0, 0] = 3.0, torch.tensor([1.0, 1.0])  # energies (9, 0) and (1, 1), to length 1
    unit = 0.5**0.5
    expected = ((1 - unit) ** 2 + unit**2) / 2 / 0.5
    assert float(feature.feature_error(made, target)) == pytest.approx(expected, rel=1e-5)


def test_blocks_that_cannot_be_matched_are_named(tmp_path):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = tiny.decoder().module
            self.spare = torch.nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.inner(x)

    student, teacher = Odd(), Odd()
    names, skipped = feature.matched(student, teacher, (tiny.latents(1),), feature.Config(**SHORT))
    assert names == ["inner"]
    assert [(s.name, s.reason) for s in skipped] == [("spare", "gives no single tensor, or was not called")]
    with pytest.raises(UserError, match="'nothing' matches no block; blocks are inner, spare"):
        feature.matched(student, teacher, (tiny.latents(1),), feature.Config(features=("nothing",)))


def test_a_quantized_student_is_refused(tmp_path):
    quantized = rtn.apply(tiny.stage_input(tmp_path), rtn.Config())
    with pytest.raises(UserError, match=r"train with distill\.qat"):
        distill(tmp_path, Variant(component="x", arch=quantized.arch, module=quantized.module))


class Killed(Exception):
    pass


def test_a_killed_blockwise_run_ends_with_the_same_bits(tmp_path):
    config = feature.Config(**SHORT | {"steps": 4, "checkpoint_every": 2, "mode": "blockwise"})
    (tmp_path / "whole").mkdir()
    whole = feature.apply(tiny.stage_input(tmp_path / "whole", noisy()), config)

    def killed(done, total, text):
        if done == 7:
            raise Killed

    (tmp_path / "killed").mkdir()
    with pytest.raises(Killed):
        feature.apply(tiny.stage_input(tmp_path / "killed", noisy(), progress=killed), config)
    again = feature.apply(tiny.stage_input(tmp_path / "killed", noisy()), config)
    one, other = whole.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(one[n], other[n]) for n in one)
