"""The records that cross rooms. What users write is in `recipe`; what gates say is in `eval.gates`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import nn

Inputs = tuple[torch.Tensor, ...]  # of one call, samples along the first axis: latents, time steps, text embeddings


class Needs(StrEnum):
    """What a method needs besides the variant itself."""

    NOTHING = "nothing"
    STATISTICS = "statistics"  # calibration inputs run through the variant
    TRAINING = "training"  # photographs, gradients, time


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A module that a method left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Achieved:
    """One thing a stage was asked for and what it did. `met` is the method's own judgement of the two."""

    what: str  # "ResNet blocks removed", "trunk channels removed", "weights at 8 bits"
    requested: float
    achieved: float
    unit: str
    met: bool


Cell = str | int | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Figures that a stage measured on its way, for reports to show or draw: a row for each layer or block.

    The first column names the row; a column's unit stands in its name ("macs", "mse at 4 bits"); None: not measured.
    """

    name: str  # what reports know it by: "sensitivity"
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        """Refuse what could not be written or drawn.

        Raises:
            ValueError: a row does not fit the columns, or holds NaN or infinity.
        """
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.name!r}: {len(row)} cells under {len(self.columns)} columns: {row}")
            if any(isinstance(cell, float) and not math.isfinite(cell) for cell in row):
                raise ValueError(f"table {self.name!r}: a cell is no finite number: {row}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """How to build a component: its kind (`vae.decoder`) and that kind's configuration record."""

    kind: str
    config: Any  # a frozen dataclass of the kind's own file, e.g. vae.DecoderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One component in one state: module (eval mode, never written to), how to rebuild it, how it came about."""

    component: str  # "md-tiny/decoder"
    arch: Arch
    module: nn.Module
    lineage: tuple["StageRecord", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """What one stage did, kept with the variant for ever."""

    method: str
    config: Mapping[str, Any]
    key: str
    achieved: tuple[Achieved, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Diffusion:
    """What a diffusion network is trained on besides itself."""

    schedule: Any  # compress.sampling.schedule.Schedule: how much noise at which time step
    clean: Callable[[int, int, int], Inputs]  # (step, batch, pixels) -> latents without noise, then the conditions
    empty: Inputs | None  # the conditions of an empty text [1, ...]; None: guidance is not possible


@dataclass(frozen=True, slots=True, kw_only=True)
class StageInput:
    """What a method is given. Nothing in here may be written to, the scratch folder excepted."""

    variant: Variant
    teacher: nn.Module  # the component as it was loaded
    inputs: Inputs  # calibration inputs of the component, e.g. latents [n, z, h, w] alone for a decoder
    sample: Callable[[int, int, int], Inputs]  # (step, batch, pixels) -> training inputs, same step same bits
    seed: int
    scratch: Path  # survives a kill; emptied once the stage's result is stored
    progress: Callable[[int, int, str], None] = field(default=lambda done, total, text: None)
    diffusion: Diffusion | None = None  # of a diffusion network


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What a method gives back: a new variant and the account of what was asked and done."""

    arch: Arch
    module: nn.Module
    achieved: tuple[Achieved, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A way in which layers may be held; 32 bits without a granularity mean float."""

    bits: int
    granularity: Any  # compress.nn.affine.Granularity, or None
    activation_bits: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a plan knows before anything runs: architectures that bound what the stages can end with, and bits."""

    ends: tuple[Arch, ...]  # one where it is certain; else those with the fewest and most MACs and parameters
    weight_bits: int = 32
    activation_bits: int = 32
    granularity: Any = None  # compress.nn.affine.Granularity of quantized weights
    in_float: tuple[str, ...] = ()  # patterns of layers that are not quantized
    others: tuple[Held, ...] = ()  # how single layers may be held instead, where a method chooses for each
    bytes_per_weight: float | None = None  # what quantized weights have at most, scales included, on average


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What a variant is judged on."""

    names: tuple[str, ...]
    inputs: Inputs
    truth: torch.Tensor | None  # pictures [n, 3, h, w] in [0, 1] that a perfect component would give back, if there are
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """Where a component's inputs come from; nothing is loaded before it is asked for."""

    calibration: Callable[[], Inputs]
    sample: Callable[[int, int, int], Inputs]  # (step, batch, pixels) -> training inputs, same step same bits
    evaluation: Callable[[], Samples]
    notes: tuple[str, ...] = ()  # what stands in for inputs that the component's family cannot give
    diffusion: Callable[[], Diffusion | None] = lambda: None  # of a diffusion network whose family has all of it
