"""DPM-Solver++ (2M): second order from the last two predictions, so 10 to 20 steps do what DDIM does in 50.

Source: Lu et al. 2022 (arXiv:2211.01095), algorithm 2.
Differs: where the first step starts from pure noise its log-SNR is minus infinity; the limit of the formulas is taken
(first order for that step and the one after), where diffusers replaces zero signal by a small one. The step to the
clean latents is first order, as in diffusers.
"""

import math
from collections.abc import Callable
from typing import Any

from compress.sampling.schedule import Schedule, clean_and_noise, signal_shares, timesteps


def solve(predict: Callable[[Any, int], Any], noise: Any, schedule: Schedule, count: int) -> Any:
    """Latents from noise in `count` steps; `predict(sample, step)` is the network, guidance included."""
    shares = signal_shares(schedule)
    steps = timesteps(schedule, count)
    sample, before, last_width = noise, None, math.inf
    for step, following in zip(steps, (*steps[1:], None), strict=True):
        here = float(shares[step])
        clean, _ = clean_and_noise(sample, predict(sample, int(step)), here, schedule.prediction_type)
        if following is None:
            return clean
        there = float(shares[following])
        width = _half_log_snr(there) - _half_log_snr(here)
        aim = clean
        if before is not None and math.isfinite(last_width):
            aim = clean + (width / (2 * last_width)) * (clean - before)
        kept = math.sqrt((1 - there) / (1 - here))
        sample = kept * sample - math.sqrt(there) * math.expm1(-width) * aim
        before, last_width = clean, width
    return sample


def _half_log_snr(share: float) -> float:
    return -math.inf if share == 0 else 0.5 * (math.log(share) - math.log1p(-share))
