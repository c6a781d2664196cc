"""Rewriting a traced float ONNX graph: the variant's integers in, readable names in, the exporting machine's paths out.

Source: ONNX operator specification, QuantizeLinear-21, DequantizeLinear-21 and GroupNormalization-21.
Differs: GroupNormalization becomes Reshape, InstanceNormalization, Reshape, Mul and Add, which is the same arithmetic;
ONNX Runtime has a kernel for InstanceNormalization but spells GroupNormalization out in a dozen nodes, where a static
int8 decoder would spend more than half of its time.
"""

import ast
from typing import TYPE_CHECKING, Any

import torch

from compress.errors import UserError
from compress.nn.affine import (
    ActivationRange,
    Granularity,
    Half,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedWeight,
)
from compress.nn.pack import pack, unpack
from compress.nn.qmodules import QEmbedding, QuantizedModule

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

OPERATIONS = ("Conv", "Gemm", "MatMul")  # what a Conv2d or Linear becomes in the graph
NAMED_AFTER_MODULE = (*OPERATIONS, "GroupNormalization", "LayerNormalization")


def _scope(node: "NodeProto") -> str:
    """The qualified name of the module that a node came from; empty for the root, and where the exporter lost it."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(entry.value)
            return scopes[-2] if len(scopes) > 1 else ""
    return ""


def _owner(node: "NodeProto") -> str:
    """The module that a node belongs to: the one it came from, or else the one whose weight it uses."""
    weights = [value.removesuffix(".weight") for value in node.input if value.endswith(".weight")]
    return _scope(node) or (weights[0] if weights else "")


def name_and_strip(model: "ModelProto") -> dict[str, str]:
    """Name nodes and values after modules and drop what tells of the exporting machine; node name -> module name."""
    graph = model.graph
    fixed = {v.name for v in (*graph.input, *graph.output, *graph.initializer)}
    taken, renamed, scopes = set(fixed), {}, {}
    for node in graph.node:
        scope = _owner(node)
        wanted = scope if scope and node.op_type in NAMED_AFTER_MODULE else f"{scope}/{node.op_type}".lstrip("/")
        node.name = _unique(wanted, taken)
        scopes[node.name] = scope
        if len(node.output) == 1 and node.output[0] not in fixed:
            renamed[node.output[0]] = node.name
    for node in graph.node:
        node.input[:] = [renamed.get(value, value) for value in node.input]
        node.output[:] = [renamed.get(value, value) for value in node.output]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output, graph, model):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    graph.ClearField("value_info")
    graph.name = "variant"
    return scopes


def _unique(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def norms_spelled_out(onnx: Any, graph: "GraphProto") -> None:
    """Replace each GroupNormalization of a 4-d value by InstanceNormalization over [n, groups, everything else]."""
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.input, *graph.value_info)}
    tensors = {t.name: t for t in graph.initializer}
    nodes = []
    for node in graph.node:
        known = len(node.input) == 3 and node.input[1] in tensors and node.input[2] in tensors
        if node.op_type == "GroupNormalization" and known and ranks.get(node.input[0]) == 4:
            affine = [onnx.numpy_helper.to_array(tensors[value]).reshape(-1, 1, 1) for value in node.input[1:]]
            nodes += _norm_nodes(onnx, node, graph, affine)
        else:
            nodes.append(node)
    used = {value for node in nodes for value in node.input}
    _replace(graph, nodes, [t for t in graph.initializer if t.name in used])


def _norm_nodes(onnx: Any, node: "NodeProto", graph: "GraphProto", affine: list[Any]) -> list["NodeProto"]:
    groups = _attribute(node, "num_groups", 1)
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    out, scope = node.output[0], _scope(node) or node.output[0]
    shared = {
        f"norm{groups}.shape": torch.tensor([0, groups, -1]).numpy(),
        f"norm{groups}.one": torch.ones(groups).numpy(),
        f"norm{groups}.zero": torch.zeros(groups).numpy(),
    }
    own = {f"{scope}/weight": affine[0], f"{scope}/bias": affine[1]}  # not ".weight": that is the [c] of the trace
    there = {t.name for t in graph.initializer}
    graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in (shared | own).items() if name not in there
    )
    steps = [
        ("Shape", [node.input[0]], f"{out}/shape"),
        ("Reshape", [node.input[0], f"norm{groups}.shape"], f"{out}/grouped"),
        ("InstanceNormalization", [f"{out}/grouped", *list(shared)[1:]], f"{out}/normal"),
        ("Reshape", [f"{out}/normal", f"{out}/shape"], f"{out}/ungrouped"),
        ("Mul", [f"{out}/ungrouped", f"{scope}/weight"], f"{out}/scaled"),
        ("Add", [f"{out}/scaled", f"{scope}/bias"], out),
    ]
    made = []
    for kind, inputs, output in steps:
        attributes = {"epsilon": epsilon} if kind == "InstanceNormalization" else {}
        made.append(onnx.helper.make_node(kind, inputs, [output], name=output, **attributes))
        made[-1].metadata_props.extend(node.metadata_props)
    return made


class Rewriter:
    """Builds the quantized graph's node and initializer lists from the float graph's, in topological order."""

    def __init__(self, onnx: Any, graph: "GraphProto", *, unsigned: bool = False) -> None:
        self.onnx, self.graph, self.unsigned = onnx, graph, unsigned
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.grids: dict[str, ActivationRange] = {}  # values that already lie on a grid
        self.pairs: dict[tuple[str, ActivationRange], str] = {}  # (value, grid) -> the value rounded to the grid
        self.written: dict[str, str] = {}  # weights and biases that are already in the graph
        self.taken = {v for node in graph.node for v in (node.name, *node.output, *node.input)}

    def place(self, layers: dict[str, QuantizedModule], scopes: dict[str, str]) -> None:
        """Put every layer's integers and ranges where its float weight was."""
        self._set_aside(layers)
        floats = {t.name for t in self.graph.initializer}
        additions = _bias_additions(self.graph, scopes, layers)
        moved = {addition.name for addition in additions.values()}
        tables = {f"{name}.weight/float32": name for name, q in layers.items() if isinstance(q, QEmbedding)}
        placed = set()
        for node in list(self.graph.node):
            name = scopes[node.name]
            for value in tables.keys() & set(node.input):
                dequantized = self._weight(tables[value], layers[tables[value]], transposed=False)
                node.input[:] = [dequantized if given == value else given for given in node.input]
                placed.add(tables[value])
            if name in layers and node.op_type in OPERATIONS and node.input[1] in floats:
                self._operation(node, name, layers[name], additions.get(node.output[0]))
                placed.add(name)
            elif node.name not in moved:
                self.nodes.append(node)
        lost = [name for name in layers if name not in placed]
        if lost:
            raise UserError(
                f"quantized layers without a place in the ONNX graph: {', '.join(lost)}; leave them out of quantization"
            )
        self._replace_nodes()

    def _set_aside(self, layers: dict[str, QuantizedModule]) -> None:
        """Free the names that the integers will have: equal tensors were merged, so a float layer may use one too."""
        own = {f"{name}.{part}" for name in layers for part in ("weight", "bias")}
        renamed = {t.name: f"{t.name}/float32" for t in self.graph.initializer if t.name in own}
        for tensor in self.graph.initializer:
            tensor.name = renamed.get(tensor.name, tensor.name)
        for node in self.graph.node:
            node.input[:] = [renamed.get(value, value) for value in node.input]

    def _operation(self, node: "NodeProto", name: str, q: QuantizedModule, addition: "NodeProto | None") -> None:
        weight = self._weight(name, q, _stored_turned(node))
        inputs = [self._on_grid(node.input[0], q.layer.input, f"{node.name}/input"), weight]
        if q.bias is not None and addition is None:
            inputs.append(self._bias(name, q, q.bias))
        node.input[:] = inputs
        self.nodes.append(node)
        if addition is not None and q.bias is not None:
            addition.input[:] = [node.output[0], self._bias(name, q, q.bias)]
            self.nodes.append(addition)
        last = node if addition is None else addition
        if q.layer.output is not None:
            value = last.output[0]
            last.output[0] = _unique(f"{node.name}/float", self.taken)
            self._pair(last.output[0], q.layer.output, f"{node.name}/output", value)
            self.grids[value] = q.layer.output

    def _on_grid(self, value: str, grid: ActivationRange | None, prefix: str) -> str:
        if grid is None or self.grids.get(value) == grid:
            return value
        if (value, grid) not in self.pairs:
            self.pairs[value, grid] = self._pair(value, grid, prefix, _unique(prefix, self.taken))
        return self.pairs[value, grid]

    def _pair(self, value: str, grid: ActivationRange, prefix: str, output: str) -> str:
        """QuantizeLinear and DequantizeLinear from `value` to `output`."""
        scale = self._tensor(f"{prefix}.scale", torch.tensor(grid.scale, dtype=torch.float32))
        zero = self._tensor(f"{prefix}.zero_point", torch.tensor(grid.zero_point, dtype=torch.uint8))
        integers = f"{prefix}.quantized"
        self._add("QuantizeLinear", [value, scale, zero], integers, f"{prefix}/QuantizeLinear")
        return self._add("DequantizeLinear", [integers, scale, zero], output, f"{prefix}/DequantizeLinear")

    def _weight(self, name: str, q: QuantizedModule, transposed: bool) -> str:
        """Integers and scales of one layer; stored [i, o] where the graph multiplies by the transpose.

        A layer with ranges that is used twice is stored twice: where ONNX Runtime makes its weights unsigned, it does
        so for each use, under one name, and fails.
        """
        again = name in self.written
        if again and q.layer.input is None:
            return self.written[name]
        if isinstance(q.layer.granularity, Half):
            self.written[name] = self._half_weight(name, q.qdata.t() if transposed else q.qdata)
        else:
            stored = _unique(f"{name}.weight/again", self.taken) if again else f"{name}.weight"
            self.written[name] = self._integer_weight(stored, q, transposed)
        return self.written[name]

    def _integer_weight(self, stored: str, q: QuantizedModule, transposed: bool) -> str:
        qdata, scale, attributes = q.qdata, q.scale, {"axis": 0}
        match q.layer.granularity:
            case PerTensor():
                scale = scale.reshape(())
            case PerGroup(size=size):
                qdata, attributes = qdata.reshape(qdata.shape[0], -1), {"axis": 1, "block_size": size}
        if transposed:
            qdata, scale = qdata.t(), scale.t() if scale.dim() == 2 else scale
            attributes["axis"] = 1 - attributes["axis"]
        zeros = torch.zeros(scale.shape, dtype=torch.int8)
        if self.unsigned and q.layer.input is not None:
            qdata, zeros = (qdata.to(torch.int16) + 128).to(torch.uint8), zeros.to(torch.uint8) + 128
        values = [
            self._tensor(stored, qdata, bits=q.layer.bits),
            self._tensor(f"{stored}.scale", scale),
            self._tensor(f"{stored}.zero_point", zeros, bits=q.layer.bits),
        ]
        value = self._add("DequantizeLinear", values, f"{stored}/float", None, **attributes)
        if qdata.dim() != q.qdata.dim():
            shape = self._tensor(f"{stored}.shape", torch.tensor(q.qdata.shape, dtype=torch.int64))
            value = self._add("Reshape", [value, shape], f"{stored}/reshaped", None)
        return value

    def _half_weight(self, name: str, weight: torch.Tensor) -> str:
        """16-bit numbers, cast to float32 when the file is loaded."""
        kind = "FLOAT16" if weight.dtype == torch.float16 else "BFLOAT16"
        raw = weight.contiguous().view(torch.int16).numpy().tobytes()
        tensor = self.onnx.helper.make_tensor(
            f"{name}.weight", getattr(self.onnx.TensorProto, kind), weight.shape, raw, raw=True
        )
        self.tensors.append(tensor)
        to = self.onnx.TensorProto.FLOAT
        return self._add("Cast", [tensor.name], f"{name}.weight/float", None, to=to)

    def _bias(self, name: str, q: QuantizedModule, bias: torch.Tensor) -> str:
        """Integers on the grid input scale * weight scale, as integer kernels add them; float without such a grid."""
        key = f"{name}.bias"
        if key in self.written:
            return self.written[key]
        if q.layer.input is None or isinstance(q.layer.granularity, PerGroup):
            self.written[key] = self._tensor(key, bias)
            return self.written[key]
        grid = q.scale * q.layer.input.scale
        integers = (bias / grid).round().double().clamp(-(2**31), 2**31 - 1).to(torch.int32)
        scale = grid.reshape(()) if isinstance(q.layer.granularity, PerTensor) else grid
        values = [
            self._tensor(key, integers),
            self._tensor(f"{key}.scale", scale),
            self._tensor(f"{key}.zero_point", torch.zeros(scale.shape, dtype=torch.int32)),
        ]
        self.written[key] = self._add("DequantizeLinear", values, f"{key}/float", None, axis=0)
        return self.written[key]

    def _add(self, kind: str, inputs: list[str], output: str, name: str | None, **attributes: int) -> str:
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], name=name or output, **attributes))
        return output

    def _tensor(self, name: str, tensor: torch.Tensor, *, bits: int = 8) -> str:
        """Add an initializer."""
        array = tensor.detach().cpu().contiguous()
        if bits == 4:
            raw = pack(array.reshape(-1), 4).numpy().tobytes()
            new = self.onnx.helper.make_tensor(name, self.onnx.TensorProto.INT4, array.shape, raw, raw=True)
        else:
            new = self.onnx.numpy_helper.from_array(array.numpy(), name)
        self.tensors.append(new)
        return name

    def _replace_nodes(self) -> None:
        used = {value for node in self.nodes for value in node.input}
        kept = [t for t in (*self.graph.initializer, *self.tensors) if t.name in used]
        _replace(self.graph, self.nodes, kept)


def _bias_additions(
    graph: "GraphProto", scopes: dict[str, str], layers: dict[str, QuantizedModule]
) -> dict[str, "NodeProto"]:
    """The Add that adds a linear layer's bias, by the MatMul output that it adds to."""
    products = {n.output[0]: scopes[n.name] for n in graph.node if n.op_type == "MatMul" and scopes[n.name] in layers}
    return {
        value: node
        for node in graph.node
        for value in node.input
        if node.op_type == "Add" and products.get(value, "") == scopes[node.name] != ""
    }


def _attribute(node: "NodeProto", name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _weight_of(onnx: Any, node: "NodeProto", tensors: dict[str, "TensorProto"], shape: Any) -> QuantizedWeight:
    """What a DequantizeLinear of a weight holds; `shape` is that of a Reshape behind it."""
    stored, size = tensors[node.input[0]], _attribute(node, "block_size", 0)
    bits = 4 if stored.data_type == onnx.TensorProto.INT4 else 8
    raw = torch.frombuffer(bytearray(stored.raw_data), dtype=torch.uint8)
    count = int(torch.tensor(stored.dims).prod())
    qdata = (unpack(raw, 4, count) if bits == 4 else _signed(onnx, stored, raw)).reshape(tuple(stored.dims))
    scale = torch.from_numpy(onnx.numpy_helper.to_array(tensors[node.input[1]]).copy())
    if _attribute(node, "axis", 1) == (0 if size else 1):  # stored for a multiplication by the transpose
        qdata, scale = qdata.t(), scale.t() if scale.dim() == 2 else scale
    if size:
        granularity: Granularity = PerGroup(size)
    else:
        granularity = PerChannel() if scale.dim() else PerTensor()
    return QuantizedWeight(
        qdata=(qdata if shape is None else qdata.reshape(tuple(shape))).contiguous(),
        scale=(scale if scale.dim() else scale.reshape(1)).contiguous(),
        bits=bits,
        granularity=granularity,
    )


def weights_of(onnx: Any, graph: "GraphProto") -> dict[str, QuantizedWeight]:
    """What the graph holds of each quantized layer, as the variant had it."""
    tensors = {t.name: t for t in graph.initializer}
    weights = {}
    for node in graph.node:
        if not node.input or node.input[0] not in tensors or not node.input[0].endswith(".weight"):
            continue
        name, stored = node.input[0].removesuffix(".weight"), tensors[node.input[0]]
        if node.op_type == "DequantizeLinear":
            shape = tensors.get(f"{node.input[0]}.shape")
            parsed = _weight_of(onnx, node, tensors, None if shape is None else onnx.numpy_helper.to_array(shape))
            weights[name] = parsed
        elif node.op_type == "Cast" and stored.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
            weights[name] = _half_of(onnx, stored, turned=is_turned(graph, name))
    return weights


def is_turned(graph: "GraphProto", layer: str) -> bool:
    """Whether a layer's weight is stored [i, o], as the graph multiplies by it."""
    made = {f"{layer}.weight/float", f"{layer}.weight/float/float16"}
    return any(n.input[1] in made and _stored_turned(n) for n in graph.node if n.op_type in ("Gemm", "MatMul"))


def _stored_turned(node: "NodeProto") -> bool:
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB", 0))


def _signed(onnx: Any, stored: "TensorProto", raw: torch.Tensor) -> torch.Tensor:
    if stored.data_type == onnx.TensorProto.UINT8:
        return (raw.to(torch.int16) - 128).to(torch.int8)
    return raw.view(torch.int8)


def _half_of(onnx: Any, stored: "TensorProto", *, turned: bool) -> QuantizedWeight:
    """The 16-bit numbers of a weight; `turned` where the graph multiplies by the transpose."""
    dtype = torch.float16 if stored.data_type == onnx.TensorProto.FLOAT16 else torch.bfloat16
    weight = torch.frombuffer(bytearray(stored.raw_data), dtype=dtype).reshape(tuple(stored.dims))
    return QuantizedWeight(
        qdata=(weight.t() if turned else weight).contiguous(),
        scale=torch.zeros(0),
        bits=16,
        granularity=Half("float16" if dtype == torch.float16 else "bfloat16"),
    )


def _replace(graph: "GraphProto", nodes: list["NodeProto"], tensors: list["TensorProto"]) -> None:
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(tensors)
