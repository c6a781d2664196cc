"""From torch's operators, as torch.export finds them in a network, to those of a .tflite file.

`OPERATORS` has one function for each operator by its name in torch; overloads share one. An operator on constants alone
is computed here and now. What is missing is taken apart by torch's own decompositions first.

Source: torch.export's graph of aten operators (torch 2.13).
Cost: one trace and one pass over the graph; no compiler runs.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from compress.errors import UserError
from compress.export import _litert_layers as layers
from compress.export import _litert_norms as norms
from compress.export._litert_writer import MAP, Const, Value, Writer, permuted, plain
from compress.records import Inputs

Found = Any  # Value, Const, a list of either, or a plain argument


def lowered(w: Writer, module: nn.Module, example: Inputs, inputs: Sequence[Value]) -> Value:
    """Append a network's operators to the file.

    Args:
        w: the file.
        module: float, in eval mode.
        example: its inputs.
        inputs: the same, as values of the file.

    Returns:
        The network's one output.

    Raises:
        UserError: an operator that has no place in the format, or more than one output.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own internals
        program = torch.export.export(module, example)
        if _missing(program.graph):
            program = program.run_decompositions(_apart())
    found = _constants(program)
    w.parameters = {node: const.name for node, const in found.items()}
    given = iter(inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name not in found:
            found[node.name] = next(given)
        elif node.op == "call_function":
            found[node.name] = _written(w, node, found)
    (returned,) = (node for node in program.graph.nodes if node.op == "output")
    made = [found[node.name] for node in returned.args[0]]
    if len(made) != 1 or not isinstance(made[0], Value):
        raise UserError(f"a .tflite file is written for one output; this network has {len(made)}")
    return made[0]


def _constants(program: torch.export.ExportedProgram) -> dict[str, Found]:
    """Parameters, buffers and constants by the name of their placeholder."""
    signature, found = program.graph_signature, {}
    for names in (signature.inputs_to_parameters, signature.inputs_to_buffers):
        for node, name in names.items():
            held = program.state_dict[name] if name in program.state_dict else program.constants[name]
            found[node] = Const(held.detach(), name)
    for node, name in signature.inputs_to_lifted_tensor_constants.items():
        found[node] = Const(program.constants[name].detach())
    return found


def _name(node: fx.Node) -> str:
    """An operator's name without library and overload: "conv2d"."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.rpartition("::")[2] if schema is not None else getattr(node.target, "__name__", "")


def _missing(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_function" and _name(n) not in OPERATORS | WITHOUT_EFFECT]


def _apart() -> dict[Any, Callable[..., Any]]:
    """The decompositions that torch has of every operator that has no place here."""
    table: dict[Any, Callable[..., Any]] = dict(torch.export.default_decompositions().items())
    return {op: way for op, way in table.items() if op._schema.name.rpartition("::")[2] not in OPERATORS}


def _written(w: Writer, node: fx.Node, found: Mapping[str, Found]) -> Found:
    if _name(node) in WITHOUT_EFFECT:
        return None
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: found[n.name])
    w.scope = _scope(node)
    given = [x for x in (*_flat(args), *kwargs.values()) if isinstance(x, Value | Const)]
    if not any(isinstance(x, Value) for x in given):
        return _computed(node, args, kwargs)
    write = OPERATORS.get(_name(node))
    if write is None:
        raise UserError(
            f"{w.scope or 'the network'} uses {node.target}, which this exporter does not write: spell it in operators "
            f"that it knows ({', '.join(sorted(OPERATORS))}), or choose another format"
        )
    return write(w, node, *args, **kwargs)


def _flat(args: Sequence[Found]) -> list[Found]:
    return [y for x in args for y in (x if isinstance(x, list | tuple) else (x,))]


def _computed(node: fx.Node, args: Sequence[Found], kwargs: Mapping[str, Found]) -> Found:
    """An operator on constants alone, by torch."""

    def bare(x: Found) -> Found:
        if isinstance(x, list | tuple):
            return [bare(y) for y in x]
        return x.data if isinstance(x, Const) else x

    with torch.no_grad():
        made = node.target(*(bare(x) for x in args), **{k: bare(x) for k, x in kwargs.items()})  # type: ignore[operator]
    if isinstance(made, torch.Tensor):
        return Const(made)
    return [Const(x) for x in made] if isinstance(made, list | tuple) else made


def _scope(node: fx.Node) -> str:
    """The module that a node came from."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


def _binary(op: norms.Binary) -> Callable[..., Value]:
    def write(w: Writer, _: fx.Node, a: Any, b: Any, *, alpha: float = 1) -> Value:
        if alpha != 1:
            b = norms.multiply(w, b, float(alpha)) if isinstance(b, Value) else _scaled(b, alpha)
        return op(w, _operand(a), _operand(b))

    return write


def _scaled(b: Any, alpha: float) -> Any:
    return Const(b.data * alpha) if isinstance(b, Const) else b * alpha


def _operand(x: Any) -> Any:
    return x if isinstance(x, Value | Const) else float(x)


def _unary(code: str, kind: str | None = None) -> Callable[..., Value]:
    return lambda w, _, x, *__, **___: norms.unary(w, code, x, kind)


def _conv2d(w: Writer, node: fx.Node, x: Value, *args: Any, **kwargs: Any) -> Value:
    source = node.args[0]
    if isinstance(source, fx.Node) and source.name in w.fused:
        weight, bias = args[0], args[1] if len(args) > 1 else kwargs.get("bias")
        return layers.doubled_conv(w, x, weight, bias)
    return layers.conv2d(w, x, *args, **kwargs)


def _upsample(w: Writer, node: fx.Node, x: Value, size: Any, *scales: Any, **_: Any) -> Value:
    """Nearest-neighbour enlargement by powers of two; left to the convolution behind it where that is a float one."""
    wanted = tuple(node.meta["val"].shape[2:])
    if wanted == tuple(2 * n for n in x.shape[2:]) and all(_takes_doubled(w, user) for user in node.users):
        w.fused.add(node.name)
        return x
    while x.shape[2:] != wanted:
        if any(n % (2 * have) for n, have in zip(wanted, x.shape[2:], strict=True)):
            raise UserError(f"{w.scope}: nearest-neighbour enlargement of {x.shape[2:]} to {wanted} is not a doubling")
        x = layers.doubled(w, x)
    return x


def _takes_doubled(w: Writer, user: fx.Node) -> bool:
    """Whether a node is a 3x3 convolution, padded by 1, of stride 1, with a float weight of one group."""
    weight = user.args[1] if _name(user) == "conv2d" else None
    if not isinstance(weight, fx.Node) or weight.name not in w.parameters:
        return False
    given = list(user.args[3:])
    way: list[Any] = [[g, g] if isinstance(g, int) and i < 3 else g for i, g in enumerate(given)]
    way += [[1, 1], [0, 0], [1, 1], 1][len(way) :]
    in_float = w.parameters[weight.name].removesuffix(".weight") not in w.layers
    return in_float and tuple(weight.meta["val"].shape[2:]) == (3, 3) and way == [[1, 1], [1, 1], [1, 1], 1]


def _clamp(w: Writer, _: fx.Node, x: Value, low: float | None = None, high: float | None = None) -> Value:
    x = x if low is None else norms.maximum(w, x, float(low))
    return x if high is None else norms.minimum(w, x, float(high))


def _cat(w: Writer, _: fx.Node, parts: Sequence[Any], dim: int = 0) -> Value:
    first = next(part for part in parts if isinstance(part, Value))
    dim %= len(first.shape)
    tensors = [w.like(part, len(first.shape), first.order) for part in parts]
    shape = list(first.shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    laid = [shape[axis] for axis in first.order]
    options = {"axis": first.position(dim)}
    made = w.emit("CONCATENATION", tensors, laid, options, kind="ConcatenationOptions")
    return Value(made, tuple(shape), first.order)


def _slice(
    w: Writer, _: fx.Node, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    if step != 1:
        raise UserError(f"{w.scope}: a slice in steps of {step} is not written; take steps of 1")
    size = x.shape[dim]
    begin, stop, _step = slice(start, end).indices(size)
    return _part(w, x, dim, begin, stop - begin)


def _part(w: Writer, x: Value, dim: int, start: int, count: int) -> Value:
    dim %= len(x.shape)
    if (start, count) == (0, x.shape[dim]):
        return x
    shape = tuple(count if axis == dim else n for axis, n in enumerate(x.shape))
    laid = [shape[axis] for axis in x.order]
    begin = [start if axis == dim else 0 for axis in x.order]
    made = w.emit("SLICE", [x.tensor, w.ints(begin), w.ints(laid)], laid, kind="SliceOptions")
    return Value(made, shape, x.order)


def _chunk(w: Writer, _: fx.Node, x: Value, count: int, dim: int = 0) -> list[Value]:
    return _split(w, _, x, -(-x.shape[dim] // count), dim)


def _split(w: Writer, _: fx.Node, x: Value, sizes: int | Sequence[int], dim: int = 0) -> list[Value]:
    total = x.shape[dim]
    each = [min(sizes, total - at) for at in range(0, total, sizes)] if isinstance(sizes, int) else list(sizes)
    return [_part(w, x, dim, sum(each[:i]), size) for i, size in enumerate(each)]


def _select(w: Writer, _: fx.Node, x: Value, dim: int, index: int) -> Value:
    picked = _part(w, x, dim, index % x.shape[dim], 1)
    return w.reshaped(picked, [n for axis, n in enumerate(x.shape) if axis != dim % len(x.shape)])


def _view(w: Writer, node: fx.Node, x: Value, *_: Any, **__: Any) -> Value:
    """Any change of shape alone: torch's own result says which."""
    return w.reshaped(x, tuple(node.meta["val"].shape))


def _transpose(w: Writer, _: fx.Node, x: Value, a: int, b: int) -> Value:
    dims = list(range(len(x.shape)))
    dims[a], dims[b] = dims[b], dims[a]
    return permuted(x, dims)


def _batch_norm(
    w: Writer, _: fx.Node, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *more: Any
) -> Value:
    if training or mean is None or variance is None:
        raise UserError(f"{w.scope}: batch normalisation is written with the statistics that training left, not anew")
    eps = more[1]
    factor = (variance.data + eps).rsqrt() * (1.0 if weight is None else weight.data)
    shift = (0.0 if bias is None else bias.data) - mean.data * factor
    wide = (-1, *(1 for _ in x.shape[2:]))
    return norms.add(w, norms.multiply(w, x, Const(factor.reshape(wide))), Const(shift.reshape(wide)))


def _expand(w: Writer, node: fx.Node, x: Value, *_: Any, **__: Any) -> Value:
    shape = tuple(node.meta["val"].shape)
    if math.prod(shape) == math.prod(x.shape):
        return w.reshaped(x, shape)
    return norms.multiply(w, x, Const(torch.ones(shape)))


def _mean(w: Writer, _: fx.Node, x: Value, dim: Any = None, keepdim: bool = False, **__: Any) -> Value:
    axes = tuple(range(len(x.shape))) if dim is None else tuple(d % len(x.shape) for d in _listed(dim))
    made = norms.mean(w, x, axes)
    return made if keepdim else w.reshaped(made, [n for axis, n in enumerate(x.shape) if axis not in axes])


def _listed(dim: Any) -> list[int]:
    return [dim] if isinstance(dim, int) else list(dim)


def _pixel_shuffle(w: Writer, _: fx.Node, x: Value, factor: int) -> Value:
    """Depth to space. The format counts a pixel's channels behind its places, not before them: depth is reordered."""
    n, deep, height, width = x.shape
    channels = deep // factor**2
    x = w.arranged(x, MAP)
    split = (n * height * width, channels, factor**2)
    parted = plain(w.relaid(x.tensor, split), split)
    turned = w.arranged(parted, (0, 2, 1)) if channels > 1 else parted
    tensor = w.relaid(turned.tensor, (n, height, width, deep))
    shape = (n, height * factor, width * factor, channels)
    made = w.emit("DEPTH_TO_SPACE", [tensor], shape, {"blockSize": factor}, kind="DepthToSpaceOptions")
    return permuted(plain(made, shape), (0, 3, 1, 2))


def _pad(w: Writer, _: fx.Node, x: Value, pads: Sequence[int], mode: Any = "constant", value: Any = None) -> Value:
    mode, value = ("constant", mode) if isinstance(mode, int | float) else (mode, value)  # constant_pad_nd has no mode
    if len(x.shape) != 4 or len(pads) > 4 or value or mode != "constant" or min(pads) < 0:
        raise UserError(
            f"{w.scope}: only zeros around maps are written, not {mode} padding {list(pads)} by {value or 0}"
        )
    left, right, top, bottom = (*pads, 0, 0, 0, 0)[:4]
    return layers.pad_map(w, x, [(top, bottom), (left, right)])


def _gelu(w: Writer, _: fx.Node, x: Value, approximate: str = "none") -> Value:
    return norms.unary(w, "GELU", x, "GeluOptions", approximate=approximate == "tanh")


def _addmm(w: Writer, node: fx.Node, bias: Any, x: Value, weight: Any, **_: Any) -> Value:
    return norms.add(w, _matmul(w, node, x, weight), bias)


def _matmul(w: Writer, _: fx.Node, a: Any, b: Any) -> Value:
    return norms.matmul(w, w.value(a), w.value(b))


def _rsub(w: Writer, _: fx.Node, x: Value, other: Any, alpha: float = 1) -> Value:
    return norms.subtract(w, _operand(other), norms.multiply(w, x, float(alpha)) if alpha != 1 else x)


def _power(w: Writer, _: fx.Node, x: Value, exponent: Any) -> Value:
    if exponent == 2:
        return norms.multiply(w, x, x)
    if exponent == 0.5:
        return norms.unary(w, "SQRT", x)
    if exponent == -0.5:
        return norms.unary(w, "RSQRT", x)
    raise UserError(f"{w.scope}: a power of {exponent} is not written; powers are 2, 0.5 and -0.5")


def _same(w: Writer, _: fx.Node, x: Value, *__: Any, **___: Any) -> Value:
    return x


def _without_node(write: Callable[..., Value]) -> Callable[..., Value]:
    return lambda w, _, *args, **kwargs: write(w, *args, **kwargs)


WITHOUT_EFFECT = {"_assert_tensor_metadata": None, "sym_constrain_range_for_size": None}
OPERATORS: dict[str, Callable[..., Found]] = {
    **{name: _binary(op) for name, op in {
        "add": norms.add, "sub": norms.subtract, "mul": norms.multiply, "div": norms.divide,
        "minimum": norms.minimum, "maximum": norms.maximum,
    }.items()},
    **{name: _unary(code) for name, code in {
        "relu": "RELU", "sigmoid": "LOGISTIC", "tanh": "TANH", "sqrt": "SQRT", "rsqrt": "RSQRT", "relu6": "RELU6",
    }.items()},
    "exp": _unary("EXP", "ExpOptions"), "sin": _unary("SIN"), "cos": _unary("COS", "CosOptions"),
    "neg": _unary("NEG", "NegOptions"), "abs": _unary("ABS", "AbsOptions"),
    "hardswish": _unary("HARD_SWISH", "HardSwishOptions"),
    "silu": _without_node(norms.silu), "gelu": _gelu, "softmax": _without_node(norms.softmax),
    "_softmax": _without_node(norms.softmax),
    "group_norm": _without_node(norms.group_norm), "layer_norm": _without_node(norms.layer_norm),
    "batch_norm": _batch_norm,
    "scaled_dot_product_attention": _without_node(norms.attention),
    "matmul": _matmul, "bmm": _matmul, "mm": _matmul, "addmm": _addmm,
    "conv2d": _conv2d, "linear": _without_node(layers.linear),
    "embedding": lambda w, _, table, ids, *__, **___: layers.embedding(w, table, ids),
    "upsample_nearest2d": _upsample, "pixel_shuffle": _pixel_shuffle, "pad": _pad, "constant_pad_nd": _pad,
    "clamp": _clamp, "cat": _cat, "slice": _slice, "chunk": _chunk, "split": _split, "split_with_sizes": _split,
    "select": _select, "mean": _mean, "expand": _expand, "rsub": _rsub, "pow": _power,
    "transpose": _transpose, "permute": lambda w, _, x, dims: permuted(x, dims),
    "t": lambda w, _, x: permuted(x, range(len(x.shape))[::-1]),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze"), _view),
    **dict.fromkeys(("to", "_to_copy", "clone", "contiguous", "dropout", "alias", "detach", "lift_fresh_copy"), _same),
    "getitem": lambda w, _, x, index: x[index],
}  # fmt: skip
