"""The terms of a distillation's loss: how far the student's output is from the teacher's.

Sources: LPIPS (Zhang et al. 2018, arXiv:1801.03924) as a loss; the hinge form of the adversarial term (Lim and Ye 2017,
arXiv:1705.02894) with a discriminator of patches (Isola et al. 2017, arXiv:1611.07004).
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from compress.schema import Schema

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (reference, candidate) -> one value per image
Error = Literal["log_mse", "mse", "l1"]
ERROR_FLOOR = 1e-5  # squared error below which a crop counts as reproduced (50 dB)


class Terms(Schema):
    """What counts besides the plain error."""

    lpips: float = Field(0.0, ge=0, description="Weight of LPIPS to the teacher's image.")
    lpips_net: Literal["st-alex", "alex", "vgg", "squeeze"] = Field("st-alex", description="Net of that LPIPS.")
    adversarial: float = Field(0.0, ge=0, description="Weight of a discriminator of patches that is trained along.")
    adversarial_from: float = Field(0.3, ge=0, lt=1, description="Share of the steps after which it has a say.")


def error(output: torch.Tensor, target: torch.Tensor, kind: Error) -> torch.Tensor:
    """Mean over samples: the log of the squared error per sample, the squared error, or the absolute one."""
    axes = tuple(range(1, output.dim()))
    match kind:
        case "log_mse":
            return ((output - target).square().mean(dim=axes) + ERROR_FLOOR).log().mean()
        case "mse":
            return (output - target).square().mean()
        case _:
            return (output - target).abs().mean()


def perceptual(terms: Terms) -> nn.Module | None:
    """The LPIPS net, where the recipe asks for it."""
    if not terms.lpips:
        return None
    from eval.metrics import lpips

    return lpips.load(terms.lpips_net)


def discriminator(channels: int, seed: int, width: int = 32) -> nn.Module:
    """Pictures [n, c, h, w] to one verdict per patch [n, 1, h/8, w/8]; weights drawn by `seed`."""
    layers: list[nn.Module] = []
    for made in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(channels, made, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = made
    layers.append(nn.Conv2d(channels, 1, 3, padding=1))
    module = nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        spread = 0.0 if parameter.dim() == 1 else (2.0 / parameter[0].numel()) ** 0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread
    return module


def fooling(judge: nn.Module, made: torch.Tensor) -> torch.Tensor:
    """The student's adversarial term: it wants its pictures judged as the teacher's."""
    loss: torch.Tensor = -judge(made).mean()
    return loss


def telling_apart(judge: nn.Module, real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss: the teacher's pictures above 1, the student's below -1."""
    loss: torch.Tensor = functional.relu(1 - judge(real)).mean() + functional.relu(1 + judge(made)).mean()
    return loss
