"""Values of a network on their way into a .tflite file: where each axis lies, and how it gets where it is needed.

Source: TensorFlow Lite's operators RESHAPE and TRANSPOSE; axes that are permuted on paper alone as in tinygrad's views.
Differs: torch's maps are [n, c, h, w], the format's kernels want [n, h, w, c]. A value here carries both: the shape
that torch knows and the order in which the axes lie, so that permuting costs nothing and tokens made of a map's pixels
are the same memory read in another way. Memory moves only where an operator cannot read it as it lies.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from compress.export._litert_file import File, Grid, Type
from compress.nn.qmodules import QuantizedModule

MAP = (0, 2, 3, 1)  # [n, c, h, w] as it lies in memory: n, h, w, c


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the file under the shape that torch gives it; axis `order[p]` of that is axis p in memory."""

    tensor: int
    shape: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def laid(self) -> tuple[int, ...]:
        """The shape in memory."""
        return tuple(self.shape[axis] for axis in self.order)

    def position(self, axis: int) -> int:
        """Where torch's axis (negative ones counted from the end) lies in memory."""
        return self.order.index(axis % len(self.shape))


@dataclass(frozen=True, slots=True)
class Const:
    """A tensor that is known before anything runs; `name` is that of a parameter, or empty."""

    data: torch.Tensor
    name: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """As of a value."""
        return tuple(self.data.shape)


Operand = Value | Const | float


def plain(tensor: int, shape: Sequence[int]) -> Value:
    """A value whose axes lie as torch counts them."""
    return Value(tensor, tuple(shape), tuple(range(len(shape))))


@dataclass(slots=True)
class Writer:
    """The file, the quantized layers that go into it, and the module whose operators are being written."""

    file: File
    layers: Mapping[str, QuantizedModule]
    half: bool = False  # float weights are stored in half precision
    bytes_of_four: bool = False  # weights of 4 bits are stored in a byte each
    scope: str = ""
    placed: set[str] = field(default_factory=set)
    quantized: dict[tuple[int, Grid], int] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)  # nodes of the graph that stand for one
    fused: set[str] = field(default_factory=set)  # nodes that a later operator does too

    def emit(
        self,
        code: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        options: Mapping[str, Any] | None = None,
        *,
        kind: str | None = None,
        version: int = 1,
        type: Type = "FLOAT32",  # noqa: A002 - the schema's word
        grid: Grid | None = None,
    ) -> int:
        """Append an operator with one output; its tensor, of `shape` in memory."""
        output = self.file.value(shape, type, f"{self.scope}/{code.lower()}".lstrip("/"), grid)
        self.file.op(code, inputs, [output], options, version=version, kind=kind)
        return output

    def floats(self, data: torch.Tensor, name: str = "") -> int:
        """A constant in float32, whatever the precision of weights is."""
        array = data.detach().float().contiguous().numpy()
        return self.file.constant(array, array.shape, "FLOAT32", name or f"{self.scope}/constant".lstrip("/"))

    def ints(self, values: Sequence[int]) -> int:
        """A constant list of whole numbers: axes, shapes, paddings."""
        array = np.asarray(values, dtype=np.int32)
        return self.file.constant(array, array.shape, "INT32", f"{self.scope}/numbers".lstrip("/"))

    def value(self, operand: Operand) -> Value:
        """Any operand as a value in memory."""
        if isinstance(operand, Value):
            return operand
        data = operand.data if isinstance(operand, Const) else torch.tensor([float(operand)])
        return plain(self.floats(data, operand.name if isinstance(operand, Const) else ""), data.shape)

    def arranged(self, value: Value, order: Sequence[int]) -> Value:
        """The same value with its axes in this order in memory."""
        order = tuple(order)
        if order == value.order:
            return value
        shape = tuple(value.shape[axis] for axis in order)
        if _long(value.order, value.shape) == _long(order, value.shape):
            return Value(self.relaid(value.tensor, shape), value.shape, order)
        moves = self.ints([value.order.index(axis) for axis in order])
        version = 1 if len(shape) < 5 else 4
        moved = self.emit("TRANSPOSE", [value.tensor, moves], shape, kind="TransposeOptions", version=version)
        return Value(moved, value.shape, order)

    def straight(self, value: Value) -> Value:
        """Axes in memory as torch counts them."""
        return self.arranged(value, range(len(value.shape)))

    def last(self, value: Value, axis: int = -1) -> Value:
        """The same value with this axis last in memory, the others as they lie."""
        axis %= len(value.shape)
        return self.arranged(value, [a for a in value.order if a != axis] + [axis])

    def relaid(self, tensor: int, shape: Sequence[int]) -> int:
        """The same numbers under another shape in memory."""
        if self.file.shape(tensor) == tuple(shape):
            return tensor
        options = {"newShape": [int(n) for n in shape]}
        held = self.file.kind(tensor)
        return self.emit("RESHAPE", [tensor, self.ints(shape)], shape, options, kind="ReshapeOptions", type=held)

    def reshaped(self, value: Value, shape: Sequence[int]) -> Value:
        """Another shape: free where the axes that join or part lie side by side, else behind a transpose."""
        shape = _resolved(shape, math.prod(value.shape))
        if shape == value.shape:
            return value
        order = _order_after(value, shape)
        if order is None:
            value, order = self.straight(value), tuple(range(len(shape)))
        return Value(self.relaid(value.tensor, [shape[axis] for axis in order]), shape, order)

    def like(self, operand: Operand, rank: int, order: Sequence[int]) -> int:
        """An operand of a broadcasting operator beside a value of this rank and order in memory."""
        if isinstance(operand, Value):
            missing = rank - len(operand.shape)
            return self.arranged(self.reshaped(operand, (1,) * missing + operand.shape), order).tensor
        if not isinstance(operand, Const) or operand.data.numel() == 1:
            number = operand.data.reshape(1) if isinstance(operand, Const) else torch.tensor([float(operand)])
            return self.floats(number)
        data = operand.data.reshape((1,) * (rank - operand.data.dim()) + operand.shape)
        return self.floats(data.permute(*order), operand.name)


def permuted(value: Value, dims: Sequence[int]) -> Value:
    """Axes in another order for torch; nothing moves."""
    dims = [d % len(value.shape) for d in dims]
    return Value(value.tensor, tuple(value.shape[d] for d in dims), tuple(dims.index(axis) for axis in value.order))


def _long(order: Sequence[int], shape: Sequence[int]) -> list[int]:
    """The axes of more than one entry, as they lie."""
    return [axis for axis in order if shape[axis] != 1]


def _resolved(shape: Sequence[int], count: int) -> tuple[int, ...]:
    known = math.prod(n for n in shape if n != -1)
    return tuple(int(count // known if n == -1 else n) for n in shape)


def _order_after(value: Value, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """How the axes of the reshaped value lie; None where memory must move first."""
    laid = _long(value.order, value.shape)
    parts = _parts(value.shape, shape)
    where = {axis: part for part, (old, _) in enumerate(parts) for axis in old}
    order: list[int] = []
    while laid:
        old, new = parts[where[laid[0]]]
        if laid[: len(old)] != old:
            return None
        order, laid = order + new, laid[len(old) :]
    for axis in (a for a, n in enumerate(shape) if n == 1):
        order.insert(0 if axis == 0 else order.index(axis - 1) + 1, axis)
    return tuple(order)


def _parts(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Which axes of more than one entry become which: the finest cut at which both have equally many entries."""
    left, right = ([a for a, n in enumerate(shape) if n != 1] for shape in (old, new))
    parts: list[tuple[list[int], list[int]]] = []
    while left:
        a, b = [left.pop(0)], [right.pop(0)]
        while (size := math.prod(old[i] for i in a)) != (other := math.prod(new[i] for i in b)):
            if size < other:
                a.append(left.pop(0))
            else:
                b.append(right.pop(0))
        parts.append((a, b))
    return parts
