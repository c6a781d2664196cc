"""quantization.json and lineage.json as records: what a variant's folder says beside its architecture and weights."""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, PositiveInt, ValidationError, model_validator

from compress.errors import UserError
from compress.files import read_json
from compress.records import Achieved, Skipped, StageRecord, Table
from compress.schema import Schema

Record = TypeVar("Record", bound=Schema)


class _PerGroup(Schema):
    per_group: PositiveInt


class _Palette(Schema):
    palette: PositiveInt | None


class _Range(Schema):
    scale: float = Field(gt=0)
    zero_point: int = Field(ge=0)
    bits: int = Field(ge=2, le=16)


class _Layer(Schema):
    bits: Literal[2, 3, 4, 5, 6, 7, 8, 16]
    granularity: Literal["per_tensor", "per_channel", "float16", "bfloat16"] | _PerGroup | _Palette
    input: _Range | None
    output: _Range | None

    @model_validator(mode="after")
    def _bits_fit(self) -> "_Layer":
        if (self.bits == 16) != (self.granularity in ("float16", "bfloat16")):
            raise ValueError("16 bits and the granularities float16 and bfloat16 belong together")
        return self


class _Quantization(Schema):
    version: Literal[1] = Field(alias="schema")
    layers: dict[str, _Layer]
    splits: dict[str, list[PositiveInt]] = Field(default_factory=dict)


class _Achieved(Schema):
    what: str
    requested: float
    achieved: float
    unit: str
    met: bool


class _Skipped(Schema):
    name: str
    reason: str


class _Table(Schema):
    name: str
    title: str
    columns: list[str]
    rows: list[list[str | int | float | None]]

    @model_validator(mode="after")
    def _fits(self) -> "_Table":
        self.record()
        return self

    def record(self) -> Table:
        """With tuples for lists."""
        rows = tuple(tuple(row) for row in self.rows)
        return Table(name=self.name, title=self.title, columns=tuple(self.columns), rows=rows)


class _Stage(Schema):
    method: str
    config: dict[str, Any]
    key: str
    achieved: list[_Achieved]
    skipped: list[_Skipped]
    notes: list[str]
    tables: list[_Table] = Field(default_factory=list)


class _Lineage(Schema):
    version: Literal[1] = Field(alias="schema")
    component: str
    stages: list[_Stage]


def read_quantization(path: Path) -> dict[str, dict[str, Any]]:
    """The layers of a quantization.json, in the form of `nn.qmodules.quantization_map`.

    Raises:
        UserError: a key is missing, unknown or out of range; every mistake with its place.
    """
    return {name: layer.model_dump() for name, layer in _read(path, _Quantization).layers.items()}


def read_splits(path: Path) -> dict[str, list[int]]:
    """The convolutions that a quantization.json takes apart, and the channels of their parts.

    Raises:
        UserError: as `read_quantization`.
    """
    return dict(_read(path, _Quantization).splits)


def read_lineage(path: Path) -> tuple[str, tuple[StageRecord, ...]]:
    """The component's name and what each stage did to it.

    Raises:
        UserError: as `read_quantization`.
    """
    lineage = _read(path, _Lineage)
    return lineage.component, tuple(_stage(stage) for stage in lineage.stages)


def _stage(stage: _Stage) -> StageRecord:
    return StageRecord(
        method=stage.method,
        config=stage.config,
        key=stage.key,
        achieved=tuple(Achieved(**a.model_dump()) for a in stage.achieved),
        skipped=tuple(Skipped(**s.model_dump()) for s in stage.skipped),
        notes=tuple(stage.notes),
        tables=tuple(table.record() for table in stage.tables),
    )


def _read(path: Path, record: type[Record]) -> Record:
    try:
        return record.model_validate(read_json(path))
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors()]
        raise UserError("\n".join(lines)) from error
