"""Output distillation: train the student to reproduce its teacher's outputs.

Source: Hinton et al. 2015 (arXiv:1503.02531) as SnapFusion (Li et al. 2023, arXiv:2306.00980, section 3.2) uses it for
an image decoder: squared error to the teacher's image, encoder frozen.
Differs: the error enters by its logarithm, per sample, so smooth and busy crops weigh alike and the loss is in units of
PSNR (`error: mse` and `l1` are the plain ones); LPIPS and an adversarial term can be added; latents can be drawn
without any data, by phase randomisation; the best of several validations can be kept.
Cost: `steps` times one pass of the teacher and three of the student over `batch` crops.
"""

import torch
from pydantic import Field
from torch import nn

from compress.distill import _lesson, _terms
from compress.distill._loop import Player, train
from compress.errors import UserError
from compress.records import Needs, Prediction, StageInput, StageResult

NEEDS = Needs.TRAINING


class Config(_lesson.Lesson):
    """How long to train, on what, towards what."""

    error: _terms.Error = Field("log_mse", description="The plain error: its logarithm per sample, itself, or |error|.")
    terms: _terms.Terms = Field(
        _terms.Terms.model_validate({}), description="Terms for images, besides the plain error."
    )


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Training changes no shape."""
    return prediction


def apply(stage: StageInput, config: Config) -> StageResult:
    """Train a copy of the variant towards the teacher."""
    _lesson.refuse(stage, config, "distill.output")
    student, teacher = _lesson.student_of(stage, config), _lesson.teacher_of(stage, config)
    players = play(stage, config, student, teacher)
    state = train(
        players,
        config.schedule(),
        scratch=stage.scratch,
        progress=stage.progress,
        validate=_lesson.validation(stage, config, teacher),
    )
    return _lesson.finished(stage, student, state, config)


def play(stage: StageInput, config: Config, student: nn.Module, teacher: nn.Module) -> list[Player]:
    """The student and, where there is an adversarial term, its discriminator."""
    terms, lpips = config.terms, _terms.perceptual(config.terms)
    judge = None
    if terms.adversarial:
        _refuse_no_pictures(stage)
        judge = _terms.discriminator(3, stage.seed).to(config.device)
    first = int(config.steps * terms.adversarial_from)

    def both(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = _lesson.inputs_at(stage, config, step)
        with _lesson.precision(config):
            with torch.no_grad():
                target = teacher(*inputs)
            made = student(*inputs)
        return made.float(), target.float()

    latest: list[torch.Tensor] = []

    def student_loss(step: int) -> torch.Tensor:
        made, target = both(step)
        latest[:] = made.detach(), target
        loss = _terms.error(made, target, config.error)
        if lpips is not None:
            loss = loss + terms.lpips * lpips(target, made).mean()
        if judge is not None and step >= first:
            loss = loss + terms.adversarial * _terms.fooling(judge, made)
        return loss

    def judge_loss(step: int) -> torch.Tensor:
        assert judge is not None
        made, target = latest  # of this very step: the student plays first
        return _terms.telling_apart(judge, target, made)

    players = [Player(name="student", module=student, loss=student_loss)]
    return players if judge is None else [*players, Player(name="judge", module=judge, loss=judge_loss, lr_factor=0.5)]


def _refuse_no_pictures(stage: StageInput) -> None:
    with torch.no_grad():
        shape = stage.teacher(*(x[:1] for x in stage.inputs)).shape
    if len(shape) != 4 or shape[1] != 3:
        raise UserError(
            f"terms.adversarial judges pictures [n, 3, h, w]; this component gives {list(shape)}: leave it out"
        )
