"""Norms, attention and activations of a .tflite file, in operators that XNNPACK runs.

Source: Wu & He 2018 (arXiv:1803.08494), Ba et al. 2016 (arXiv:1607.06450), Vaswani et al. 2017 (arXiv:1706.03762).
Differs: exporters spell GroupNorm on a reshaped copy of the map and stretch its statistics to the whole map, which cuts
the graph where XNNPACK has no kernel; here each channel's mean and variance are taken where the map lies, and averaged
over the channels of a group in a vector as long as the channels. Variances are sums of the map minus its mean, squared,
so that nothing cancels.
"""

from dataclasses import dataclass

import torch

from compress.export._litert_writer import MAP, Const, Operand, Value, Writer, permuted, plain

HIDDEN = -30_000.0  # a masked score: nothing is left of its exponential, and half precision holds it


def mean(w: Writer, value: Value, axes: tuple[int, ...]) -> Value:
    """The mean over some of torch's axes, which stay with one entry each."""
    shape = tuple(1 if axis in axes else n for axis, n in enumerate(value.shape))
    places = sorted(value.position(axis) for axis in axes)
    laid = [shape[axis] for axis in value.order]
    made = w.emit("MEAN", [value.tensor, w.ints(places)], laid, {"keepDims": True}, kind="ReducerOptions")
    return Value(made, shape, value.order)


@dataclass(frozen=True, slots=True)
class Binary:
    """An operator on two values."""

    code: str
    kind: str

    def __call__(self, w: Writer, a: Operand, b: Operand) -> Value:
        """With torch's broadcasting; laid out as the larger operand is."""
        values = [v for v in (a, b) if isinstance(v, Value)]
        rank = max(len(v.shape) for v in (a, b) if not isinstance(v, float))
        leader = max(values, key=lambda v: (torch.Size(v.shape).numel(), v.order == MAP))
        leader = w.reshaped(leader, (1,) * (rank - len(leader.shape)) + leader.shape)
        shapes = [v.shape for v in (a, b) if not isinstance(v, float)]
        shape = torch.broadcast_shapes(*shapes)
        tensors = [w.like(v, rank, leader.order) for v in (a, b)]
        laid = [shape[axis] for axis in leader.order]
        return Value(w.emit(self.code, tensors, laid, kind=self.kind), tuple(shape), leader.order)


add, subtract = Binary("ADD", "AddOptions"), Binary("SUB", "SubOptions")
multiply, divide = Binary("MUL", "MulOptions"), Binary("DIV", "DivOptions")
squared_difference = Binary("SQUARED_DIFFERENCE", "SquaredDifferenceOptions")
minimum, maximum = Binary("MINIMUM", "MaximumMinimumOptions"), Binary("MAXIMUM", "MaximumMinimumOptions")


def unary(w: Writer, code: str, x: Value, kind: str | None = None, **options: object) -> Value:
    """An operator on each number by itself."""
    return Value(w.emit(code, [x.tensor], x.laid, options, kind=kind), x.shape, x.order)


def silu(w: Writer, x: Value) -> Value:
    """Each number times its logistic function."""
    return multiply(w, x, unary(w, "LOGISTIC", x))


def group_norm(
    w: Writer,
    x: Value,
    groups: int,
    weight: Const | None = None,
    bias: Const | None = None,
    eps: float = 1e-5,
    _: bool = True,
) -> Value:
    """Normalised over each group's channels and all pixels, then scaled and shifted for each channel."""
    x = w.arranged(x, MAP) if len(x.shape) == 4 else w.last(x, 1)
    channels = x.shape[1]
    pixels = tuple(range(2, len(x.shape)))
    middle = _over_groups(w, mean(w, x, pixels), groups)
    centre = _spread(w, middle, x, groups)
    spread = mean(w, squared_difference(w, x, centre), pixels)
    scale = unary(w, "RSQRT", add(w, _over_groups(w, spread, groups), eps))
    per_group = (1, groups, channels // groups)
    gain = torch.ones(channels) if weight is None else weight.data
    factor = multiply(w, scale, Const(gain.reshape(per_group)))
    shift = multiply(w, multiply(w, middle, -1.0), factor)
    if bias is not None:
        shift = add(w, shift, Const(bias.data.reshape(per_group)))
    return add(w, multiply(w, x, _beside(w, factor, x)), _beside(w, shift, x))


def _over_groups(w: Writer, each: Value, groups: int) -> Value:
    """Of one number for each channel [n, c, 1, 1], the mean for each group [n, groups, 1]."""
    n, channels = each.shape[:2]
    parted = w.reshaped(each, (n, groups, channels // groups))
    return parted if channels == groups else mean(w, parted, (2,))


def _spread(w: Writer, each: Value, x: Value, groups: int) -> Value:
    """One number for each group [n, groups, 1] as one for each channel, beside the map."""
    if x.shape[1] != groups:
        each = multiply(w, each, Const(torch.ones(1, groups, x.shape[1] // groups)))
    return _beside(w, each, x)


def _beside(w: Writer, each: Value, x: Value) -> Value:
    """One number for each channel [n, groups, c / groups] as [n, c, 1, 1], lying as the map does."""
    laid = (x.shape[0], *(1 for _ in x.shape[2:]), x.shape[1])
    return Value(w.relaid(w.straight(each).tensor, laid), (*x.shape[:2], *(1 for _ in x.shape[2:])), x.order)


def layer_norm(
    w: Writer,
    x: Value,
    shape: list[int],
    weight: Const | None = None,
    bias: Const | None = None,
    eps: float = 1e-5,
    _: bool = True,
) -> Value:
    """Normalised over the last axes, then scaled and shifted."""
    axes = tuple(range(len(x.shape) - len(shape), len(x.shape)))
    if len(axes) == 1:
        x = w.last(x)
    centred = subtract(w, x, mean(w, x, axes))
    variance = mean(w, multiply(w, centred, centred), axes)
    made = multiply(w, centred, unary(w, "RSQRT", add(w, variance, eps)))
    made = made if weight is None else multiply(w, made, weight)
    return made if bias is None else add(w, made, bias)


def softmax(w: Writer, x: Value, axis: int = -1, _: object = None) -> Value:
    """Over one axis."""
    return unary(w, "SOFTMAX", w.last(x, axis), "SoftmaxOptions", beta=1.0)


def matmul(w: Writer, a: Value, b: Value) -> Value:
    """The matrix product of the last two axes; which of both is transposed in memory costs nothing, mostly."""
    rank = max(len(a.shape), len(b.shape))
    a, b = (w.reshaped(v, (1,) * (rank - len(v.shape)) + v.shape) for v in (a, b))
    lead = tuple(range(rank - 2))
    rows_last = a.order[-1] == rank - 2 and a.order[:-2] == lead  # a lies transposed
    if rows_last and rank > 2 and b.order[:-2] == lead:
        turned = (*lead, rank - 1, rank - 2)
        return permuted(_product(w, permuted(b, turned), permuted(a, turned)), turned)
    return _product(w, a, b)


def _product(w: Writer, a: Value, b: Value) -> Value:
    rank = len(a.shape)
    a = w.straight(a)
    turned = (*range(rank - 2), rank - 1, rank - 2)
    across = b.order == turned
    b = b if across else w.straight(b)
    shape = (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    made = w.emit("BATCH_MATMUL", [a.tensor, b.tensor], shape, {"adjY": across}, kind="BatchMatMulOptions")
    return plain(made, shape)


def attention(
    w: Writer,
    queries: Value,
    keys: Value,
    values: Value,
    mask: Operand | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
) -> Value:
    """Scaled dot-product attention by torch's arguments, without dropout."""
    rank = len(queries.shape)
    factor = queries.shape[-1] ** -0.5 if scale is None else scale
    scaled = multiply(w, w.straight(queries), factor)
    scores = matmul(w, scaled, permuted(keys, (*range(rank - 2), rank - 1, rank - 2)))
    if causal:
        mask = Const(torch.full(scores.shape[-2:], HIDDEN).triu(1))
    if isinstance(mask, Const) and mask.data.dtype == torch.bool:
        mask = Const(torch.zeros(mask.shape).masked_fill(~mask.data, HIDDEN))
    if mask is not None:
        scores = add(w, scores, mask)
    return matmul(w, softmax(w, scores), w.straight(values))
