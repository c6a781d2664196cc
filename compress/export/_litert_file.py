"""A .tflite file in the making: tensors, buffers and operators, and the bytes of it all.

Source: TensorFlow Lite's schema, version 3 (schema.fbs), through the classes that ai-edge-litert generates from it;
operator versions after `GetBuiltinOperatorVersion` of LiteRT's tools.
Differs: the generated `pack` leaves buffers where they fall; here each starts at a multiple of 16 bytes, as the schema
asks and as kernels that read a mapped file need it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from compress.errors import UserError

Type = Literal["FLOAT32", "FLOAT16", "INT32", "INT8", "INT4", "UINT8"]
LIMIT = 2**31 - 2**20  # a flatbuffer's offsets are signed 32-bit numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """real = (integer - zero_point) * scale, with one scale or one for each entry of an axis."""

    scale: tuple[float, ...]
    zero_point: int = 0
    axis: int = 0


@dataclass(slots=True)
class File:
    """One subgraph. Tensors and operators are numbered in the order in which they are made."""

    schema: Any  # ai_edge_litert.schema_py_generated
    tensors: list[Any] = field(default_factory=list)
    buffers: list[bytes] = field(default_factory=lambda: [b""])
    operators: list[Any] = field(default_factory=list)
    codes: dict[tuple[str, int], int] = field(default_factory=dict)
    shared: dict[tuple[Any, ...], int] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def value(self, shape: Sequence[int], kind: Type, name: str, grid: Grid | None = None) -> int:
        """A tensor that an operator, or the caller, will write."""
        return self._tensor(shape, kind, name, 0, grid)

    def constant(
        self, content: NDArray[Any] | bytes, shape: Sequence[int], kind: Type, name: str, grid: Grid | None = None
    ) -> int:
        """A tensor with a content; the same one again if it was made before under any name, weights apart."""
        data = content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()
        key = (data, tuple(shape), kind, grid, name if name.endswith(".weight") else None)
        if key not in self.shared:
            self.buffers.append(data)
            self.shared[key] = self._tensor(shape, kind, name, len(self.buffers) - 1, grid)
        return self.shared[key]

    def _tensor(self, shape: Sequence[int], kind: Type, name: str, buffer: int, grid: Grid | None) -> int:
        tensor = self.schema.TensorT()
        tensor.shape, tensor.type = [int(n) for n in shape], getattr(self.schema.TensorType, kind)
        tensor.buffer, tensor.name, tensor.hasRank = buffer, self._unique(name), True
        if grid is not None:
            quantization = self.schema.QuantizationParametersT()
            quantization.scale = np.asarray(grid.scale, dtype=np.float32)
            quantization.zeroPoint = np.full(len(grid.scale), grid.zero_point, dtype=np.int64)
            quantization.quantizedDimension = grid.axis
            tensor.quantization = quantization
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _unique(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self.names:
            number += 1
            name = f"{wanted}_{number}"
        self.names.add(name)
        return name

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The shape of a tensor as it lies in memory."""
        return tuple(self.tensors[tensor].shape)

    def kind(self, tensor: int) -> Type:
        """The type of a tensor's numbers."""
        kinds: dict[int, Type] = {getattr(self.schema.TensorType, name): name for name in get_args(Type)}
        return kinds[self.tensors[tensor].type]

    def op(
        self,
        code: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: Mapping[str, Any] | None = None,
        *,
        version: int = 1,
        kind: str | None = None,
    ) -> None:
        """Append an operator.

        Args:
            code: its name in the schema, e.g. CONV_2D.
            inputs: tensors; -1 for one that is left out.
            outputs: tensors.
            options: fields of its options table.
            version: what a runtime must know to run it.
            kind: the options table; None for an operator that has none, or wants none.
        """
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.codes.setdefault((code, version), len(self.codes))
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if kind is not None:
            table = getattr(self.schema, f"{kind}T")()
            for name, value in (options or {}).items():
                if not hasattr(table, name):
                    raise AttributeError(f"{kind} has no field {name}")
                setattr(table, name, value)
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, kind)
            operator.builtinOptions = table
        self.operators.append(operator)

    def finish(self, inputs: Mapping[str, int], outputs: Mapping[str, int], metadata: Mapping[str, str]) -> bytes:
        """The file. Names are those that a program asks for; metadata are written in the order given.

        Raises:
            UserError: more than the format can hold.
        """
        if sum(map(len, self.buffers)) > LIMIT:
            raise UserError("a .tflite file holds at most 2 GiB: quantize the weights, or export in half precision")
        import flatbuffers  # type: ignore[import-untyped]  # comes with ai-edge-litert, which the caller has found

        made = flatbuffers.Builder(1024 + sum(map(len, self.buffers)))
        noted = list(metadata.items())
        buffers = _vector(made, [_buffer(made, data) for data in (*self.buffers, *(v.encode() for _, v in noted))])
        graph = self._subgraph(inputs, outputs).Pack(made)
        tables = {
            "OperatorCodes": [self._code(name, version).Pack(made) for name, version in self.codes],
            "Metadata": [self._metadata(k, len(self.buffers) + i).Pack(made) for i, (k, _) in enumerate(noted)],
            "SignatureDefs": [self._signature(inputs, outputs).Pack(made)],
            "Subgraphs": [graph],
        }
        vectors = {name: _vector(made, offsets) for name, offsets in tables.items()} | {"Buffers": buffers}
        description = made.CreateString("mdcompress")
        self.schema.ModelStart(made)
        self.schema.ModelAddVersion(made, 3)
        self.schema.ModelAddDescription(made, description)
        for name, vector in vectors.items():
            getattr(self.schema, f"ModelAdd{name}")(made, vector)
        made.Finish(self.schema.ModelEnd(made), file_identifier=b"TFL3")
        return bytes(made.Output())

    def _subgraph(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
        graph = self.schema.SubGraphT()
        graph.tensors, graph.operators, graph.name = self.tensors, self.operators, "variant"
        graph.inputs, graph.outputs = list(inputs.values()), list(outputs.values())
        return graph

    def _code(self, name: str, version: int) -> Any:
        code = self.schema.OperatorCodeT()
        code.builtinCode = getattr(self.schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
        return code

    def _metadata(self, name: str, buffer: int) -> Any:
        entry = self.schema.MetadataT()
        entry.name, entry.buffer = name, buffer
        return entry

    def _signature(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
        signature = self.schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = self._names(inputs), self._names(outputs)
        return signature

    def _names(self, tensors: Mapping[str, int]) -> list[Any]:
        entries = []
        for name, tensor in tensors.items():
            entry = self.schema.TensorMapT()
            entry.name, entry.tensorIndex = name, tensor
            entries.append(entry)
        return entries


def _buffer(made: Any, data: bytes) -> int:
    """One buffer, its content at a multiple of 16 bytes; an empty one has no content at all."""
    vector = None
    if data:
        made.StartVector(1, len(data), 16)
        made.head -= len(data)
        made.Bytes[made.head : made.head + len(data)] = data
        vector = made.EndVector()
    made.StartObject(1)
    if vector is not None:
        made.PrependUOffsetTRelativeSlot(0, vector, 0)
    return made.EndObject()


def _vector(made: Any, offsets: Sequence[int]) -> int:
    made.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        made.PrependUOffsetTRelative(offset)
    return made.EndVector()
