"""DDIM: a deterministic walk from noise to latents, one prediction per step.

Source: Song et al. 2021 (arXiv:2010.02502), eq. (12) with sigma 0.
"""

from collections.abc import Callable
from typing import Any

from compress.sampling.schedule import Schedule, clean_and_noise, signal_shares, timesteps


def solve(predict: Callable[[Any, int], Any], noise: Any, schedule: Schedule, count: int) -> Any:
    """Latents from noise in `count` steps; `predict(sample, step)` is the network, guidance included."""
    shares = signal_shares(schedule)
    steps = timesteps(schedule, count)
    sample = noise
    for step, following in zip(steps, (*steps[1:], None), strict=True):
        prediction = predict(sample, int(step))
        clean, found = clean_and_noise(sample, prediction, float(shares[step]), schedule.prediction_type)
        share = 1.0 if following is None else float(shares[following])
        sample = share**0.5 * clean + (1 - share) ** 0.5 * found
    return sample
