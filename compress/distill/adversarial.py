"""Adversarial diffusion distillation: real to a discriminator, and right to the teacher.

Source: ADD (Sauer et al. 2023, arXiv:2311.17042), eqs. (1) to (4): hinge losses of heads on a frozen network's
features, with a penalty on their gradient; score distillation weighted by the signal; the student sees few levels.
Differs: the frozen network is the teacher itself, on latents that are noised again, as in LADD (Sauer et al. 2024,
arXiv:2403.12015), so no picture is decoded and no other network is needed; heads know the text, not the real picture.
Cost: per optimizer step three passes of the student, six of the teacher (seven with guidance), three of them backward.
"""

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from compress.distill import _diffusion, _lesson
from compress.distill._diffusion import Draws, Latents, Levels, Teacher
from compress.distill._loop import Player, train
from compress.distill._watching import blocks_of, watched
from compress.errors import UserError
from compress.records import Inputs, Needs, Prediction, StageInput, StageResult

NEEDS = Needs.TRAINING
HEAD_WIDTH = 64
Features = list[torch.Tensor]


class Config(_diffusion.StepLesson):
    """In how many steps the student will sample, and what weighs how much."""

    students: int = Field(4, ge=1, le=64, description="Levels that the student sees: those of so many sampling steps.")
    distillation: float = Field(2.5, ge=0, description="Weight of the distance to the teacher's x_0.")
    adversarial: float = Field(1.0, ge=0, description="Weight of the discriminator's verdict.")
    penalty: float = Field(1e-5, ge=0, description="Weight of the heads' gradient on real latents (R1).")
    judge_lr_factor: float = Field(1.0, gt=0, description="The discriminator's learning rate, of the student's.")


class Head(nn.Module):
    """Features [n, c, h, w] to verdicts [n, 1, h, w], by 1x1 convolutions; knows the text, where there is one."""

    def __init__(self, channels: int, text: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, HEAD_WIDTH, 1)
        self.outer = nn.Conv2d(HEAD_WIDTH, 1, 1)
        self.text = nn.Linear(text, HEAD_WIDTH) if text else None

    def forward(self, features: torch.Tensor, states: torch.Tensor | None) -> torch.Tensor:
        size = features.square().mean(1, keepdim=True).add(1e-6).sqrt()
        hidden = functional.leaky_relu(self.inner(features / size), 0.2)
        verdict: torch.Tensor = self.outer(hidden)
        if self.text is not None and states is not None:
            wanted = self.text(states.mean(1))[:, :, None, None]
            verdict = verdict + (hidden * wanted).sum(1, keepdim=True) / HEAD_WIDTH**0.5
        return verdict


class Judge(nn.Module):
    """A head on each of the teacher's features."""

    def __init__(self, channels: list[int], text: int, seed: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(c, text) for c in channels)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            spread = 0.0 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * spread

    def forward(self, features: Features, states: torch.Tensor | None) -> Features:
        return [head(f, states) for head, f in zip(self.heads, features, strict=True)]


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Training changes no shape."""
    return prediction


def apply(stage: StageInput, config: Config) -> StageResult:
    """Train a copy of the variant against heads on the teacher's features, and towards the teacher."""
    _diffusion.refuse(stage, config, "distill.adversarial")
    student, teacher = _lesson.student_of(stage, config), _diffusion.teacher_of(stage, config)
    names, channels = features_of(teacher.net, stage)
    judge = Judge(channels, _text_width(stage.inputs), stage.seed).to(config.device)
    walk, latest = teacher.walk, list[tuple[Latents, Latents, Levels, Inputs]]()
    levels = walk.grid(config.students)

    def seen(latents: Latents, at: Levels, conditions: Inputs) -> Features:
        with watched(teacher.net, names) as found:
            _diffusion.called(teacher.net, latents, at, conditions, config)
        return [found[name].float() for name in names]

    def student_loss(step: int) -> torch.Tensor:
        clean, conditions = _diffusion.clean_at(stage, config, step)
        draws = Draws(stage, config, step)
        here, _ = draws.of(levels, len(clean))
        sample = walk.noised(clean, draws.noise(clean), here)
        made = walk.clean(sample, _diffusion.called(student, sample, here, conditions, config), here)
        at = draws.whole(0, len(walk.shares) - 1, len(clean))
        real, fake = walk.noised(clean, draws.noise(clean), at), walk.noised(made, draws.noise(clean), at)
        latest[:] = [(real, fake.detach(), at, conditions)]
        verdicts = judge(seen(fake, at, conditions), _text(conditions))
        fooled = torch.stack([-v.mean() for v in verdicts]).mean()
        followed = distillation(teacher, made, draws, conditions, config)
        return config.adversarial * fooled + config.distillation * followed

    def judge_loss(step: int) -> torch.Tensor:
        real, fake, at, conditions = latest[0]  # of this very step: the student plays first
        with torch.no_grad():
            genuine, forged = seen(real, at, conditions), seen(fake, at, conditions)
        return told_apart(judge, genuine, forged, _text(conditions), config.penalty)

    players = [
        Player(name="student", module=student, loss=student_loss),
        Player(name="judge", module=judge, loss=judge_loss, lr_factor=config.judge_lr_factor),
    ]
    state = train(players, config.schedule(), scratch=stage.scratch, progress=stage.progress)
    done = (_lesson.steps_done(state, config.steps), _diffusion.sampling_steps(config.students, config.students))
    return _diffusion.finished(stage, student, done, f"heads on {', '.join(names)}", *_lesson.tail_of(state))


def distillation(
    teacher: Teacher, made: Latents, draws: Draws, conditions: Inputs, lesson: _diffusion.StepLesson
) -> torch.Tensor:
    """Eq. (4): to what the teacher makes of the student's x_0 once it is noised again; c(t) is the signal's factor."""
    walk = teacher.walk
    at = draws.whole(0, len(walk.shares) - 1, len(made))
    noised = walk.noised(made.detach(), draws.noise(made), at)
    wanted = teacher.clean(noised, at, conditions, lesson)
    return (walk.share(at).sqrt() * (made - wanted).square()).mean()


def told_apart(
    judge: Judge, real: Features, fake: Features, states: torch.Tensor | None, penalty: float
) -> torch.Tensor:
    """Eq. (3): hinge losses, and the squared gradient of the verdicts on real features with respect to those."""
    watched_features = [f.detach().requires_grad_() for f in real]
    genuine, forged = judge(watched_features, states), judge(fake, states)
    pairs = zip(genuine, forged, strict=True)
    loss = torch.stack([functional.relu(1 - g).mean() + functional.relu(1 + f).mean() for g, f in pairs]).mean()
    if not penalty:
        return loss
    slopes = torch.autograd.grad(sum(g.sum() for g in genuine), watched_features, create_graph=True)
    return loss + penalty * torch.stack([s.square().flatten(1).sum(1).mean() for s in slopes]).mean()


def features_of(net: nn.Module, stage: StageInput) -> tuple[list[str], list[int]]:
    """The blocks that give maps [n, c, h, w], and their channels.

    Raises:
        UserError: none does.
    """
    example = tuple(x[:1].to(next(net.parameters()).device) for x in stage.inputs)
    with torch.no_grad(), watched(net, blocks_of(net)) as found:
        net(*example)
    maps = {name: f.shape[1] for name, f in found.items() if f.dim() == 4}
    if not maps:
        raise UserError("distill.adversarial: no block of the teacher gives maps [n, c, h, w] that heads could judge")
    return list(maps), list(maps.values())


def _text(conditions: Inputs) -> torch.Tensor | None:
    return conditions[0] if conditions and conditions[0].dim() == 3 else None


def _text_width(inputs: Inputs) -> int:
    states = _text(inputs[2:])
    return 0 if states is None else states.shape[-1]
