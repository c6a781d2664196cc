"""What a report is made of: plain records that any pipeline can fill; nothing here knows how a variant was made.

Everything is in the units of its name (`_ms`, `_db`, `bytes`). None means "not measured" and is shown as such.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One figure at the top of the page, of the reference and of the variant.

    `unit` decides how it is written: "parameters", "MACs" and "bytes" are scaled (M, G, KiB); others are appended.
    """

    label: str
    unit: str
    reference: float | None
    variant: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRow:
    """What one gate said. `kind` is the limit's name in the recipe: min, max, max_drop, max_rise, max_ratio.

    `value` is None where nothing was measured, or where `exact` (the images are identical, PSNR is infinite).
    """

    subject: str  # "variant", "onnx": what was judged
    metric: str
    statistic: str
    against: str
    kind: str
    value: float | None
    limit: float
    passed: bool
    net: str | None = None
    of: str = "candidate"
    unit: str = ""
    reason: str = ""
    exact: bool = False
    low: float | None = None  # ends of the interval around `value`
    high: float | None = None

    def __post_init__(self) -> None:
        """Refuse a pass without a value.

        Raises:
            ValueError: the row says passed, but its value is NaN or missing.
        """
        missing = self.value is None or math.isnan(self.value)
        if self.passed and missing and not self.exact:
            raise ValueError(f"verdict {self.metric} of {self.subject} says passed, but its value is {self.value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """The state after one stage; the first row is the reference. PSNR and LPIPS are to ground truth, SQNR to it."""

    method: str
    config: str = ""
    seconds: float | None = None
    cached: bool = False
    parameters: int | None = None
    macs: int | None = None
    bytes: int | None = None
    psnr_db: float | None = None
    lpips: float | None = None
    sqnr_db: float | None = None  # of a component that makes no pictures; infinite for the reference
    cosine: float | None = None
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AchievedRow:
    """One thing a stage was asked for and what it did."""

    stage: str
    what: str
    requested: float
    achieved: float
    unit: str
    met: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedRow:
    """A module that a stage left alone, and why."""

    stage: str
    module: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """One photograph through both models: three uint8 arrays of one shape [height, width, 3]."""

    name: str
    why: str  # "best", "median", "worst"
    score: str  # "PSNR 27.31 dB, 0.42 dB below the reference"
    original: np.ndarray
    reference: np.ndarray
    candidate: np.ndarray

    def __post_init__(self) -> None:
        """Refuse arrays that cannot be shown side by side.

        Raises:
            ValueError: an array is not uint8 [height, width, 3], or the three differ in shape.
        """
        for name in ("original", "reference", "candidate"):
            array = getattr(self, name)
            shape_fits = array.ndim == 3 and array.shape[2] == 3 and array.shape == self.original.shape
            if array.dtype != np.uint8 or not shape_fits or array.size == 0:
                raise ValueError(
                    f"picture {self.name!r}: {name} is {array.dtype} {list(array.shape)}; it must be uint8 "
                    f"[height, width, 3] like the original {list(self.original.shape)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySamples:
    """Paired samples of both models and the ratio candidate / reference with its interval.

    `noise_floor` is what the same protocol says of the reference against itself, as a distance from 1.
    """

    reference_ms: tuple[float, ...]
    candidate_ms: tuple[float, ...]
    ratio: float
    low: float
    high: float
    noise_floor: float | None
    host: str
    runtime: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PerImage:
    """A score in dB of every evaluation sample, in one order: PSNR to ground truth, or SQNR to the reference."""

    names: tuple[str, ...]
    reference_db: tuple[float, ...]  # empty where the reference is what is compared with
    candidate_db: tuple[float, ...]
    what: str = "PSNR of every photograph"

    def __post_init__(self) -> None:
        """Refuse lists that do not pair up.

        Raises:
            ValueError: the three tuples differ in length.
        """
        if len(self.names) != len(self.candidate_db) or len(self.reference_db) not in (0, len(self.names)):
            raise ValueError(
                f"{len(self.names)} names, but {len(self.reference_db)} reference values "
                f"and {len(self.candidate_db)} candidate values"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything on the page. The same record gives the same bytes."""

    title: str  # the variant's name
    component: str
    passed: bool
    verdicts: tuple[VerdictRow, ...]
    created: str | None = None  # shown as it is; leave it out and the page depends on the results alone
    facts: tuple[Fact, ...] = ()
    stages: tuple[StageRow, ...] = ()
    lpips_net: str | None = None  # the net behind StageRow.lpips
    achieved: tuple[AchievedRow, ...] = ()
    skipped: tuple[SkippedRow, ...] = ()
    pictures: tuple[Picture, ...] = ()
    latency: LatencySamples | None = None
    per_image: PerImage | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    recipe: str = ""

    def __post_init__(self) -> None:
        """Refuse a green page with a red row.

        Raises:
            ValueError: `passed`, although a verdict failed.
        """
        failed = [row.metric for row in self.verdicts if not row.passed]
        if self.passed and failed:
            raise ValueError(f"the report says passed, but these gates failed: {', '.join(failed)}")
