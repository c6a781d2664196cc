"""Training lowers the loss, touches only its own copy, and survives a kill to the bit."""

import math
from dataclasses import replace

import pytest
import tiny
import torch

from compress.components import save_variant
from compress.distill import output
from compress.distill._loop import Schedule
from compress.errors import UserError
from compress.prune import width
from compress.quantize import rtn
from compress.records import Prediction, Variant

SHORT = {"batch": 2, "pixels": 32, "precision": "float32"}


@pytest.fixture
def student(tmp_path):
    """The tiny decoder with half of its channels."""
    result = width.apply(tiny.stage_input(tmp_path), width.Config(ratio=0.5, round_to=4))
    return Variant(component="tiny/decoder", arch=result.arch, module=result.module)


def error_db(module):
    x = tiny.latents(seed=5)
    with torch.no_grad():
        return float(-10 * torch.log10((module(x) - tiny.decoder().module(x)).square().mean()))


def distill(folder, student, **config):
    folder.mkdir(exist_ok=True)
    return output.apply(tiny.stage_input(folder, student), output.Config(**SHORT | config))


def same_bits(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_the_student_comes_nearer_to_its_teacher_on_inputs_it_never_saw(tmp_path, student):
    seen = []
    stage = tiny.stage_input(tmp_path, student, progress=lambda done, total, text: seen.append((done, total, text)))
    before = {n: t.clone() for n, t in student.module.state_dict().items()}
    result = output.apply(stage, output.Config(**SHORT | {"steps": 60, "lr": 5e-3}))
    assert error_db(result.module) > error_db(student.module) + 1.0
    losses = [float(text.removeprefix("loss ")) for _, _, text in seen]
    assert [done for done, _, _ in seen] == list(range(1, 61)) and {total for _, total, _ in seen} == {60}
    assert sum(losses[-10:]) < sum(losses[:10]) - 1.0
    assert all(torch.equal(t, before[n]) for n, t in student.module.state_dict().items())
    assert all(p.grad is None for p in stage.teacher.parameters())
    assert result.arch == student.arch and not result.module.training
    assert not any(p.requires_grad for p in result.module.parameters())
    assert result.achieved[0].met and result.achieved[0].achieved == 60


class Killed(Exception):
    pass


def killed_at(step):
    def progress(done, total, text):
        if done == step:
            raise Killed

    return progress


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("steps_before", [(1,), (4,), (5, 11)])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, student, steps_before, precision):
    config = {"steps": 12, "checkpoint_every": 4, "precision": precision}
    whole = distill(tmp_path / "whole", student, **config)
    (tmp_path / "killed").mkdir()
    for step in steps_before:
        stage = tiny.stage_input(tmp_path / "killed", student, progress=killed_at(step))
        with pytest.raises(Killed):
            output.apply(stage, output.Config(**SHORT | config))
    last = steps_before[-1]
    assert (tmp_path / "killed" / "checkpoint.safetensors").exists() == (last > 4)
    resumed_at = []
    stage = tiny.stage_input(tmp_path / "killed", student, progress=lambda done, total, text: resumed_at.append(done))
    again = output.apply(stage, output.Config(**SHORT | config))
    assert resumed_at[0] == (last - 1) // 4 * 4 + 1  # not from the beginning
    assert same_bits(again.module, whole.module) and again.notes == whole.notes
    for name, module in (("a", whole.module), ("b", again.module)):
        save_variant(Variant(component="x", arch=student.arch, module=module), tmp_path / name)
    files = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_the_data_decides_the_bits(tmp_path, student):
    one, other = distill(tmp_path / "1", student, steps=3), distill(tmp_path / "2", student, steps=3)
    assert same_bits(one.module, other.module)
    stage = tiny.stage_input(tmp_path, student)
    shifted = replace(stage, sample=lambda step, batch, pixels: tiny.sample(step + 100, batch, pixels))
    assert not same_bits(output.apply(shifted, output.Config(**SHORT | {"steps": 3})).module, one.module)


def test_a_loss_that_is_no_number_stops_with_a_message(tmp_path, student):
    def nothing(step, batch, pixels):
        return (tiny.sample(step, batch, pixels)[0] * (float("nan") if step == 2 else 1.0),)

    stage = tiny.stage_input(tmp_path, student)
    config = output.Config(**SHORT | {"steps": 6, "checkpoint_every": 1})
    with pytest.raises(UserError, match=r"diverged at step 3 \(loss nan\); lower lr \(now 0.001\)"):
        output.apply(replace(stage, sample=nothing), config)


def test_a_quantized_student_is_refused(tmp_path):
    quantized = rtn.apply(tiny.stage_input(tmp_path), rtn.Config())
    variant = Variant(component="x", arch=quantized.arch, module=quantized.module)
    with pytest.raises(UserError, match="put it before the quantize stage"):
        distill(tmp_path, variant, steps=1)


def test_the_distance_by_its_formula():
    image, target = torch.full((2, 3, 4, 4), 0.5), torch.full((2, 3, 4, 4), 0.5)
    image[0] += 0.1
    expected = (math.log(0.01 + 1e-5) + math.log(1e-5)) / 2
    assert float(output.distance(image, target, None, 0.0)) == pytest.approx(expected, rel=1e-5)


def test_lpips_is_added_with_its_weight():
    image, target = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    plain = output.distance(image, target, None, 0.0)
    with_lpips = output.distance(image, target, lambda a, b: torch.tensor([2.0, 4.0]), 0.5)
    assert float(with_lpips - plain) == pytest.approx(1.5)


def test_the_schedule_warms_up_peaks_at_lr_and_ends_at_a_hundredth():
    schedule = Schedule(steps=200, lr=1e-3, checkpoint_every=50)
    rates = [schedule.lr_at(step) for step in range(200)]
    assert rates[0] == pytest.approx(1e-4) and max(rates) == pytest.approx(1e-3) and rates.index(max(rates)) == 9
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1e-5, rel=0.05)
    assert Schedule(steps=1, lr=1e-3, checkpoint_every=50).lr_at(0) == 1e-3


def test_training_predicts_the_shape_it_was_given():
    arch = tiny.decoder().arch
    prediction = Prediction(ends=(arch,))
    assert output.predict(prediction, output.Config()) == prediction


@pytest.mark.parametrize("config", [{"steps": 0}, {"lr": 0.0}, {"pixels": 33}, {"pixels": 8}, {"batch": -1}])
def test_options_out_of_range(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        output.Config(**config)
