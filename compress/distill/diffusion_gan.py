"""Diffusion GAN: the student's x_0, noised again, must pass for the data's at the same level.

Source: UFOGen (Xu et al. 2023, arXiv:2311.09257), section 3: both x_s are drawn forward from their x_0, a
reconstruction term holds x_0, generator and discriminator start from the diffusion UNet; `sampling: posterior` draws
the student's x_s from q(x_s | x_t, x_0) as Denoising Diffusion GANs (Xiao et al. 2021, arXiv:2112.07804, section 3.2).
Differs: the reconstruction is measured in the units of the network's prediction, as the authors' code does, so its
weight over levels is 1 / (share of noise); the discriminator gives one verdict per latent, by a 1x1 convolution behind
the UNet, and sees x_s without x_t.
Cost: per optimizer step four passes of the student and nine of the discriminator, which is as large.
"""

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from compress.distill import _diffusion, _lesson
from compress.distill._diffusion import Draws, Latents, Levels, Walk
from compress.distill._loop import Player, train
from compress.records import Inputs, Needs, Prediction, StageInput, StageResult

NEEDS = Needs.TRAINING


class Config(_diffusion.StepLesson):
    """How far back each jump goes, and what weighs how much."""

    jumps: int = Field(4, ge=1, le=100, description="A jump goes back by this share of all levels: 4 is a quarter.")
    sampling: Literal["forward", "posterior"] = Field(
        "forward", description="The student's noisy latents: from its x_0 alone (UFOGen), or from x_t as well (DDGAN)."
    )
    reconstruction: float = Field(1.0, ge=0, description="Weight of the term that holds x_0 to the data's.")
    adversarial: float = Field(1.0, ge=0, description="Weight of the discriminator's verdict.")
    judge_lr_factor: float = Field(1.0, gt=0, description="The discriminator's learning rate, of the student's.")


class Judge(nn.Module):
    """The UNet with one verdict per latent [n, 1, h, w] behind it: above 0 is real."""

    def __init__(self, unet: nn.Module, channels: int, seed: int) -> None:
        super().__init__()
        self.unet = copy.deepcopy(unet).requires_grad_(True)
        self.head = nn.Conv2d(channels, 1, 1)
        generator = torch.Generator().manual_seed(seed)
        state = {"weight": torch.randn(self.head.weight.shape, generator=generator) / channels**0.5}
        self.head.load_state_dict(state | {"bias": torch.zeros(1)})

    def forward(self, sample: torch.Tensor, levels: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.unet(sample, levels, *conditions))
        return found


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Training changes no shape."""
    return prediction


def apply(stage: StageInput, config: Config) -> StageResult:
    """Train a copy of the variant against a discriminator made of the teacher."""
    diffusion = _diffusion.refuse(stage, config, "distill.diffusion_gan")
    student = _lesson.student_of(stage, config)
    teacher = _lesson.teacher_of(stage, config)
    walk = _diffusion.walk(diffusion.schedule)
    judge = Judge(teacher, stage.inputs[0].shape[1], stage.seed).to(config.device)
    latest: list[tuple[Latents, Latents, Levels, Inputs]] = []

    def student_loss(step: int) -> torch.Tensor:
        clean, conditions = _diffusion.clean_at(stage, config, step)
        draws = Draws(stage, config, step)
        here, nearer, real, sample = drawn(walk, clean, draws, config.jumps)
        prediction = _diffusion.called(student, sample, here, conditions, config)
        made = walk.clean(sample, prediction, here)
        fake = renoised(walk, made, sample, nearer, here, draws, config.sampling)
        latest[:] = [(real, fake.detach(), nearer, conditions)]
        verdict = _diffusion.called(judge, fake, nearer, conditions, config)
        held = reconstruction(walk, made, clean, here)
        return config.adversarial * functional.softplus(-verdict).mean() + config.reconstruction * held

    def judge_loss(step: int) -> torch.Tensor:
        real, fake, nearer, conditions = latest[0]  # of this very step: the student plays first
        genuine = _diffusion.called(judge, real, nearer, conditions, config)
        forged = _diffusion.called(judge, fake, nearer, conditions, config)
        return functional.softplus(-genuine).mean() + functional.softplus(forged).mean()

    players = [
        Player(name="student", module=student, loss=student_loss),
        Player(name="judge", module=judge, loss=judge_loss, lr_factor=config.judge_lr_factor),
    ]
    state = train(players, config.schedule(), scratch=stage.scratch, progress=stage.progress)
    done = (_lesson.steps_done(state, config.steps), _diffusion.sampling_steps(1, 1))
    return _diffusion.finished(stage, student, done, *_lesson.tail_of(state))


def drawn(walk: Walk, clean: Latents, draws: Draws, jumps: int) -> tuple[Levels, Levels, Latents, Latents]:
    """Levels t and s < t, the data's x_s from q(x_s | x_0), and x_t from q(x_t | x_s)."""
    count = len(walk.shares) - 1
    here = draws.whole(1, count, len(clean))
    nearer = (here - max(1, count // jumps)).clamp_min(0)
    real = walk.noised(clean, draws.noise(clean), nearer)
    kept = walk.share(here) / walk.share(nearer)
    return here, nearer, real, kept.sqrt() * real + (1 - kept).sqrt() * draws.noise(clean)


def renoised(
    walk: Walk, made: Latents, sample: Latents, nearer: Levels, here: Levels, draws: Draws, how: str
) -> Latents:
    """The student's x_s, from its x_0 alone or from x_t as well."""
    if how == "forward":
        return walk.noised(made, draws.noise(made), nearer)
    mean, variance = posterior(walk, made, sample, nearer, here)
    return mean + variance.sqrt() * draws.noise(made)


def posterior(
    walk: Walk, clean: Latents, sample: Latents, nearer: Levels, here: Levels
) -> tuple[Latents, torch.Tensor]:
    """Mean and variance of q(x_s | x_t, x_0), s < t (Ho et al. 2020, eqs. (6) and (7), over any jump)."""
    there, share = walk.share(nearer), walk.share(here)
    kept = share / there
    mean = there.sqrt() * (1 - kept) / (1 - share) * clean + kept.sqrt() * (1 - there) / (1 - share) * sample
    return mean, (1 - there) * (1 - kept) / (1 - share)


def reconstruction(walk: Walk, made: Latents, clean: Latents, here: Levels) -> torch.Tensor:
    """Squared error of x_0 in units of the velocity's: divided by the share of noise."""
    return ((made - clean).square() / (1 - walk.share(here))).mean()
