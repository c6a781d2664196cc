"""Progressive distillation: a student takes in one sampling step what its teacher takes in two, again and again.

Source: Salimans and Ho 2022 (arXiv:2202.00512), algorithm 2, its target in appendix G, the weights of eqs. (9) and
(10); the teacher's guidance goes into the student as in Meng et al. 2022 (arXiv:2210.03142), section 3.1.
Differs: discrete levels (the student's steps are those that sampling takes); one strength of guidance, which the recipe
names, in place of a student that takes any; the same number of optimizer steps in every phase.
Cost: per optimizer step two passes of the teacher (four in the first phase, with guidance) and three of the student;
there are `steps` of them in each of log2(first / last) + 1 phases.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from compress.distill import _diffusion, _lesson
from compress.distill._diffusion import Latents, Levels, Teacher, Walk
from compress.distill._loop import Player, Progress, train
from compress.errors import UserError
from compress.files import write_tensors
from compress.records import Inputs, Needs, Prediction, StageInput, StageResult

NEEDS = Needs.TRAINING


class Config(_diffusion.StepLesson):
    """From how many steps to how many, by halving."""

    steps: int = Field(400, ge=1, description="Optimizer steps of each phase.")
    first: int = Field(16, ge=1, le=512, description="Sampling steps after the first phase, half of the teacher's.")
    last: int = Field(4, ge=1, le=512, description="Sampling steps after the last phase.")
    weighting: Literal["snr_plus_one", "truncated_snr"] = Field(
        "snr_plus_one", description="Weight of the error in x: SNR + 1, or SNR but at least 1."
    )

    @model_validator(mode="after")
    def _halves(self) -> "Config":
        if self.last not in self.phases():
            raise ValueError(f"first: {self.first} does not become last: {self.last} by halving")
        return self

    def phases(self) -> list[int]:
        """Sampling steps of each phase's student; to 1 or `last`."""
        found = [self.first]
        while found[-1] > self.last and found[-1] % 2 == 0:
            found.append(found[-1] // 2)
        return found


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Training changes no shape."""
    return prediction


def apply(stage: StageInput, config: Config) -> StageResult:
    """Train a copy of the variant in phases; each phase's student is the teacher of the next."""
    diffusion = _diffusion.refuse(stage, config, "distill.progressive")
    most = diffusion.schedule.num_train_timesteps
    if 2 * config.first > most:
        raise UserError(f"distill.progressive: first {config.first} halves {2 * config.first} steps, of {most} at most")
    student, teacher = _lesson.student_of(stage, config), _diffusion.teacher_of(stage, config)
    whole, notes = Progress(), []
    for index, count in enumerate(config.phases()):
        done = _phase(stage, config, student, teacher, index)
        whole.losses += done.losses
        notes.append(f"{count} sampling steps: {_lesson.tail_of(done)[0]}")
        teacher = replace(teacher, net=copy.deepcopy(student).requires_grad_(False), guidance=1.0)
    training = _lesson.steps_done(whole, len(config.phases()) * config.steps)
    sampling = _diffusion.sampling_steps(config.last, config.phases()[-1])
    return _diffusion.finished(stage, student, (training, sampling), *notes)


def target(
    teacher: Teacher, sample: Latents, levels: Levels, count: int, conditions: Inputs, lesson: _diffusion.StepLesson
) -> Latents:
    """The x_0 that takes a student of `count` steps in one to where two of the teacher's lead (appendix G)."""
    walk = teacher.walk
    middle, end = next_two(walk, levels, count)
    halfway = teacher.step(sample, levels, middle, conditions, lesson)
    reached = teacher.step(halfway, middle, end, conditions, lesson)
    share, there = walk.share(levels), walk.share(end)
    shrunk = ((1 - there) / (1 - share)).sqrt()
    return (reached - shrunk * sample) / (there.sqrt() - shrunk * share.sqrt())


def next_two(walk: Walk, levels: Levels, count: int) -> tuple[Levels, Levels]:
    """The teacher's next level, halfway, and the one after, which is the student's next."""
    fine = walk.grid(2 * count)
    after = {level: (fine[i + 1], fine[i + 2]) for i, level in enumerate(fine[:-2])}
    found = torch.tensor([after[int(level)] for level in levels], device=levels.device)
    return found[:, 0], found[:, 1]


def loss_of(made: Latents, wanted: Latents, share: torch.Tensor, weighting: str) -> torch.Tensor:
    """Squared error of x_0 [n, z, h, w], weighted by the level's signal-to-noise ratio."""
    ratio = share / (1 - share)
    weight = ratio + 1 if weighting == "snr_plus_one" else ratio.clamp_min(1.0)
    return (weight * (made - wanted).square()).mean()


def _phase(stage: StageInput, config: Config, student: nn.Module, teacher: Teacher, index: int) -> Progress:
    """Train the student in place for one halving; a phase that was done before a kill is read back."""
    count, scratch = config.phases()[index], stage.scratch / f"phase-{index}"
    scratch.mkdir(exist_ok=True)
    done = scratch / "student.safetensors"
    if done.exists():
        return _read_back(done, student)
    levels = teacher.walk.grid(count)

    def loss(step: int) -> torch.Tensor:
        drawn = index * config.steps + step
        clean, conditions = _diffusion.clean_at(stage, config, drawn)
        draws = _diffusion.Draws(stage, config, drawn)
        here, _ = draws.of(levels, len(clean))
        sample = teacher.walk.noised(clean, draws.noise(clean), here)
        wanted = target(teacher, sample, here, count, conditions, config)
        made = teacher.walk.clean(sample, _diffusion.called(student, sample, here, conditions, config), here)
        return loss_of(made, wanted, teacher.walk.share(here), config.weighting)

    def told(now: int, total: int, text: str) -> None:
        stage.progress(index * total + now, len(config.phases()) * total, f"{count} sampling steps: {text}")

    player = Player(name="student", module=student, loss=loss)
    state = train([player], config.schedule(), scratch=scratch, progress=told)
    losses = torch.tensor(state.losses, dtype=torch.float64)
    write_tensors(done, {"losses": losses, **{f"student.{n}": t for n, t in student.state_dict().items()}})
    return Progress(losses=state.losses)


def _read_back(path: Path, student: nn.Module) -> Progress:
    from safetensors.torch import load_file

    tensors = load_file(path)
    losses = tensors.pop("losses").tolist()
    student.load_state_dict({name.removeprefix("student."): tensor for name, tensor in tensors.items()})
    student.eval()
    return Progress(losses=losses)
