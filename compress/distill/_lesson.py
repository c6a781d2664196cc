"""What distillations share around the loop: where crops come from, in which precision, what is kept at the end."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from compress.components import build
from compress.distill._loop import Progress, Schedule, share_of
from compress.errors import UserError
from compress.nn.batches import split
from compress.nn.qmodules import quantized
from compress.records import Achieved, Inputs, StageInput, StageResult
from compress.schema import Schema

VALIDATION_BATCH = 4


class Training(Schema):
    """How long to train, in which precision; the keys that everything that trains shares."""

    steps: PositiveInt = Field(400, description="Optimizer steps.")
    lr: float = Field(1e-3, gt=0, lt=1, description="Largest learning rate (Adam, warm-up then cosine).")
    batch: PositiveInt = Field(8, description="Crops per step.")
    pixels: int = Field(96, ge=32, le=1024, multiple_of=8, description="Side of a crop.")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 where it is fast.")
    device: Literal["cpu", "cuda"] = Field("cpu", description="Where to train.")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="Of the running mean of the weights that is kept; 0: none.")
    checkpoint_every: PositiveInt = Field(50, description="Steps between checkpoints.")

    def schedule(self) -> Schedule:
        """The loop's part of these keys."""
        return Schedule(steps=self.steps, lr=self.lr, checkpoint_every=self.checkpoint_every, ema_decay=self.ema_decay)


class Lesson(Training):
    """Training towards a teacher's outputs: on what, and which weights are kept."""

    source: Literal["data", "sampled"] = Field(
        "data", description="data: crops of the calibration data; sampled: latents of their spectrum, drawn at random."
    )
    validate_every: int = Field(0, ge=0, description="Steps between validations on the calibration inputs; 0: never.")
    keep_best: Literal["psnr", "lpips"] = Field("psnr", description="What a validation measures, to the teacher.")
    patience: int = Field(0, ge=0, description="Validations without a better one before training stops; 0: never.")

    def schedule(self) -> Schedule:
        """The loop's part of these keys."""
        return replace(super().schedule(), validate_every=self.validate_every, patience=self.patience)


def refuse(stage: StageInput, lesson: Lesson, name: str) -> None:
    """What no such lesson can do.

    Raises:
        UserError: quantized layers, a missing GPU, patience without validations.
    """
    refuse_training(stage, lesson, name)
    if lesson.patience and not lesson.validate_every:
        raise UserError(f"{name}: patience counts validations; give validate_every as well")


def refuse_training(stage: StageInput, lesson: Training, name: str) -> None:
    """What no training can do.

    Raises:
        UserError: quantized layers, a missing GPU.
    """
    if quantized(stage.variant.module):
        raise UserError(f"{name} trains float weights; put it before the quantize stage, or train with distill.qat")
    if lesson.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"{name}: device: cuda, but this machine has no usable GPU; leave device out to train on the CPU"
        )


def student_of(stage: StageInput, lesson: Training) -> nn.Module:
    """A copy of the variant to train, in the memory layout of the fast kernels."""
    student = build(stage.variant.arch)
    student.load_state_dict(stage.variant.module.state_dict())
    return channels_last(student.requires_grad_(True)).to(lesson.device)


def teacher_of(stage: StageInput, lesson: Training) -> nn.Module:
    """A copy of the teacher in the same layout."""
    return channels_last(copy.deepcopy(stage.teacher)).to(lesson.device)


def inputs_at(stage: StageInput, lesson: Lesson, step: int) -> Inputs:
    """One step's inputs on the training device."""
    drawn = share_of(step)
    if lesson.source == "data":
        inputs = stage.sample(drawn, lesson.batch, lesson.pixels)
    else:
        inputs = sampled(stage.inputs, lesson.batch, torch.Generator().manual_seed(stage.seed * 2**20 + drawn))
    return tuple(laid_out(x).to(lesson.device) for x in inputs)


def sampled(inputs: Inputs, batch: int, generator: torch.Generator) -> Inputs:
    """New latents of the given ones' spectrum: the moduli of a given latent's frequencies, phases drawn at random.

    All channels of a sample turn by the same phases, so their correlations stay. Other inputs (time steps, text) are
    those of the latent whose spectrum was taken.

    Source: surrogate data by phase randomisation, Theiler et al. 1992 (Physica D 58).
    """
    chosen = torch.randint(len(inputs[0]), (batch,), generator=generator)
    if inputs[0].dim() != 4:
        raise UserError("source: sampled draws latents [n, z, h, w]; this component's first input is none: use data")
    latents = inputs[0][chosen]
    noise = torch.randn(batch, 1, *latents.shape[-2:], generator=generator)
    phases = torch.fft.rfft2(noise)
    turned = torch.fft.rfft2(latents) * phases / phases.abs().clamp_min(1e-12)
    mean = torch.fft.rfft2(latents)[..., :1, :1]  # a mean has no phase
    turned[..., :1, :1] = mean
    return (torch.fft.irfft2(turned, s=latents.shape[-2:]), *(x[chosen] for x in inputs[1:]))


@contextmanager
def precision(lesson: Training) -> Iterator[None]:
    """bfloat16 arithmetic where it is asked for, or fast."""
    wanted = lesson.precision == "bfloat16" or (lesson.precision == "auto" and fast_bfloat16(lesson.device))
    with torch.autocast(lesson.device, torch.bfloat16, enabled=wanted):
        yield


def fast_bfloat16(device: str = "cpu") -> bool:
    """Whether the device multiplies bfloat16 natively."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()


def validation(stage: StageInput, lesson: Lesson, teacher: nn.Module) -> Callable[[nn.Module], float] | None:
    """The student's score on the calibration inputs: PSNR to the teacher, or LPIPS with its sign turned."""
    if not lesson.validate_every:
        return None
    measure = _negative_lpips if lesson.keep_best == "lpips" else _psnr

    def score(student: nn.Module) -> float:
        found = []
        for part in split(stage.inputs, VALIDATION_BATCH):
            given = [laid_out(x).to(lesson.device) for x in part]
            with precision(lesson):
                pair = teacher(*given).float(), student(*given).float()
            found.append(measure(*pair))
        return float(torch.cat(found).mean())

    return score


def finished(stage: StageInput, student: nn.Module, state: Progress, lesson: Lesson) -> StageResult:
    """The trained variant and its account."""
    return StageResult(
        arch=stage.variant.arch,
        module=trained(stage, student),
        achieved=(steps_done(state, lesson.steps, stopped=state.spent(lesson.patience)),),
        notes=notes_of(state, lesson),
    )


def trained(stage: StageInput, student: nn.Module) -> nn.Module:
    """A trained copy of the variant in the plain memory layout that a reader of the saved weights has."""
    made = build(stage.variant.arch)
    made.load_state_dict(student.state_dict())
    return made.requires_grad_(False).eval()


def steps_done(state: Progress, steps: int, *, stopped: bool = False) -> Achieved:
    """Steps asked for and done; fewer are met only where training stopped because nothing got better."""
    done = len(state.losses)
    return Achieved(what="training steps", requested=steps, achieved=done, unit="steps", met=done == steps or stopped)


def notes_of(state: Progress, lesson: Lesson) -> tuple[str, ...]:
    """What a reader of the report wants to know of a training."""
    notes = list(tail_of(state))
    if len(state.losses) < lesson.steps:
        notes.append(f"stopped after {len(state.losses)} steps: {lesson.patience} validations brought nothing better")
    if state.scores:
        best, sign = state.best_validation, -1 if lesson.keep_best == "lpips" else 1
        notes.append(
            f"kept validation {best + 1} of {len(state.scores)}: {lesson.keep_best} {sign * state.scores[best]:.4g} "
            f"to the teacher on the calibration inputs (the last had {sign * state.scores[-1]:.4g})"
        )
    return tuple(notes)


def tail_of(state: Progress) -> tuple[str, ...]:
    """The loss at the end of a training."""
    tail = state.losses[-max(1, len(state.losses) // 10) :]
    return (f"mean loss of the last {len(tail)} steps: {sum(tail) / len(tail):.4f}",) if tail else ()


def channels_last(module: nn.Module) -> nn.Module:
    """The module itself, its convolutions' weights laid out as the fast kernels of CPUs want them."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def laid_out(x: torch.Tensor) -> torch.Tensor:
    """Maps laid out as the fast kernels of CPUs want them."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _psnr(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """10 log10(peak^2 / squared error) per sample; the peak is 1 for images, else the reference's largest magnitude."""
    axes = tuple(range(1, reference.dim()))
    image = reference.dim() == 4 and reference.shape[1] == 3
    peak = torch.ones(len(reference)) if image else reference.abs().amax(dim=axes).cpu()
    error = (reference - candidate).double().square().mean(dim=axes).cpu()
    return 10 * torch.log10(peak.square() / error.clamp_min(1e-20))


def _negative_lpips(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    from eval.metrics import lpips

    found: torch.Tensor = -lpips.load("st-alex")(reference.cpu(), candidate.cpu())
    return found
