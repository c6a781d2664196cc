"""Feature distillation: the student's blocks are held to what the teacher's blocks make, not the last output alone.

Source: FitNets (Romero et al. 2015, arXiv:1412.6550); where widths differ, attention transfer (Zagoruyko and Komodakis
2017, arXiv:1612.03928), eq. (2); block by block as BK-SDM (Kim et al. 2023, arXiv:2305.15798) holds stages to stages.
Differs: features are matched by the names that student and teacher share; each feature's error is in units of the
teacher's own energy, so none dominates; where widths differ maps of energy are compared, so nothing is learned besides
the student. `mode: blockwise` trains one block at a time on the teacher's inputs to it.
Cost: as distill.output, and the features of one batch in memory; blockwise: gradients and moments of one block only.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from compress.distill import _lesson, _terms
from compress.distill._loop import Player, Progress, train
from compress.distill._watching import blocks_of, first_tensor, watched
from compress.errors import UserError
from compress.nn.batches import take
from compress.records import Achieved, Inputs, Needs, Prediction, Skipped, StageInput, StageResult

NEEDS = Needs.TRAINING


class Config(_lesson.Lesson):
    """How long to train, on what, towards which features."""

    features: tuple[str, ...] = Field(("*",), description="Blocks to match: names with * and ? wildcards.")
    feature_weight: float = Field(1.0, gt=0, description="Weight of the features' mean error.")
    output_weight: float = Field(1.0, ge=0, description="Weight of the output's error; joint mode only.")
    error: _terms.Error = Field("log_mse", description="The output's error.")
    mode: Literal["joint", "blockwise"] = Field("joint", description="All blocks at once, or one after the other.")


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Training changes no shape."""
    return prediction


def apply(stage: StageInput, config: Config) -> StageResult:
    """Train a copy of the variant towards the teacher's features."""
    _lesson.refuse(stage, config, "distill.feature")
    student, teacher = _lesson.student_of(stage, config), _lesson.teacher_of(stage, config)
    names, skipped = matched(student, teacher, tuple(x.to(config.device) for x in take(stage.inputs, 0, 1)), config)
    state = (_jointly if config.mode == "joint" else _blockwise)(stage, config, student, teacher, names)
    result = _lesson.finished(stage, student, state, config)
    asked = Achieved(what="blocks matched", requested=len(names), achieved=len(names), unit="blocks", met=bool(names))
    return StageResult(
        arch=result.arch,
        module=result.module,
        achieved=(*result.achieved, asked),
        skipped=skipped,
        notes=(f"matched {', '.join(names)}", *result.notes),
    )


def matched(
    student: nn.Module, teacher: nn.Module, example: Inputs, config: Config
) -> tuple[list[str], tuple[Skipped, ...]]:
    """The blocks that both have, in the order in which they run, and those that cannot be matched.

    A block is a child of the network or an entry of one of its lists, where it gives one tensor.

    Raises:
        UserError: a pattern matches no block, or none is left.
    """
    ours, theirs = blocks_of(student), blocks_of(teacher)
    for pattern in config.features:
        if not any(fnmatchcase(name, pattern) for name in ours):
            raise UserError(f"distill.feature: features: '{pattern}' matches no block; blocks are {', '.join(ours)}")
    wanted = [n for n in ours if any(fnmatchcase(n, pattern) for pattern in config.features)]
    made, target = _shapes(student, wanted, example), _shapes(teacher, [n for n in wanted if n in theirs], example)
    reasons = {name: _unmatched(made.get(name), target.get(name), name in theirs) for name in wanted}
    names = [name for name in made if reasons[name] is None]
    if not names:
        raise UserError(f"distill.feature: no block can be matched: {reasons}; use distill.output")
    return names, tuple(Skipped(name=n, reason=reason) for n, reason in reasons.items() if reason)


def feature_error(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared error over the target's mean square; of the energy maps over positions where the widths differ."""
    if made.shape != target.shape:
        made, target = _energy(made), _energy(target)
    return (made - target).square().mean() / target.square().mean().clamp_min(1e-12)


def _energy(x: torch.Tensor) -> torch.Tensor:
    """Mean square over the channels (axis 1 of [n, c, h, w], the last axis of [n, t, c]), each sample of length 1."""
    found = x.square().mean(dim=1 if x.dim() == 4 else -1).flatten(1)
    return found / found.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _jointly(
    stage: StageInput, config: Config, student: nn.Module, teacher: nn.Module, names: Sequence[str]
) -> Progress:
    def loss(step: int) -> torch.Tensor:
        inputs = _lesson.inputs_at(stage, config, step)
        with _lesson.precision(config):
            with torch.no_grad(), watched(teacher, names) as theirs:
                target = teacher(*inputs).float()
            with watched(student, names) as ours:
                made = student(*inputs).float()
        errors = [feature_error(ours[name].float(), theirs[name].float()) for name in names]
        features = config.feature_weight * torch.stack(errors).mean()
        return features + config.output_weight * _terms.error(made, target, config.error)

    players = [Player(name="student", module=student, loss=loss)]
    validate = _lesson.validation(stage, config, teacher)
    return train(players, config.schedule(), scratch=stage.scratch, progress=stage.progress, validate=validate)


def _blockwise(
    stage: StageInput, config: Config, student: nn.Module, teacher: nn.Module, names: Sequence[str]
) -> Progress:
    """One block after the other, each on the inputs that the teacher's block has; the account is of all steps."""
    whole = Progress()
    for index, name in enumerate(names):
        block, original = student.get_submodule(name), teacher.get_submodule(name)
        scratch = stage.scratch / f"block-{index}"
        scratch.mkdir(exist_ok=True)

        def loss(step: int, block: nn.Module = block, original: nn.Module = original) -> torch.Tensor:
            inputs = _lesson.inputs_at(stage, config, step)
            with _lesson.precision(config):
                with torch.no_grad(), _called(original) as call:
                    teacher(*inputs)
                made = first_tensor(block(*call["args"], **call["kwargs"]))
            assert made is not None
            return feature_error(made.float(), call["output"].float())

        def told(done: int, total: int, text: str, index: int = index, name: str = name) -> None:
            stage.progress(index * total + done, len(names) * total, f"{name}: {text}")

        part = train(
            [Player(name="student", module=block, loss=loss)], config.schedule(), scratch=scratch, progress=told
        )
        whole.losses = part.losses
    return whole


def _unmatched(made: torch.Size | None, target: torch.Size | None, there: bool) -> str | None:
    if not there:
        return "the teacher has no block of this name"
    if made is None or target is None:
        return "gives no single tensor, or was not called"
    spatial = slice(2, None) if len(made) == 4 else slice(1, -1)
    if made[spatial] != target[spatial] or len(made) != len(target):
        return f"gives {list(made)}, the teacher's {list(target)}"
    return None


def _shapes(module: nn.Module, names: Sequence[str], example: Inputs) -> dict[str, torch.Size]:
    with torch.no_grad(), watched(module, names) as seen:
        module(*example)
    return {name: tensor.shape for name, tensor in seen.items()}


@contextmanager
def _called(block: nn.Module) -> Iterator[dict[str, Any]]:
    """What a block is called with, and what it gives."""
    seen: dict[str, Any] = {}

    def hook(part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # torch 2.13's GroupNorm crashes going backward over a channels-last input that wants no gradient
        wanted = tuple(
            x.detach().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in args
        )
        seen.update(args=wanted, kwargs=kwargs, output=first_tensor(output))

    handle = block.register_forward_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
