"""Consistency distillation: from anywhere on the teacher's path the student sees the path's end, in one step.

Source: Song et al. 2023 (arXiv:2303.01469): boundary condition of eq. (5), loss of eq. (7), algorithm 2; in latents,
with skipped levels and the teacher's guidance, Luo et al. 2023 (arXiv:2310.04378), sections 4.1 to 4.3, algorithm 1.
Differs: one strength of guidance, which the recipe names (LCM's students take any); the boundary is at the clean
latents themselves, one level below the first, so that the teacher's last step ends on it.
Cost: per optimizer step one pass of the teacher (two with guidance), one of the mean, three of the student.
"""

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from compress.distill import _diffusion, _lesson
from compress.distill._diffusion import Latents, Levels, Walk
from compress.distill._loop import Player, train
from compress.errors import UserError
from compress.records import Inputs, Needs, Prediction, StageInput, StageResult

NEEDS = Needs.TRAINING
DATA_DEVIATION = 0.5  # LCM's, with levels counted in tenths of one: c_skip is 1 at the end and almost 0 elsewhere
LEVEL_SCALE = 10.0
HUBER = 1e-3  # LCM's: where the loss turns from squared to absolute


class Config(_diffusion.StepLesson):
    """Along which steps of the teacher, and how far the target lags behind."""

    grid: int = Field(50, ge=2, le=1000, description="Steps of the teacher's sampling between whose levels it jumps.")
    target_decay: float = Field(0.95, ge=0, lt=1, description="Of the running mean of weights that makes the target.")
    distance: Literal["huber", "squared"] = Field("huber", description="Between student and target.")


class WithMean(nn.Module):
    """A student and the running mean of its weights, one module so that a checkpoint holds both."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.mean = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the mean towards the student."""
        ours, theirs = self.mean.state_dict(), self.student.state_dict()
        for name, tensor in ours.items():
            tensor.lerp_(theirs[name], 1 - decay) if tensor.is_floating_point() else tensor.copy_(theirs[name])


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Training changes no shape."""
    return prediction


def apply(stage: StageInput, config: Config) -> StageResult:
    """Train a copy of the variant to be consistent along the teacher's paths."""
    diffusion = _diffusion.refuse(stage, config, "distill.consistency")
    most = diffusion.schedule.num_train_timesteps
    if config.grid > most:
        raise UserError(f"distill.consistency: grid {config.grid}, but the schedule has {most} levels")
    both = WithMean(_lesson.student_of(stage, config))
    teacher = _diffusion.teacher_of(stage, config)
    walk = teacher.walk
    levels = walk.grid(config.grid)

    def loss(step: int) -> torch.Tensor:
        if step:
            both.follow(config.target_decay)
        clean, conditions = _diffusion.clean_at(stage, config, step)
        draws = _diffusion.Draws(stage, config, step)
        here, following = draws.of(levels, len(clean))
        sample = walk.noised(clean, draws.noise(clean), here)
        with torch.no_grad():
            nearer = teacher.step(sample, here, following, conditions, config)
            wanted = consistent(walk, both.mean, nearer, following, conditions, config)
        made = consistent(walk, both.student, sample, here, conditions, config)
        return distance(made, wanted, config.distance)

    player = Player(name="student", module=both, loss=loss)
    state = train([player], config.schedule(), scratch=stage.scratch, progress=stage.progress)
    done = (_lesson.steps_done(state, config.steps), _diffusion.sampling_steps(1, 1))
    return _diffusion.finished(stage, both.student, done, *_lesson.tail_of(state))


def consistent(
    walk: Walk, net: nn.Module, sample: Latents, levels: Levels, conditions: Inputs, lesson: _diffusion.StepLesson
) -> Latents:
    """The consistency function f(x_t, t) = c_skip x_t + c_out x_0(x_t, t), which is x itself at CLEAN."""
    skip, out = boundary(levels)
    made = walk.clean(sample, _diffusion.called(net, sample, levels, conditions, lesson), levels)
    return skip * sample + out * made


def boundary(levels: Levels) -> tuple[torch.Tensor, torch.Tensor]:
    """c_skip and c_out [n, 1, 1, 1]: 1 and 0 at CLEAN."""
    distance_to_end = (levels + 1).float()[:, None, None, None] * LEVEL_SCALE
    total = distance_to_end.square() + DATA_DEVIATION**2
    return DATA_DEVIATION**2 / total, distance_to_end / total.sqrt()


def distance(made: Latents, wanted: Latents, kind: str) -> torch.Tensor:
    """Mean of the elements' squared or pseudo-Huber distances."""
    squared = (made - wanted).square()
    return squared.mean() if kind == "squared" else ((squared + HUBER**2).sqrt() - HUBER).mean()
