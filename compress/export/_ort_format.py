"""ORT format files in one order of bytes, with what a minimal build of ONNX Runtime needs to know, and read back.

Source: onnxruntime/core/flatbuffers/schema/ort.fbs at 1.31, and ONNX Runtime's own generated readers for it.
Differs: ONNX Runtime writes constants, values and kernels in the order of its hash tables, which is another one in
every session; the file is read and written again with these sorted by name.
"""

import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from compress.errors import require

if TYPE_CHECKING:
    import torch

IDENTIFIER = b"ORTM"
PURPOSE = "an ORT file"
ALIGNED = 16  # bytes; constants may then be used where they lie
STRING, STRINGS, RAW, EMPTY = "s", "[s]", "[u8]", "[]"

# table -> fields by slot: (kind, default) of numbers, kinds of strings, names of tables; None where nothing is kept
INT8, UINT8, INT32, UINT32 = ("Int8", 0), ("Uint8", 0), ("Int32", 0), ("Uint32", 0)
INT64, FLOAT = ("Int64", 0), ("Float32", 0.0)
TABLES: dict[str, tuple[Any, ...]] = {
    "Session": (STRING, "Model", None, "Resolver"),
    "Model": (INT64, "[Opset]", STRING, STRING, STRING, INT64, STRING, "Graph", STRING, "[Entry]"),
    "Graph": ("[Tensor]", "[Value]", "[Node]", UINT32, "[Edges]", STRINGS, STRINGS, EMPTY, None),
    "Node": (
        *(STRING, STRING, STRING, INT32, UINT32, STRING, INT32, STRING),
        *(STRINGS, STRINGS, "[Attribute]", "[Int32]", STRINGS),
    ),
    "Edges": (UINT32, "[12]", "[12]"),
    "Tensor": (STRING, STRING, "[Int64]", INT32, RAW, STRINGS, ("Int64", -1)),
    "Value": (STRING, STRING, "Type"),
    "Type": (STRING, UINT8, "TensorType"),
    "TensorType": (INT32, "Shape"),
    "Shape": ("[Dimension]",),
    "Dimension": ("DimensionValue", STRING),
    "DimensionValue": (INT8, INT64, STRING),
    "Attribute": (
        *(STRING, STRING, INT32, FLOAT, INT64, STRING, "Tensor", "Graph"),
        *("[Float32]", "[Int64]", STRINGS, "[Tensor]", "[Graph]"),
    ),
    "Opset": (STRING, INT64),
    "Entry": (STRING, STRING),
    "Resolver": ("[KernelTypes]",),
    "KernelTypes": (STRING, "[TypeArguments]"),
    "TypeArguments": (STRING, "[TypeArgument]"),
    "TypeArgument": (INT8, UINT32),
}
WIDTHS = {"": 4, "u8": 1, "12": 12, "Int32": 4, "Int64": 8, "Float32": 4}  # bytes of what vectors hold in place
SORTED = {"[Tensor]", "[Value]", "[KernelTypes]", "[TypeArguments]", "[Opset]", "[Entry]"}  # by their first string
TYPE_NAMES = {  # ONNX's numbers of types, in the words of ONNX Runtime's build
    1: "float",
    2: "uint8_t",
    3: "int8_t",
    4: "uint16_t",
    5: "int16_t",
    6: "int32_t",
    7: "int64_t",
    9: "bool",
    10: "MLFloat16",
    11: "double",
    12: "uint32_t",
    13: "uint64_t",
}
Record = dict[int, Any]  # slot -> value


def parsed(content: bytes) -> Record:
    """The session as nested records.

    Raises:
        ValueError, struct.error, IndexError: not an ORT format file, or a damaged one.
    """
    types, table = (require(f"flatbuffers.{part}", extra="ort", purpose=PURPOSE) for part in ("number_types", "table"))
    if content[4:8] != IDENTIFIER:
        raise ValueError("not an ORT format file")
    (start,) = struct.unpack_from("<I", content)
    return _table(table.Table(bytearray(content), start), "Session", types)


def _table(table: Any, name: str, types: Any) -> Record:
    record: Record = {}
    for slot, kind in enumerate(TABLES[name]):
        at = table.Offset(4 + 2 * slot)
        if at == 0:
            continue
        if kind is None:
            raise ValueError(f"a {name} with contents that are not known (slot {slot})")
        record[slot] = _field(table, at + table.Pos, kind, types)
    return record


def _field(table: Any, at: int, kind: Any, types: Any) -> Any:
    if isinstance(kind, tuple):
        return table.Get(getattr(types, f"{kind[0]}Flags"), at)
    if kind == STRING:
        return bytes(table.String(at))
    if not kind.startswith("["):
        return _table(type(table)(table.Bytes, table.Indirect(at)), kind, types)
    start, count = table.Vector(at - table.Pos), table.VectorLen(at - table.Pos)
    inner = kind[1:-1]
    if kind == EMPTY and count:
        raise ValueError("constants of a kind that is not known")
    if inner in WIDTHS:
        width = WIDTHS[inner]
        return bytes(table.Bytes[start : start + count * width])
    places = [start + 4 * i for i in range(count)]
    if inner == "s":
        return [bytes(table.String(place)) for place in places]
    return [_table(type(table)(table.Bytes, table.Indirect(place)), inner, types) for place in places]


def written(record: Record) -> bytes:
    """The same session, its tables sorted where their order says nothing: same contents, same bytes."""
    builder = require("flatbuffers", extra="ort", purpose=PURPOSE).Builder(1 << 16)
    root = _write_table(builder, record, "Session")
    builder.Finish(root, file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _write_table(builder: Any, record: Record, name: str) -> int:
    fields = TABLES[name]
    offsets = {
        slot: _write_offset(builder, value, fields[slot])
        for slot, value in sorted(record.items())
        if not isinstance(fields[slot], tuple)
    }
    builder.StartObject(len(fields))
    for slot, kind in enumerate(fields):
        if slot in offsets:
            builder.PrependUOffsetTRelativeSlot(slot, offsets[slot], 0)
        elif slot in record:
            getattr(builder, f"Prepend{kind[0]}Slot")(slot, record[slot], kind[1])
    return int(builder.EndObject())


def _write_offset(builder: Any, value: Any, kind: str) -> int:
    if kind == STRING:
        return int(builder.CreateString(value))
    if not kind.startswith("["):
        return _write_table(builder, value, kind)
    inner = kind[1:-1]
    if inner in WIDTHS:
        return _write_numbers(builder, value, inner)
    items = sorted(value, key=lambda item: item.get(0, b"")) if kind in SORTED else value
    write: Callable[[Any], int] = (
        builder.CreateString if inner == "s" else lambda item: _write_table(builder, item, inner)
    )
    made = [write(item) for item in items]
    builder.StartVector(4, len(made), 4)
    for offset in reversed(made):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _write_numbers(builder: Any, raw: bytes, inner: str) -> int:
    """Numbers as they were, behind their count."""
    width = WIDTHS[inner]
    align = {"u8": ALIGNED, "Int64": 8}.get(inner, 4)
    builder.StartVector(width, len(raw) // width, align)
    builder.head = builder.head - len(raw)
    builder.Bytes[builder.head : builder.head + len(raw)] = raw
    return int(builder.EndVector())


def metadata_of(record: Record) -> dict[str, str]:
    """The metadata of the model in it."""
    return {entry[0].decode(): entry.get(1, b"").decode() for entry in record[1].get(9, [])}


def with_metadata(record: Record, more: Mapping[str, str]) -> Record:
    """The same session with more metadata."""
    entries = {**metadata_of(record), **more}
    props = [{0: key.encode(), 1: value.encode()} for key, value in sorted(entries.items())]
    return {**record, 1: {**record[1], 9: props}}


def required_operators(record: Record) -> str:
    """What a minimal build of ONNX Runtime must have: operators by domain and version, and the types of all values.

    In the format of its `--include_ops_by_config` (onnxruntime/tools/reduced_build_config_parser.py).
    """
    graph = record[1][7]
    operators: dict[tuple[str, int], set[str]] = {}
    for node in graph.get(2, []):
        domain = node.get(2, b"").decode() or "ai.onnx"
        operators.setdefault((domain, node.get(3, 0)), set()).add(node[5].decode())
    numbers = {tensor.get(3, 0) for tensor in graph.get(0, [])}
    numbers |= {value[2][2].get(0, 0) for value in graph.get(1, []) if 2 in value.get(2, {})}
    types = sorted(TYPE_NAMES[number] for number in numbers if number in TYPE_NAMES)
    lines = [f"!globally_allowed_types;{','.join(types)}"]
    lines += [f"{domain};{version};{','.join(sorted(names))}" for (domain, version), names in sorted(operators.items())]
    return "".join(f"{line}\n" for line in lines)


def constants(record: Record) -> dict[str, "torch.Tensor"]:
    """The integer and float32 constants of the graph, by name."""
    import torch

    dtypes = {1: torch.float32, 2: torch.uint8, 3: torch.int8}  # ONNX's numbers of types
    found = {}
    for tensor in record[1][7].get(0, []):
        if tensor.get(3) in dtypes and tensor.get(4):
            values = torch.frombuffer(bytearray(tensor[4]), dtype=dtypes[tensor[3]])
            count = len(tensor.get(2, b"")) // 8
            found[tensor[0].decode()] = values.reshape(struct.unpack(f"<{count}q", tensor.get(2, b"")))
    return found
