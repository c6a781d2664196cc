"""What a report is made of: plain records that any pipeline can fill; nothing here knows how a variant was made.

Everything is in the units of its name (`_ms`, `_db`, `bytes`). None means "not measured" and is shown as such.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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
    undecided: bool = False  # the limit lies inside the interval; `passed` is then the gate's own policy
    elsewhere: bool = False  # not measured of this file, and judged of another

    def __post_init__(self) -> None:
        """Refuse a pass without a value.

        Raises:
            ValueError: the row says passed, but its value is NaN or missing.
        """
        missing = self.value is None or math.isnan(self.value)
        if self.passed and missing and not (self.exact or self.elsewhere):
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Thumbnail:
    """One photograph of the strip: the variant's picture, small, and what it scores."""

    name: str
    pixels: np.ndarray  # uint8 [height, width, 3]
    value: float | None  # in `unit`, to ground truth (what is drawn: to the reference's); None: not a number
    drop: float | None  # reference - variant, in `unit`
    unit: str = "dB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One file of the component among the others. Its latency is a ratio to the reference in the same runtime."""

    name: str  # "this run, onnx", "decoder/c25"
    group: Literal["reference", "run", "zoo"]
    quality: float | None
    bytes: int | None
    ratio: float | None
    runtime: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeOff:
    """The files of one component that may be compared, and those that may not with the reason."""

    quality: str  # "PSNR to ground truth, dB"; more is better
    unit: str  # of the quality: "dB"
    contenders: tuple[Contender, ...]
    left_out: tuple[tuple[str, str], ...] = ()  # name, why


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer of the variant; its counterpart in the reference is the layer of the same name."""

    name: str
    kind: str  # "Conv2d"
    weights: str  # "8 bits, per channel", "float32"
    parameters: int
    macs: int
    bytes: int
    reference_bytes: int | None  # None: the reference has no layer of that name


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTable:
    """Figures that a stage measured: the first column names the row, None is not measured.

    Columns that are named alike up to a comma ("mse alone, 4 bits", "mse alone, 8 bits") are drawn as a chart; columns
    "bits" and "activation bits" beside them say which was chosen.
    """

    stage: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]

    def __post_init__(self) -> None:
        """Refuse rows that do not fit.

        Raises:
            ValueError: a row has not as many cells as there are columns.
        """
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: {len(row)} values under {len(self.columns)} columns")


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One number as it was at every update of the baseline, the oldest first; the last two are the baseline and now."""

    label: str  # "psnr, mean to the ground truth"
    unit: str
    values: tuple[float | None, ...]
    comparable: tuple[bool, ...]  # measured under today's conditions

    def __post_init__(self) -> None:
        """Refuse a history without a baseline.

        Raises:
            ValueError: fewer than two values, or not one flag for each.
        """
        if len(self.values) < 2 or len(self.values) != len(self.comparable):
            raise ValueError(f"series {self.label!r}: {len(self.values)} values, {len(self.comparable)} flags")


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Today's numbers against the baseline's and those before it."""

    source: str  # "decoder.json"
    series: tuple[Series, ...]
    differing: tuple[str, ...] = ()  # why the baseline may not be compared


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
    strip: tuple[Thumbnail, ...] = ()
    strip_left_out: int = 0  # photographs that the strip has no room for
    drawn: tuple[Thumbnail, ...] = ()  # what its model draws: the reference's picture left, the variant's right
    trade_off: TradeOff | None = None
    layers: tuple[LayerRow, ...] = ()
    layers_removed: tuple[str, ...] = ()  # layers with weights that only the reference has
    tables: tuple[StageTable, ...] = ()
    history: History | None = None
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
