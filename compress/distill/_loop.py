"""The training loop of every distillation: resumable to the bit, on one process or on many.

Under torchrun (or `accelerate launch`) each process trains on its own crops and gradients are averaged before every
step, so all hold the same weights; one process alone runs the same code. The first process writes the checkpoints.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import distributed, nn

from compress.errors import UserError
from compress.files import write_tensors

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast: linear warm-up over the first 5% of the steps, then a cosine down to 1% of `lr`."""

    steps: int
    lr: float
    checkpoint_every: int
    ema_decay: float = 0.0  # 0: the last weights count, not their running mean
    validate_every: int = 0  # 0: never; the last weights are the result
    patience: int = 0  # validations without a better score before training stops; 0: never stops early

    def lr_at(self, step: int) -> float:
        """Learning rate of one step."""
        warm_up = max(1, self.steps // 20)
        if step < warm_up:
            return self.lr * (step + 1) / warm_up
        progress = (step - warm_up) / max(1, self.steps - warm_up)
        return self.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """A module that is trained in place on its own loss: `loss(step)`, same step same loss."""

    name: str
    module: nn.Module
    loss: Callable[[int], torch.Tensor]
    lr_factor: float = 1.0  # of the schedule's rate


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where a training stands; everything that a checkpoint holds besides weights and moments."""

    losses: list[float] = field(default_factory=list)  # of the first player, one per step
    scores: list[float] = field(default_factory=list)  # of the validations
    mean: dict[str, torch.Tensor] = field(default_factory=dict)  # running mean of the student's weights
    best: dict[str, torch.Tensor] = field(default_factory=dict)  # the student's weights at the best score

    @property
    def best_validation(self) -> int:
        """Which validation was best; the first of equals."""
        return max(range(len(self.scores)), key=lambda i: self.scores[i])

    def spent(self, patience: int) -> bool:
        """Whether the last `patience` validations brought nothing better."""
        return patience > 0 and len(self.scores) - 1 - self.best_validation >= patience if self.scores else False


def train(
    players: Sequence[Player],
    schedule: Schedule,
    *,
    scratch: Path,
    progress: Callable[[int, int, str], None],
    validate: Callable[[nn.Module], float] | None = None,
) -> Progress:
    """Train the players in turn, in place; the first is the student, whose best (or last) weights it ends with.

    A checkpoint (weights, Adam's moments, losses, means) goes to `scratch` every `checkpoint_every` steps; when one is
    there, training goes on from it, and because data and noise depend on the step alone, ends with the same bits.

    Args:
        players: What is trained; a discriminator comes after its student.
        schedule: Steps, rates, means, validations.
        scratch: Where checkpoints lie.
        progress: Told of every step.
        validate: The student's score, higher is better; called on the running mean where there is one.

    Raises:
        UserError: a loss or a score is not finite.
    """
    student = players[0].module
    optimizers = [torch.optim.Adam(p.module.parameters(), lr=schedule.lr, betas=(0.9, 0.99)) for p in players]
    checkpoint = scratch / "checkpoint.safetensors"
    state = _resume(checkpoint, players, optimizers) if checkpoint.exists() else Progress()
    for player in players:
        player.module.train()
    for step in range(len(state.losses), schedule.steps):
        if state.spent(schedule.patience):
            break
        values = [_step(p, o, schedule, step) for p, o in zip(players, optimizers, strict=True)]
        state.losses.append(values[0])
        _follow(state, student, schedule.ema_decay)
        progress(step + 1, schedule.steps, f"loss {values[0]:.4g}")
        if validate and schedule.validate_every and _due(step + 1, schedule):
            _validate(state, student, validate)
        if (step + 1) % schedule.checkpoint_every == 0 and step + 1 < schedule.steps and _rank() == 0:
            _save(checkpoint, state, players, optimizers)
    student.load_state_dict(state.best or state.mean or student.state_dict())
    for player in players:
        player.module.eval()
    return state


def share_of(step: int) -> int:
    """Which crops this process draws at a step: its own among all processes'."""
    return step * (distributed.get_world_size() if _spread() else 1) + _rank()


def _spread() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _rank() -> int:
    return distributed.get_rank() if _spread() else 0


def _step(player: Player, optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> float:
    optimizer.param_groups[0]["lr"] = schedule.lr_at(step) * player.lr_factor
    optimizer.zero_grad(set_to_none=True)
    value = player.loss(step)
    value.backward()
    if _spread():
        for parameter in player.module.parameters():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad, op=distributed.ReduceOp.SUM)
                parameter.grad /= distributed.get_world_size()
    norm = nn.utils.clip_grad_norm_(player.module.parameters(), 1.0)
    found = float(value.detach())
    if not (math.isfinite(found) and math.isfinite(norm)):
        raise UserError(f"distillation diverged at step {step + 1} (loss {found}); lower lr (now {schedule.lr})")
    optimizer.step()
    return found


def _due(done: int, schedule: Schedule) -> bool:
    return done % schedule.validate_every == 0 or done == schedule.steps


def _follow(state: Progress, student: nn.Module, decay: float) -> None:
    """Move the running mean; early on it forgets faster, so that it does not remember the start."""
    if not decay:
        return
    now = {name: tensor.detach() for name, tensor in student.state_dict().items()}
    done = len(state.losses)
    kept = min(decay, done / (done + 9))
    if not state.mean:
        state.mean = {name: tensor.clone() for name, tensor in now.items()}
    for name, tensor in now.items():
        if tensor.is_floating_point():
            state.mean[name].lerp_(tensor, 1 - kept)
        else:
            state.mean[name] = tensor.clone()


def _validate(state: Progress, student: nn.Module, validate: Callable[[nn.Module], float]) -> None:
    """Score the weights that would be the result now, and keep them where they are the best so far."""
    running = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    student.load_state_dict(state.mean or running)
    student.eval()
    with torch.no_grad():
        score = validate(student)
    if not math.isfinite(score):
        raise UserError(f"the validation after step {len(state.losses)} gave {score}; lower lr, or look at the data")
    state.scores.append(score)
    if state.best_validation == len(state.scores) - 1:
        state.best = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    student.load_state_dict(running)
    student.train()


def _save(path: Path, state: Progress, players: Sequence[Player], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    tensors = {
        "losses": torch.tensor(state.losses, dtype=torch.float64),
        "scores": torch.tensor(state.scores, dtype=torch.float64),
    }
    for player, optimizer in zip(players, optimizers, strict=True):
        tensors |= {f"player.{player.name}.{name}": t for name, t in player.module.state_dict().items()}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{player.name}.{index}.{name}": t for name, t in moments.items()}
    tensors |= {f"mean.{name}": t for name, t in state.mean.items()}
    tensors |= {f"best.{name}": t for name, t in state.best.items()}
    write_tensors(path, tensors)


def _resume(path: Path, players: Sequence[Player], optimizers: Sequence[torch.optim.Optimizer]) -> Progress:
    from safetensors.torch import load_file

    tensors = load_file(path)
    for player, optimizer in zip(players, optimizers, strict=True):
        player.module.load_state_dict(_under(tensors, f"player.{player.name}."))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in _under(tensors, f"adam.{player.name}.").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress(
        losses=tensors["losses"].tolist(),
        scores=tensors["scores"].tolist(),
        mean=_under(tensors, "mean."),
        best=_under(tensors, "best."),
    )


def _under(tensors: State, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
