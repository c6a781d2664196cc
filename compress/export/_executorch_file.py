"""What an ExecuTorch file holds, read without ExecuTorch: delegates, their constants, and which layers use them.

Source: executorch 1.5, exir/_serialize/program.fbs (fields of tables by their order), the extended header of
`_ExtendedHeader`, backends/xnnpack/serialization/schema.fbs and its `XNNHeader`.
Differs: only the tables that are needed, by a reader of flatbuffers of its own, so that a damaged file raises instead
of ending the process.
"""

import hashlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from compress.errors import UserError

CONV, DEPTHWISE, LINEAR = 7, 13, 2  # members of XNodeUnion, from 1
CONV_FILTER, LINEAR_FILTER = 16, 1  # fields of their tables
QUANTIZED = 2  # member of XValueUnion
PER_CHANNEL = 1  # member of XNNQuantParams
TENSOR, TEXT = 5, 6  # members of KernelTypes
TYPES = {1: torch.int8, 6: torch.float32}  # by ScalarType


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """The 8-bit weight of one node in a delegate."""

    kind: int
    shape: tuple[int, ...]  # as stored: channels last; depthwise [1, kh, kw, c]
    key: str
    data: bytes
    scale: torch.Tensor  # float32, [o] or [1]
    per_channel: bool


class Table:
    """A table of a flatbuffer; fields by their number in the schema."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self.fields = at - _number(data, "<i", at)

    def _field(self, number: int) -> int:
        """Where a field lies; 0: it has its default."""
        size = _number(self.data, "<H", self.fields)
        place = 4 + 2 * number
        offset = _number(self.data, "<H", self.fields + place) if place < size else 0
        return self.at + offset if offset else 0

    def number(self, number: int, kind: str = "<I", default: int = 0) -> int:
        at = self._field(number)
        return int(_number(self.data, kind, at)) if at else default

    def real(self, number: int) -> float:
        at = self._field(number)
        return float(struct.unpack_from("<f", self.data, at)[0]) if at else 0.0

    def table(self, number: int) -> "Table":
        at = self._field(number)
        if not at:
            raise ValueError(f"field {number} is missing")
        return Table(self.data, at + _number(self.data, "<I", at))

    def _vector(self, number: int) -> tuple[int, int]:
        at = self._field(number)
        start = at + _number(self.data, "<I", at) if at else 0
        return (start + 4, _number(self.data, "<I", start)) if at else (0, 0)

    def text(self, number: int) -> str:
        return self.octets(number).decode()

    def octets(self, number: int) -> bytes:
        start, count = self._vector(number)
        return _cut(self.data, start, count)

    def numbers(self, number: int) -> tuple[int, ...]:
        start, count = self._vector(number)
        return struct.unpack(f"<{count}I", _cut(self.data, start, 4 * count))

    def longs(self, number: int) -> tuple[int, ...]:
        start, count = self._vector(number)
        return struct.unpack(f"<{count}Q", _cut(self.data, start, 8 * count))

    def tables(self, number: int) -> list["Table"]:
        start, count = self._vector(number)
        if count > len(self.data):
            raise ValueError("a vector longer than the file")
        places = range(start, start + 4 * count, 4)
        return [Table(self.data, at + _number(self.data, "<I", at)) for at in places]


def _number(data: bytes, kind: str, at: int) -> int:
    if at < 0:
        raise ValueError("an offset before the file")
    value: int = struct.unpack_from(kind, data, at)[0]
    return value


def _cut(data: bytes, start: int, size: int) -> bytes:
    if start < 0 or size < 0 or start + size > len(data):
        raise ValueError("an offset beyond the file")
    return data[start : start + size]


def _root(data: bytes) -> Table:
    return Table(data, _number(data, "<I", 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file whose header, tables and segments lie within it."""

    program: Table
    segments: tuple[bytes, ...]

    @property
    def delegates(self) -> list[bytes]:
        """The delegates of `forward`, as they are handed to their backends."""
        plans = [plan for plan in self.program.tables(1) if plan.text(0) == "forward"]
        places = [delegate.table(1) for plan in plans for delegate in plan.tables(7)]
        inline = self.program.tables(3)
        return [self.segments[p.number(1)] if p.number(0, "<b") == 1 else inline[p.number(1)].octets(0) for p in places]

    @property
    def named(self) -> dict[str, bytes]:
        """The constants that delegates share, by the digest of their contents."""
        return {entry.text(0): self.segments[entry.number(1)] for entry in self.program.tables(7)}


def opened(path: Path) -> tuple[bytes, File]:
    """A file's bytes and tables.

    Raises:
        UserError: it is missing, cut off, damaged or not an ExecuTorch program.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; export the variant again")
    data = path.read_bytes()
    try:
        if data[4:6] != b"ET" or data[8:12] != b"eh00":
            raise ValueError("no ExecuTorch header")
        length, base = struct.unpack_from("<QQ", data, 16)
        program = _root(_cut(data, 0, length))
        places = [(table.number(0, "<Q"), table.number(1, "<Q")) for table in program.tables(4)]
        file = File(program=program, segments=tuple(_cut(data, base + start, size) for start, size in places))
        for delegate in file.delegates:
            list(weights(delegate, file.named))
    except (ValueError, struct.error, IndexError, UnicodeDecodeError, OverflowError, MemoryError, KeyError) as error:
        raise UserError(
            f"{path}: not a whole ExecuTorch program ({error}); export the variant again, or fetch the file again"
        ) from error
    return data, file


def weights(delegate: bytes, named: dict[str, bytes]) -> Iterator[Weight]:
    """The 8-bit weights that an XNNPACK delegate's nodes multiply with, in the order of its nodes."""
    start, size = struct.unpack_from("<II", delegate, 10)
    graph = _root(_cut(delegate, start, size))
    values = {}
    for value in graph.tables(2):
        quantized, inner = value.number(0, "<B") == QUANTIZED, value.table(1)
        tensor = inner.table(0) if quantized else inner
        values[tensor.number(6)] = (tensor, inner if quantized else None)
    constants = graph.tables(8)
    for node in graph.tables(1):
        kind = node.number(0, "<B")
        if kind not in (CONV, DEPTHWISE, LINEAR):
            continue
        tensor, quantized_tensor = values[node.table(1).number(LINEAR_FILTER if kind == LINEAR else CONV_FILTER)]
        if quantized_tensor is not None and tensor.number(3):
            yield _weight(kind, tensor, quantized_tensor, constants, named)


def _weight(kind: int, tensor: Table, quantized: Table, constants: list[Table], named: dict[str, bytes]) -> Weight:
    key, parameters = constants[tensor.number(3)].text(2), quantized.table(2)
    per_channel = quantized.number(1, "<B") == PER_CHANNEL
    if per_channel:
        stored = named[constants[parameters.number(2)].text(2)]
        scale = torch.frombuffer(bytearray(stored), dtype=torch.float32)
    else:
        scale = torch.tensor([parameters.real(0)])
    return Weight(kind=kind, shape=tensor.numbers(2), key=key, data=named[key], scale=scale, per_channel=per_channel)


def arranged(weight: Weight, shape: tuple[int, ...]) -> torch.Tensor:
    """The integers in the order of a layer's own weight [o, i, kh, kw] or [o, i].

    Raises:
        ValueError: they are not of that size.
    """
    stored = torch.frombuffer(bytearray(weight.data), dtype=torch.int8).reshape(weight.shape)
    if weight.kind == LINEAR:
        return stored.reshape(shape).clone()
    if weight.kind == DEPTHWISE:
        return stored.reshape(weight.shape[1], weight.shape[2], -1).permute(2, 0, 1).reshape(shape).contiguous()
    return stored.permute(0, 3, 1, 2).reshape(shape).contiguous()


def text_of(file: File, method: str) -> str:
    """The text that a method without inputs gives; "" where there is no such method."""
    for plan in file.program.tables(1):
        if plan.text(0) == method:
            result = plan.tables(2)[plan.numbers(4)[0]]
            return result.table(1).text(0) if result.number(0, "<B") == TEXT else ""
    return ""


def constants(file: File) -> dict[str, tuple[torch.dtype, bytes]]:
    """The constants of `forward` outside of delegates, by the digest of their contents."""
    segment = file.program.table(5)
    data, found = file.segments[segment.number(0)], {}
    starts = segment.longs(1)
    for plan in file.program.tables(1):
        for value in plan.tables(2) if plan.text(0) == "forward" else []:
            tensor = value.table(1) if value.number(0, "<B") == TENSOR else None
            kind = TYPES.get(tensor.number(0, "<b")) if tensor is not None else None
            if tensor is None or kind is None or not tensor.number(5):
                continue
            start, size = starts[tensor.number(5)], math.prod(tensor.numbers(2)) * kind.itemsize
            stored = _cut(data, start, size)
            found[hashlib.sha256(stored).hexdigest()] = (kind, stored)
    return found
