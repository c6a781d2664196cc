"""A gate as it is written, and the verdict that comes of it."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, NamedTuple

from eval.compare import Against, Of
from eval.errors import EvalError

Kind = Literal["min", "max", "max_drop", "max_rise", "max_ratio", "max_gain"]
KINDS: tuple[Kind, ...] = ("min", "max", "max_drop", "max_rise", "max_ratio")
RELATIVE: tuple[Kind, ...] = ("max_drop", "max_rise", "max_ratio")
DEFAULT_NET = "st-alex"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSpec:
    """One gate. One of the five limits is given, or a window: `min` with `max`, a relative limit with `max_gain`.

    `min` and `max` bound the measured value itself; `max_drop` and `max_rise` how much worse than the reference (or the
    stored baseline) the candidate is, image by image, both measured to the ground truth; `max_ratio` candidate over
    reference. `max_gain` bounds how much better it may be: what is suspiciously good stops too.
    """

    metric: str
    net: str | None = None  # LPIPS only; None is DEFAULT_NET
    against: Against | Literal["baseline"] = "reference"
    of: Of = "candidate"
    statistic: str = "mean"  # of images; latency is always judged by its median, size by its total
    min: float | None = None
    max: float | None = None  # latency: ms; size: bytes
    max_drop: float | None = None
    max_rise: float | None = None
    max_ratio: float | None = None
    max_gain: float | None = None
    runtime: str | None = None  # latency: the runtime it must have been measured in
    undecided: Literal["fail", "pass"] = "fail"  # latency: what it comes to where the limit lies inside the interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a gate said. `value` is None where there is none: NaN, not measured, or an exact match (then `exact`)."""

    subject: str  # "variant", "onnx", ...
    metric: str
    net: str | None
    statistic: str
    of: Of
    against: Against | Literal["baseline", "requested"]  # requested: a stage's promise, not a picture
    kind: Kind
    value: float | None
    limit: float
    passed: bool
    unit: str
    reason: str
    exact: bool = False
    low: float | None = None  # 95 % interval, where one was measured
    high: float | None = None
    definition: str = ""  # of the metric
    net_digest: str | None = None  # SHA-256 of the net's weights
    undecided: bool = False  # latency: the limit lies inside the interval; `passed` is then the gate's own policy
    elsewhere: bool = False  # latency: nothing here can time this file, and another file of the run is judged


class Sizes(NamedTuple):
    """Bytes on disk of the two; and, where it was taken, the memory at the peak of running them."""

    candidate_bytes: int
    reference_bytes: int
    candidate_peak: int | None = None
    reference_peak: int | None = None


def is_near(metric: str, value: float | None, limit: float, passed: bool) -> bool:
    """Whether a stage did what it was asked as nearly as it can, if not to the last one: channels go in steps."""
    return metric == "achieved" and passed and value is not None and value < limit


def net_of(spec: GateSpec) -> str | None:
    """The net that a gate means."""
    return spec.net or (DEFAULT_NET if spec.metric == "lpips" else None)


def to_json(verdict: Verdict) -> dict[str, Any]:
    """A record for verdicts.json. Holds no NaN and no infinity."""
    record = {field.name: getattr(verdict, field.name) for field in fields(verdict)}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()
    }


def from_json(record: Mapping[str, Any]) -> Verdict:
    """What `to_json` wrote; what an older version did not write has its default.

    Raises:
        EvalError: the record is not of that form.
    """
    known = {field.name for field in fields(Verdict)}
    required = {field.name for field in fields(Verdict) if field.default is MISSING}
    wrong = (set(record) - known) | (required - set(record))
    if wrong:
        raise EvalError(f"not a verdict: keys {sorted(wrong)} are missing or unknown")
    return Verdict(**record)
