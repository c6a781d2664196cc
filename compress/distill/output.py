"""Output distillation: train the student to reproduce its teacher's images on encoded crops of photographs.

Source: Hinton et al. 2015 (arXiv:1503.02531) as SnapFusion (Li et al. 2023, arXiv:2306.00980, section 3.2) uses it for
an image decoder: squared error to the teacher's image, encoder frozen.
Differs: the error enters by its logarithm, per crop, so smooth and busy crops weigh alike and the loss is in the units
of PSNR; LPIPS to the teacher's image can be added.
Cost: `steps` times one pass of the teacher and three of the student over `batch` crops.
"""

import copy
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from compress.components import build
from compress.distill._loop import Schedule, train
from compress.errors import UserError
from compress.nn.qmodules import quantized
from compress.records import Achieved, Needs, Prediction, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.TRAINING
Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (reference, candidate) -> one value per image
ERROR_FLOOR = 1e-5  # squared error below which a crop counts as reproduced (50 dB)


class Config(Schema):
    """How long to train, on what, towards what."""

    steps: PositiveInt = Field(400, description="Optimizer steps.")
    lr: float = Field(1e-3, gt=0, lt=1, description="Largest learning rate (Adam, warm-up then cosine).")
    batch: PositiveInt = Field(8, description="Crops per step.")
    pixels: int = Field(96, ge=32, le=1024, multiple_of=8, description="Side of a crop.")
    lpips_weight: float = Field(0.0, ge=0, description="Weight of LPIPS to the teacher's image.")
    lpips_net: Literal["st-alex", "alex", "vgg", "squeeze"] = Field("st-alex", description="Net of that LPIPS.")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 where it is fast.")
    checkpoint_every: PositiveInt = Field(50, description="Steps between checkpoints.")


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Training changes no shape."""
    return prediction


def apply(stage: StageInput, config: Config) -> StageResult:
    """Train a copy of the variant towards the teacher."""
    if quantized(stage.variant.module):
        raise UserError("distill.output trains float weights; put it before the quantize stage")
    student = build(stage.variant.arch)
    student.load_state_dict(stage.variant.module.state_dict())
    channels_last(student.requires_grad_(True))
    teacher = channels_last(copy.deepcopy(stage.teacher))
    bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and fast_bfloat16())
    lpips = _lpips(config)

    def loss(model: nn.Module, step: int) -> torch.Tensor:
        inputs = [channels_last_input(x) for x in stage.sample(step, config.batch, config.pixels)]
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            with torch.no_grad():
                target = teacher(*inputs)
            image = model(*inputs)
        return distance(image.float(), target.float(), lpips, config.lpips_weight)

    schedule = Schedule(steps=config.steps, lr=config.lr, checkpoint_every=config.checkpoint_every)
    losses = train(student, loss, schedule, scratch=stage.scratch, progress=stage.progress)
    trained = build(stage.variant.arch)  # in the plain memory layout that a reader of the saved weights has
    trained.load_state_dict(student.state_dict())
    tail = losses[-max(1, len(losses) // 10) :]
    return StageResult(
        arch=stage.variant.arch,
        module=trained.requires_grad_(False).eval(),
        achieved=(
            Achieved(
                what="training steps",
                requested=config.steps,
                achieved=len(losses),
                unit="steps",
                met=len(losses) == config.steps,
            ),
        ),
        notes=(f"mean loss of the last {len(tail)} steps: {sum(tail) / len(tail):.4f}",) if tail else (),
    )


def distance(image: torch.Tensor, target: torch.Tensor, lpips: Distance | None, lpips_weight: float) -> torch.Tensor:
    """Mean over crops of the log squared error, plus weighted LPIPS; images [n, 3, h, w] in [0, 1]."""
    error = (image - target).square().mean(dim=(1, 2, 3))
    loss = (error + ERROR_FLOOR).log().mean()
    return loss if lpips is None else loss + lpips_weight * lpips(target, image).mean()


def channels_last(module: nn.Module) -> nn.Module:
    """The module itself, its convolutions' weights laid out as the fast kernels of CPUs want them."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def channels_last_input(x: torch.Tensor) -> torch.Tensor:
    """An input in the layout of `channels_last` weights, where it has images."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()


def _lpips(config: Config) -> nn.Module | None:
    if not config.lpips_weight:
        return None
    from eval.metrics import lpips

    return lpips.load(config.lpips_net)
