"""A diffusion model of one number that is -1 or 1: one step of the teacher gives their mean, many steps give either."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from compress.distill import _lesson
from compress.distill._diffusion import CLEAN, walk
from compress.records import Diffusion, Inputs, StageInput
from compress.sampling.schedule import Schedule

SCHEDULE = Schedule(num_train_timesteps=64, beta_start=0.01, beta_end=0.2)
WALK = walk(SCHEDULE)


class Toy(nn.Module):
    """Numbers [n, 1, 1, 1] and levels [n] to velocities, through 1x1 convolutions."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first = nn.Conv2d(9, width, 1)
        self.second = nn.Conv2d(width, width, 1)
        self.third = nn.Conv2d(width, width, 1)
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, sample: torch.Tensor, levels: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        place = levels[:, None, None, None] / 64
        waves = [f(place * torch.pi * k) for k in (0.5, 1, 2, 4) for f in (torch.sin, torch.cos)]
        x = torch.cat([sample, *waves], dim=1)
        for layer in (self.first, self.second, self.third):
            x = nn.functional.silu(layer(x))
        made: torch.Tensor = self.last(x)
        return made


def clean(step: int, batch: int, pixels: int) -> Inputs:
    generator = torch.Generator().manual_seed(100 + step)
    return (torch.randint(2, (batch, 1, 1, 1), generator=generator) * 2.0 - 1.0,)


@cache
def teacher() -> nn.Module:
    """Trained on the spot; a few seconds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Toy()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(500):
        generator = torch.Generator().manual_seed(step)
        (x,) = clean(step, 256, 0)
        levels = torch.randint(64, (256,), generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        share = WALK.share(levels)
        velocity = share.sqrt() * noise - (1 - share).sqrt() * x
        loss = (net(WALK.noised(x, noise, levels), levels.float()) - velocity).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.requires_grad_(False).eval()


def stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> StageInput:
    """The toy as a stage is given it; `build` makes toys."""
    monkeypatch.setattr(_lesson, "build", lambda arch: Toy())
    folder.mkdir(exist_ok=True)
    return tiny.stage_input(
        folder,
        replace(tiny.unet(), module=teacher()),
        teacher=teacher(),
        inputs=(torch.zeros(2, 1, 1, 1), torch.zeros(2)),
        diffusion=Diffusion(schedule=SCHEDULE, clean=clean, empty=None),
    )


@torch.no_grad()
def sampled(net: Callable[..., torch.Tensor], steps: int, count: int = 1000) -> torch.Tensor:
    """Numbers [n] in so many DDIM steps from noise."""
    x = torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(9))
    grid = WALK.grid(steps)
    for here, there in pairwise(grid):
        level, following = (torch.full((count,), one) for one in (here, there))
        x = WALK.jump(x, WALK.clean(x, net(x, level.float()), level), level, following)
    assert there == CLEAN
    return x.flatten()


def near_a_mode(numbers: torch.Tensor) -> float:
    """Share that lies within 0.25 of -1 or 1; 0 where one of the two has less than a quarter of all."""
    found = [float(((numbers - mode).abs() < 0.25).float().mean()) for mode in (-1.0, 1.0)]
    return sum(found) if min(found) > 0.25 else 0.0


def from_a_mode(numbers: torch.Tensor) -> float:
    """Mean distance to the nearer of -1 and 1."""
    return float((numbers.abs() - 1).abs().mean())
