"""A float32 ONNX graph computing in float16: constants rounded, inputs and outputs still float32.

Source: ONNX operator specification; the same idea as `onnxruntime.transformers.float16`, with `keep_io_types`.
Differs: what is computed from plain numbers (the waves of a time step, up to 1000 * 1.0, where float16 counts in
halves) stays in float32 up to the first layer with weights; scales of integer weights stay float32, so they are the
variant's; a constant that float16 cannot hold is an error that names it, not an infinity.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import UserError
from compress.export._onnx_graph import OPERATIONS

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

ONLY_FLOAT32 = {"Resize": {1, 2}, "DequantizeLinear": {1}, "QuantizeLinear": {1}}  # operator -> inputs
SUFFIX = "/float16"


def to_half(onnx: Any, model: "ModelProto") -> None:
    """Change the graph in place.

    Raises:
        UserError: constants are larger than float16 holds; all are named.
    """
    Halver(onnx, model).run()


class Halver:
    """What is known of every value while the nodes are rewritten in their order."""

    def __init__(self, onnx: Any, model: "ModelProto") -> None:
        self.onnx, self.graph = onnx, model.graph
        self.float32, self.float16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True).graph
        values = (*inferred.input, *inferred.value_info, *inferred.output)
        self.types = {v.name: v.type.tensor_type.elem_type for v in values}  # before; afterwards of what exists
        self.constants = {t.name: t for t in model.graph.initializer}
        self.types |= {name: t.data_type for name, t in self.constants.items()}
        self.nodes: list[NodeProto] = []
        self.casts: set[str] = set()
        self.too_large: list[str] = []

    def run(self) -> None:
        """Rewrite all nodes, and cast the outputs back."""
        kept = self._in_float32()
        outputs = {v.name for v in self.graph.output if self.types[v.name] == self.float32}
        for node in self.graph.node:
            self._rewrite(node, self.float32 if node.name in kept else self.float16, outputs)
        if self.too_large:
            raise UserError(
                f"precision: float16 ends at {np.finfo(np.float16).max:.0f}: {', '.join(self.too_large)}; "
                "choose precision: float32"
            )
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {value for node in self.nodes for value in node.input}
        kept_tensors = [t for name, t in sorted(self.constants.items()) if name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept_tensors)

    def _in_float32(self) -> set[str]:
        """The nodes between plain numbers, [n] or [n, numbers], and the first layer with weights behind each."""
        numbers = [v.name for v in self.graph.input if len(v.type.tensor_type.shape.dim) <= 2]
        flat = {name for name in numbers if self.types[name] == self.float32}
        kept = set()
        for node in self.graph.node:
            if flat & set(node.input) and node.op_type not in OPERATIONS:
                kept.add(node.name)
                flat |= set(node.output)
        return kept

    def _rewrite(self, node: "NodeProto", wanted: int, outputs: set[str]) -> None:
        fixed = ONLY_FLOAT32.get(node.op_type, set())
        stays = node.op_type == "DequantizeLinear" or self._is_cast_of_weight(node)
        for place, value in enumerate(node.input):
            if value and self.types.get(value) in (self.float32, self.float16):
                node.input[place] = self._as(value, self.float32 if stays or place in fixed else wanted)
        made = self.float32 if stays else wanted
        self._attributes(node, made)
        self.nodes.append(node)
        for place, value in enumerate(node.output):
            if self.types.get(value) != self.float32:
                continue
            self.types[value] = made
            if value in outputs and made == self.float16:
                node.output[place] = f"{value}{SUFFIX}"
                self.types[node.output[place]], self.types[value] = self.float16, self.float32
                self.casts.add(node.output[place])
                self._cast(node.output[place], value, self.float32)

    def _is_cast_of_weight(self, node: "NodeProto") -> bool:
        """A half-precision weight on its way to float32; the cast is dropped with the next one, by the runtime."""
        return node.op_type == "Cast" and node.input[0] in self.constants

    def _as(self, value: str, wanted: int) -> str:
        """The name of the value in the wanted type, made if it is not there."""
        if self.types[value] == wanted:
            return value
        name = f"{value}{SUFFIX}" if wanted == self.float16 else f"{value}/float32"
        if name in self.types:
            return name
        self.types[name] = wanted
        if value in self.constants:
            self.constants[name] = self._halved(value, name)
        else:
            self._cast(value, name, wanted)
        return name

    def _halved(self, value: str, name: str) -> Any:
        array = self.onnx.numpy_helper.to_array(self.constants[value])
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if bool((np.isinf(half) & np.isfinite(array)).any()) and np.abs(array).max() < np.finfo(np.float32).max:
            self.too_large.append(f"{value} holds values up to {np.abs(array).max():.4g}")
        return self.onnx.numpy_helper.from_array(half, name)

    def _cast(self, value: str, name: str, to: int) -> None:
        self.nodes.append(self.onnx.helper.make_node("Cast", [value], [name], name=f"{name}/Cast", to=to))

    def _attributes(self, node: "NodeProto", made: int) -> None:
        """Types and constants that a node carries in its attributes."""
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == self.float32:
                attribute.i = made
            if attribute.name == "value" and attribute.t.data_type == self.float32 and made == self.float16:
                array = self.onnx.numpy_helper.to_array(attribute.t).astype(np.float16)
                attribute.t.CopyFrom(self.onnx.numpy_helper.from_array(array, attribute.t.name))
