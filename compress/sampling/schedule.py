"""How much noise at which time step, and what the network predicts there.

Source: Ho et al. 2020 (arXiv:2006.11239); `cosine` of Nichol and Dhariwal 2021 (arXiv:2102.09672), eq. (17);
`scaled_linear` of Stable Diffusion; v-prediction of Salimans and Ho 2022 (arXiv:2202.00512), section 4; zero terminal
signal and trailing steps of Lin et al. 2023 (arXiv:2305.08891), algorithm 1 and section 3.3; keys as in diffusers.
"""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import TypeAdapter, ValidationError

from compress.errors import UserError
from compress.files import read_json, write_json

Prediction = Literal["v_prediction", "epsilon"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A noise schedule: `sqrt(a) x + sqrt(1 - a) noise`, `a` from almost 1 at step 0 to (almost) 0 at the last."""

    num_train_timesteps: int = 1000
    beta_schedule: Literal["scaled_linear", "linear", "squaredcos_cap_v2"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    rescale_betas_zero_snr: bool = True
    prediction_type: Prediction = "v_prediction"

    def __post_init__(self) -> None:
        problems = []
        if self.num_train_timesteps < 2:
            problems.append(f"num_train_timesteps {self.num_train_timesteps}: at least 2")
        if not 0 < self.beta_start < self.beta_end < 1:
            problems.append(f"beta_start {self.beta_start}, beta_end {self.beta_end}: 0 < start < end < 1")
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            problems.append(
                "prediction_type epsilon cannot start from pure noise (rescale_betas_zero_snr): the noise says nothing "
                "of the picture there; use v_prediction"
            )
        if problems:
            raise ValueError("; ".join(problems))


def signal_shares(schedule: Schedule) -> Float[np.ndarray, " steps"]:
    """`a` of every step (the cumulative product of 1 - beta), in float64."""
    steps = schedule.num_train_timesteps
    if schedule.beta_schedule == "squaredcos_cap_v2":
        ends = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - ends[1:] / ends[:-1], 0.999)
    elif schedule.beta_schedule == "linear":
        betas = np.linspace(schedule.beta_start, schedule.beta_end, steps)
    else:
        betas = np.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, steps) ** 2
    shares = np.cumprod(1 - betas)
    if not schedule.rescale_betas_zero_snr:
        return shares
    roots = np.sqrt(shares)
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


def timesteps(schedule: Schedule, count: int) -> Int[np.ndarray, " count"]:
    """`count` steps from the last one down, evenly spaced ("trailing").

    Raises:
        UserError: fewer than 1 or more than the schedule has.
    """
    total = schedule.num_train_timesteps
    if not 1 <= count <= total:
        raise UserError(f"{count} steps asked; this schedule takes 1 to {total}")
    return np.round(np.arange(count, 0, -1) * (total / count)).astype(np.int64) - 1


def clean_and_noise(sample: Any, prediction: Any, share: float, kind: Prediction) -> tuple[Any, Any]:
    """What a prediction says of the clean latents and of the noise in `sample`; arrays of any kind."""
    signal, noise = math.sqrt(share), math.sqrt(1 - share)
    if kind == "v_prediction":
        return signal * sample - noise * prediction, signal * prediction + noise * sample
    return (sample - noise * prediction) / signal, prediction


def to_json(schedule: Schedule) -> dict[str, Any]:
    """A plain record; diffusers' schedulers take the same keys."""
    return asdict(schedule)


def save(schedule: Schedule, path: Path) -> None:
    """Write scheduler.json."""
    write_json(path, to_json(schedule))


def load(path: Path) -> Schedule:
    """Read scheduler.json.

    Raises:
        UserError: missing, an unknown key, or a value that makes no schedule.
    """
    data = read_json(path)
    known = {field.name for field in fields(Schedule)}
    if not isinstance(data, dict) or set(data) != known:
        odd = sorted(set(data) ^ known) if isinstance(data, dict) else "no object"
        raise UserError(f"{path}: needs exactly the keys {', '.join(sorted(known))}; differs in {odd}")
    try:
        return TypeAdapter(Schedule).validate_python(data)
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, e['loc'])) or 'schedule'}: {e['msg']}" for e in error.errors()]
        raise UserError("\n".join(lines)) from error
