"""What a measured ratio says of a limit: within it, above it, or not to be told.

The interval decides and nothing else: within where all of it is, above where none of it is. A host that cannot tell the
reference from itself says nothing at all.
"""

import math
from dataclasses import dataclass
from typing import Literal

from eval import series
from eval.metrics.latency import LatencyRatio

MARGIN = 0.03  # what a gate on "no slower than before" allows: see docs/decisions/0014

State = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A verdict before any policy."""

    state: State
    text: str


def outcome(latency: LatencyRatio, limit: float) -> Outcome:
    """Compare the ratio with the largest one allowed."""
    seen = f"ratio {latency.ratio:.3f} (95 % {latency.low:.3f} to {latency.high:.3f}, {latency.pairs} pairs)"
    numbers = (latency.ratio, latency.low, latency.high, latency.noise_floor, latency.same.low, latency.same.high)
    if not all(map(math.isfinite, numbers)):
        return Outcome(state="fail", text=f"{seen} is not a measurement")
    if latency.same.low > 1 + MARGIN or latency.same.high < 1 / (1 + MARGIN):
        itself = f"{latency.same.low:.3f} to {latency.same.high:.3f}"
        return Outcome(
            state="undecided",
            text=f"{seen}, but the reference takes {itself} of its own time on {latency.host}: measure elsewhere",
        )
    if latency.high <= limit:
        return Outcome(state="pass", text=f"{seen} is within {limit:g}")
    if latency.low > limit:
        return Outcome(state="fail", text=f"{seen} is above {limit:g}; the candidate is too slow on {latency.host}")
    noise = f"the limit {limit:g} lies inside the interval; this host's noise floor is {latency.noise_floor:.3f}"
    advice = "measure longer, on one thread, or on a quieter host"
    return Outcome(state="undecided", text=f"{seen}: {noise}; {advice}")


def outcome_ms(latency: LatencyRatio, limit: float) -> Outcome:
    """Compare the candidate's own milliseconds with the most allowed."""
    times = [time for time in latency.candidate_ms if time > 0]
    if len(times) < 2 or len(times) < len(latency.candidate_ms) or not all(map(math.isfinite, times)):
        return Outcome(state="fail", text=f"{len(times)} sound timings of the candidate are not a measurement")
    _, logs = series.interval([math.log(time) for time in times], level=0.95, seed=0)
    low, high = math.exp(logs.low), math.exp(min(logs.high, 700.0))
    seen = f"{latency.medians_ms[1]:.4g} ms (95 % {low:.4g} to {high:.4g}, {latency.clock} time on {latency.host})"
    if high <= limit:
        return Outcome(state="pass", text=f"{seen} is within {limit:g} ms")
    if low > limit:
        return Outcome(state="fail", text=f"{seen} is above {limit:g} ms")
    return Outcome(state="undecided", text=f"{seen}: the limit {limit:g} ms lies inside the interval")
