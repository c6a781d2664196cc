"""What step distillations share: noise levels, jumps between them, the guided teacher, where clean latents come from.

Levels are indices into the training schedule; `CLEAN` (-1) is behind its first: no noise at all.

Source: q(x_t|x_0) of Ho et al. 2020 (arXiv:2006.11239), eq. (4); the jump of Song et al. 2021 (arXiv:2010.02502),
eq. (12) with sigma 0; guidance of Ho and Salimans 2022 (arXiv:2207.12598), eq. (6).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import nn

from compress.distill import _lesson
from compress.distill._loop import share_of
from compress.errors import UserError
from compress.records import Achieved, Diffusion, Inputs, StageInput, StageResult
from compress.sampling.schedule import Schedule, signal_shares, timesteps

CLEAN = -1
Latents = Float[torch.Tensor, "n z h w"]
Levels = Int[torch.Tensor, " n"]


class StepLesson(_lesson.Training):
    """The keys that all step distillations share."""

    lr: float = Field(1e-4, gt=0, lt=1, description="Largest learning rate (Adam, warm-up then cosine).")
    pixels: int = Field(128, ge=32, le=1024, multiple_of=8, description="Side of the pictures that latents stand for.")
    guidance: float = Field(1.0, ge=0, le=30, description="Of the teacher; the student then runs without. 1: none.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """The teacher's noise schedule, and what a prediction means at each level; arithmetic for levels [n]."""

    schedule: Schedule
    shares: Float[torch.Tensor, " levels"]  # of the signal, at every level and, last, at CLEAN

    def share(self, levels: Levels) -> Float[torch.Tensor, "n 1 1 1"]:
        """Share of the signal at each level."""
        return self.shares.to(levels.device)[levels][:, None, None, None]

    def noised(self, clean: Latents, noise: Latents, levels: Levels) -> Latents:
        """x_t of clean latents."""
        share = self.share(levels)
        return share.sqrt() * clean + (1 - share).sqrt() * noise

    def clean(self, sample: Latents, prediction: Latents, levels: Levels) -> Latents:
        """What a prediction at x_t says of x_0."""
        share = self.share(levels)
        if self.schedule.prediction_type == "v_prediction":
            return share.sqrt() * sample - (1 - share).sqrt() * prediction
        return (sample - (1 - share).sqrt() * prediction) / share.sqrt()

    def jump(self, sample: Latents, clean: Latents, levels: Levels, following: Levels) -> Latents:
        """One deterministic DDIM step from x_t to the next level, given what x_0 is taken to be."""
        share, there = self.share(levels), self.share(following)
        noise = (sample - share.sqrt() * clean) / (1 - share).sqrt()
        return there.sqrt() * clean + (1 - there).sqrt() * noise

    def grid(self, count: int) -> list[int]:
        """The levels of `count` sampling steps, noisiest first, and CLEAN behind them."""
        return [*(int(step) for step in timesteps(self.schedule, count)), CLEAN]


def walk(schedule: Schedule) -> Walk:
    """The arithmetic of a schedule, in float32."""
    shares = torch.from_numpy(signal_shares(schedule))
    return Walk(schedule=schedule, shares=torch.cat([shares, torch.ones(1, dtype=torch.float64)]).float())


def refuse(stage: StageInput, lesson: StepLesson, name: str) -> Diffusion:
    """What the component's diffusion is; refuses components that have none.

    Raises:
        UserError: no diffusion model, guidance without the states of an empty text, or what no training can do.
    """
    _lesson.refuse_training(stage, lesson, name)
    if stage.diffusion is None:
        raise UserError(
            f"{name} takes steps out of a diffusion UNet's sampling; this component is none, or does not have beside "
            "it encoder/, text_encoder/, tokenizer.json, scheduler.json and latents.json of its training"
        )
    if lesson.guidance != 1.0 and stage.diffusion.empty is None:
        raise UserError(f"{name}: guidance {lesson.guidance} needs the states of an empty text, which this data lacks")
    return stage.diffusion


def clean_at(stage: StageInput, lesson: StepLesson, step: int) -> tuple[torch.Tensor, Inputs]:
    """One step's clean latents and their conditions, on the training device."""
    assert stage.diffusion is not None
    latents, *conditions = stage.diffusion.clean(share_of(step), lesson.batch, lesson.pixels)
    return _lesson.laid_out(latents).to(lesson.device), tuple(x.to(lesson.device) for x in conditions)


class Draws:
    """The random numbers of one step: the same for the same seed and step, whatever was drawn before."""

    def __init__(self, stage: StageInput, lesson: StepLesson, step: int) -> None:
        self._generator = torch.Generator().manual_seed(stage.seed * 2**20 + share_of(step) + 1)
        self._device = lesson.device

    def noise(self, like: torch.Tensor) -> torch.Tensor:
        """Standard normal, of the shape and layout of `like`."""
        return _lesson.laid_out(torch.randn(like.shape, generator=self._generator)).to(self._device)

    def whole(self, low: int, high: int, count: int) -> Levels:
        """Whole numbers from `low` up to, but not including, `high`."""
        return torch.randint(low, high, (count,), generator=self._generator).to(self._device)

    def of(self, levels: Sequence[int], count: int) -> tuple[Levels, Levels]:
        """Some of the levels but the last, each with the one that follows it."""
        chosen = torch.randint(len(levels) - 1, (count,), generator=self._generator)
        listed = torch.tensor(levels)
        return listed[chosen].to(self._device), listed[chosen + 1].to(self._device)


def called(
    net: nn.Module, sample: Latents, levels: Levels, conditions: Inputs, lesson: StepLesson
) -> Float[torch.Tensor, "n z_out h w"]:
    """The network's prediction, in float32. At CLEAN it is asked for the first level."""
    with _lesson.precision(lesson):
        found: torch.Tensor = net(sample, levels.clamp_min(0).float(), *conditions)
    return found.float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """The network that is followed; with guidance it is asked twice."""

    net: nn.Module
    walk: Walk
    guidance: float
    empty: Inputs | None  # conditions of an empty text [1, ...]

    def clean(self, sample: Latents, levels: Levels, conditions: Inputs, lesson: StepLesson) -> Latents:
        """x_0 as the teacher sees it in x_t; no gradient."""
        with torch.no_grad():
            made = called(self.net, sample, levels, conditions, lesson)
            if self.guidance != 1.0:
                assert self.empty is not None
                without = tuple(e.to(sample.device).expand(len(sample), *e.shape[1:]) for e in self.empty)
                base = called(self.net, sample, levels, without, lesson)
                made = base + self.guidance * (made - base)
            return self.walk.clean(sample, made, levels)

    def step(
        self, sample: Latents, levels: Levels, following: Levels, conditions: Inputs, lesson: StepLesson
    ) -> Latents:
        """One DDIM step of the teacher."""
        return self.walk.jump(sample, self.clean(sample, levels, conditions, lesson), levels, following)


def teacher_of(stage: StageInput, lesson: StepLesson) -> Teacher:
    """The component as it was loaded, with the recipe's guidance."""
    assert stage.diffusion is not None
    return Teacher(
        net=_lesson.teacher_of(stage, lesson),
        walk=walk(stage.diffusion.schedule),
        guidance=lesson.guidance,
        empty=stage.diffusion.empty,
    )


def finished(stage: StageInput, student: nn.Module, achieved: tuple[Achieved, ...], *notes: str) -> StageResult:
    """The trained variant and its account."""
    trained = _lesson.trained(stage, student)
    return StageResult(arch=stage.variant.arch, module=trained, achieved=achieved, notes=notes)


def sampling_steps(requested: int, achieved: int) -> Achieved:
    """How many steps the student was trained to sample in."""
    return Achieved(
        what="sampling steps", requested=requested, achieved=achieved, unit="steps", met=achieved <= requested
    )
