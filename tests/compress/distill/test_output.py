"""Training lowers the loss, touches only its own copy, and survives a kill to the bit."""

import math
from dataclasses import replace

import pytest
import tiny
import torch

from compress.components import save_variant
from compress.distill import _lesson, _terms, output
from compress.distill._loop import Player, Schedule, share_of, train
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


def test_the_errors_by_their_formulas():
    image, target = torch.full((2, 3, 4, 4), 0.5), torch.full((2, 3, 4, 4), 0.5)
    image[0] += 0.1
    expected = (math.log(0.01 + 1e-5) + math.log(1e-5)) / 2
    assert float(_terms.error(image, target, "log_mse")) == pytest.approx(expected, rel=1e-5)
    assert float(_terms.error(image, target, "mse")) == pytest.approx(0.005, rel=1e-5)
    assert float(_terms.error(image, target, "l1")) == pytest.approx(0.05, rel=1e-5)


def test_lpips_draws_the_student_towards_the_teacher(tmp_path, student):
    plain = distill(tmp_path / "plain", student, steps=2)
    weighted = distill(tmp_path / "lpips", student, steps=2, terms={"lpips": 0.5})
    assert not same_bits(plain.module, weighted.module)


def test_the_discriminator_only_counts_once_it_has_a_say(tmp_path, student):
    unheard = {"adversarial": 1.0, "adversarial_from": 0.9}  # of 4 steps: from the fourth on
    plain, late = distill(tmp_path / "a", student, steps=3), []
    stage = tiny.stage_input(tmp_path / "b", student, progress=lambda d, t, text: late.append(text))
    (tmp_path / "b").mkdir()
    output.apply(stage, output.Config(**SHORT | {"steps": 4, "terms": unheard}))
    without = []
    stage = tiny.stage_input(tmp_path / "c", student, progress=lambda d, t, text: without.append(text))
    (tmp_path / "c").mkdir()
    output.apply(stage, output.Config(**SHORT | {"steps": 4}))
    assert late[:3] == without[:3] and late[3] != without[3]
    assert plain.achieved[0].met


def test_a_discriminator_learns_to_tell_noise_from_flat_pictures():
    generator = torch.Generator().manual_seed(0)
    judge = _terms.discriminator(3, seed=0)
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-3)
    losses = []
    for _ in range(25):
        real, made = torch.rand(4, 3, 32, 32, generator=generator), torch.full((4, 3, 32, 32), 0.5)
        loss = _terms.telling_apart(judge, real, made)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 < losses[0]


def test_a_component_without_pictures_has_no_discriminator(tmp_path):
    stage = tiny.stage_input(tmp_path, tiny.encoder(), teacher=tiny.encoder().module, inputs=torch.rand(2, 3, 32, 32))
    config = output.Config(**SHORT | {"terms": {"adversarial": 1.0}})
    with pytest.raises(UserError, match=r"judges pictures \[n, 3, h, w\]; this component gives \[1, 8, 4, 4\]"):
        output.apply(stage, config)


def test_sampled_latents_have_the_spectrum_and_the_mean_of_the_given_ones_and_another_look():
    given = torch.randn(1, 8, 12, 12, generator=torch.Generator().manual_seed(3)).cumsum(-1)
    (drawn,) = _lesson.sampled((given,), 5, torch.Generator().manual_seed(1))
    for one in drawn:
        moduli = torch.fft.rfft2(one).abs()
        assert torch.allclose(moduli, torch.fft.rfft2(given[0]).abs(), rtol=1e-3, atol=1e-2)
        assert torch.allclose(one.mean((-1, -2)), given[0].mean((-1, -2)), atol=1e-4)
        assert float((one - given[0]).square().mean()) > 0.5 * float(given.var())
        ours, theirs = torch.cov(one.flatten(1)), torch.cov(given[0].flatten(1))
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-2)  # channels keep their correlations
    (again,) = _lesson.sampled((given,), 5, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)


def test_training_without_data_comes_nearer_to_the_teacher_too(tmp_path, student):
    result = distill(tmp_path, student, steps=40, lr=5e-3, source="sampled")
    assert error_db(result.module) > error_db(student.module) + 1.0


def moved_by_one(folder, steps, scores, **schedule):
    """A weight that falls by about 0.1 a step, with validations that give these scores."""
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    seen, left = [], iter(scores)

    def validate(student):
        seen.append(float(student.weight))
        return next(left)

    plan = Schedule(steps=steps, lr=0.1, checkpoint_every=1000, validate_every=2, **schedule)
    player = Player(name="student", module=module, loss=lambda step: module.weight.sum())
    state = train([player], plan, scratch=folder, progress=lambda *a: None, validate=validate)
    return float(module.weight.detach()), seen, state


def test_the_best_validation_is_kept_the_first_of_equals(tmp_path):
    weight, seen, state = moved_by_one(tmp_path, 9, [1.0, 3.0, 2.0, 3.0, 0.0])
    assert len(seen) == 5 and len(set(seen)) == 5  # the last step is validated though 9 is odd
    assert weight == pytest.approx(seen[1]) and state.best_validation == 1 and len(state.losses) == 9


def test_training_stops_when_patience_is_spent(tmp_path):
    weight, seen, state = moved_by_one(tmp_path, 40, [1.0, 3.0, 2.0, 2.9, 3.0], patience=3)
    assert len(state.losses) == 10 and weight == pytest.approx(seen[1])
    assert state.spent(3) and not state.spent(4)


def test_a_validation_that_is_no_number_stops(tmp_path):
    with pytest.raises(UserError, match="validation after step 2 gave nan"):
        moved_by_one(tmp_path, 4, [float("nan")])


def test_validations_and_their_keeping_are_reported(tmp_path, student):
    result = distill(tmp_path, student, steps=4, validate_every=2, ema_decay=0.5)
    assert any(note.startswith("kept validation") and "psnr" in note for note in result.notes)


def test_patience_without_validations_is_refused(tmp_path, student):
    with pytest.raises(UserError, match="patience counts validations; give validate_every"):
        distill(tmp_path, student, steps=4, patience=2)


def test_a_killed_run_with_everything_on_ends_with_the_same_bits(tmp_path, student):
    config = {
        "steps": 9,
        "checkpoint_every": 3,
        "ema_decay": 0.9,
        "validate_every": 2,
        "terms": {"adversarial": 0.1, "adversarial_from": 0.2},
    }
    whole = distill(tmp_path / "whole", student, **config)
    (tmp_path / "killed").mkdir()
    stage = tiny.stage_input(tmp_path / "killed", student, progress=killed_at(8))
    with pytest.raises(Killed):
        output.apply(stage, output.Config(**SHORT | config))
    again = distill(tmp_path / "killed", student, **config)
    assert same_bits(again.module, whole.module) and again.notes == whole.notes


def test_the_running_mean_is_the_mean_of_the_weights(tmp_path):
    """A parameter that moves by hand: the loop's mean against a float64 recursion."""
    module = torch.nn.Linear(1, 1, bias=False)
    path: list[float] = []

    def loss(step):
        path.append(float(module.weight.detach()))
        return (module.weight * (1 if step % 3 else -2)).sum()

    schedule = Schedule(steps=12, lr=0.1, checkpoint_every=100, ema_decay=0.8)
    state = train(
        [Player(name="student", module=module, loss=loss)], schedule, scratch=tmp_path, progress=lambda *a: None
    )
    final = []

    def record(done, total, text):
        final.append(float(twin.weight.detach()))

    twin = torch.nn.Linear(1, 1, bias=False)
    twin.weight.data.fill_(path[0])
    plain = Schedule(steps=12, lr=0.1, checkpoint_every=100)
    train(
        [Player(name="student", module=twin, loss=lambda s: (twin.weight * (1 if s % 3 else -2)).sum())],
        plain,
        scratch=tmp_path / "x",
        progress=record,
    )
    mean = final[0]
    for index, weight in enumerate(final, start=1):
        kept = min(0.8, index / (index + 9))
        mean = kept * mean + (1 - kept) * weight
    assert float(module.weight.detach()) == pytest.approx(mean, rel=1e-5)
    assert len(state.losses) == 12


def test_two_processes_train_as_one_on_both_their_crops(tmp_path):
    """Averaged gradients of two processes equal the gradient of the mean over both processes' losses."""
    context = torch.multiprocessing.get_context("spawn")
    workers = [context.Process(target=_one_of_two, args=(rank, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    found = [float((tmp_path / f"{rank}.txt").read_text()) for rank in range(2)]
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(1.0)
    schedule = Schedule(steps=5, lr=0.1, checkpoint_every=100)

    def mean(step):
        return sum(_pull(module, 2 * step + rank) for rank in range(2)) / 2

    train([Player(name="student", module=module, loss=mean)], schedule, scratch=tmp_path, progress=lambda *a: None)
    assert found[0] == found[1] == pytest.approx(float(module.weight.detach()), rel=1e-6)


def _pull(module, drawn):
    return (module.weight - drawn).square().sum()


def _one_of_two(rank, folder):
    from pathlib import Path

    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(1.0)
    schedule = Schedule(steps=5, lr=0.1, checkpoint_every=100)
    player = Player(name="student", module=module, loss=lambda step: _pull(module, share_of(step)))
    train([player], schedule, scratch=Path(folder), progress=lambda *a: None)
    (Path(folder) / f"{rank}.txt").write_text(repr(float(module.weight.detach())))
    distributed.destroy_process_group()


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
