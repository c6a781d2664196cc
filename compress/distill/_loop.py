"""The training loop of every distillation: resumable to the bit."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from compress.errors import UserError
from compress.files import write_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast: linear warm-up over the first 5% of the steps, then a cosine down to 1% of `lr`."""

    steps: int
    lr: float
    checkpoint_every: int

    def lr_at(self, step: int) -> float:
        """Learning rate of one step."""
        warm_up = max(1, self.steps // 20)
        if step < warm_up:
            return self.lr * (step + 1) / warm_up
        progress = (step - warm_up) / max(1, self.steps - warm_up)
        return self.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    student: nn.Module,
    loss: Callable[[nn.Module, int], torch.Tensor],
    schedule: Schedule,
    *,
    scratch: Path,
    progress: Callable[[int, int, str], None],
) -> list[float]:
    """Train `student` in place on `loss(student, step)`; returns the loss of every step.

    A checkpoint (weights, Adam's moments, losses) goes to `scratch` every `checkpoint_every` steps; when one is there,
    training goes on from it, and because data and noise depend on the step alone, ends with the same bits.

    Raises:
        UserError: the loss is not finite.
    """
    optimizer = torch.optim.Adam(student.parameters(), lr=schedule.lr, betas=(0.9, 0.99))
    checkpoint = scratch / "checkpoint.safetensors"
    losses = _resume(checkpoint, student, optimizer) if checkpoint.exists() else []
    student.train()
    for step in range(len(losses), schedule.steps):
        optimizer.param_groups[0]["lr"] = schedule.lr_at(step)
        optimizer.zero_grad(set_to_none=True)
        value = loss(student, step)
        value.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            raise UserError(
                f"distillation diverged at step {step + 1} (loss {losses[-1]}); lower lr (now {schedule.lr})"
            )
        progress(step + 1, schedule.steps, f"loss {losses[-1]:.4g}")
        if (step + 1) % schedule.checkpoint_every == 0 and step + 1 < schedule.steps:
            _save(checkpoint, losses, student, optimizer)
    student.eval()
    return losses


def _save(path: Path, losses: list[float], student: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    tensors = {f"student.{name}": t for name, t in student.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": t for name, t in state.items()}
    write_tensors(path, tensors | {"losses": torch.tensor(losses, dtype=torch.float64)})


def _resume(path: Path, student: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    from safetensors.torch import load_file

    tensors = load_file(path)
    student.load_state_dict({n.removeprefix("student."): t for n, t in tensors.items() if n.startswith("student.")})
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return tensors["losses"].tolist()
