"""What each operator of a Core ML program computes, in torch.

Source: the operators' definitions in coremltools 9 (converters/mil/mil/ops/defs), iOS 15 to 18.
Differs: floats are float32 here whatever the program says; `_mil_interpreter` rounds results to the program's type.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

Value = Any  # torch.Tensor, or a Python number, string or bool; lists of them


def _ints(value: Value) -> list[int]:
    return [int(x) for x in (value.tolist() if isinstance(value, torch.Tensor) else value)]


def _int(value: Value) -> int:
    return int(value)


def _same(size: int, kernel: int, stride: int, dilation: int, *, lower: bool) -> tuple[int, int]:
    """Padding of one axis with which the output has ceil(size / stride) values."""
    total = max(0, (math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
    small = total // 2
    return (total - small, small) if lower else (small, total - small)


def _padding(
    x: torch.Tensor, kernel: Sequence[int], strides: list[int], dilations: list[int], kind: str, pad: Value
) -> list[int]:
    """For `functional.pad`: the last axis first."""
    if kind == "valid":
        return [0] * 2 * len(kernel)
    if kind == "custom":
        flat = _ints(pad)
        pairs = [(flat[2 * i], flat[2 * i + 1]) for i in range(len(kernel))]
    else:
        sizes = zip(x.shape[2:], kernel, strides, dilations, strict=True)
        pairs = [_same(*axis, lower=kind == "same_lower") for axis in sizes]
    return [side for pair in reversed(pairs) for side in pair]


def conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    strides: Value = None,
    pad_type: str = "valid",
    pad: Value = None,
    dilations: Value = None,
    groups: Value = 1,
) -> torch.Tensor:
    """Convolution of [n, c, *d] with weight [o, c / groups, *k] over one, two or three axes."""
    kernel = weight.shape[2:]
    steps, holes = ([1] * len(kernel) if v is None else _ints(v) for v in (strides, dilations))
    padded = functional.pad(x, _padding(x, kernel, steps, holes, pad_type, pad))
    run: Callable[..., torch.Tensor] = (functional.conv1d, functional.conv2d, functional.conv3d)[len(kernel) - 1]
    return run(padded, weight, bias, steps, 0, holes, _int(groups))


def conv_transpose(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    pad: Value = None,
    output_shape: Value = None,
    pad_type: str = "valid",
    strides: Value = None,
    dilations: Value = None,
    groups: Value = 1,
) -> torch.Tensor:
    """Transposed convolution of [n, c, h, w] with weight [c, o / groups, kh, kw]; `pad` is cut off the result."""
    steps, holes = ([1, 1] if v is None else _ints(v) for v in (strides, dilations))
    y = functional.conv_transpose2d(x, weight, bias, steps, 0, 0, _int(groups), holes)
    cut = [0, 0, 0, 0] if pad is None or pad_type == "valid" else _ints(pad)
    y = y[..., cut[0] : y.shape[-2] - cut[1], cut[2] : y.shape[-1] - cut[3]]
    return y if output_shape is None else y[..., : _ints(output_shape)[-2], : _ints(output_shape)[-1]]


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x weight^T + bias`."""
    return functional.linear(x, weight, bias)


def matmul(x: torch.Tensor, y: torch.Tensor, transpose_x: bool = False, transpose_y: bool = False) -> torch.Tensor:
    """Product over the last two axes, the others broadcast."""
    left = x.transpose(-1, -2) if transpose_x else x
    return left @ (y.transpose(-1, -2) if transpose_y else y)


def scaled_dot_product_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`softmax(q k^T / sqrt(d) + mask) v`, spelled out."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ value


def layer_norm(
    x: torch.Tensor,
    axes: Value = None,
    gamma: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    epsilon: Value = 1e-5,
) -> torch.Tensor:
    """(x - mean) / sqrt(variance + epsilon) over some axes; gamma and beta have those axes' shape."""
    over = [a % x.dim() for a in (range(x.dim()) if axes is None else _ints(axes))]
    centred = x - x.mean(over, keepdim=True)
    y = centred * (centred.square().mean(over, keepdim=True) + float(epsilon)).rsqrt()
    shape = [size if axis in over else 1 for axis, size in enumerate(x.shape)]
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


def instance_norm(
    x: torch.Tensor,
    gamma: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    epsilon: Value = 1e-5,
) -> torch.Tensor:
    """Each channel of [n, c, *d] by its own mean and variance."""
    y = layer_norm(x, list(range(2, x.dim())), epsilon=epsilon)
    shape = (1, -1, *[1] * (x.dim() - 2))
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


def batch_norm(
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    gamma: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    epsilon: Value = 1e-5,
) -> torch.Tensor:
    """Each channel of [n, c, *d] by stored statistics."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    y = (x - mean.reshape(shape)) * (variance.reshape(shape) + float(epsilon)).rsqrt()
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


def _pooled(run: Callable[..., torch.Tensor], x: torch.Tensor, fill: float, given: dict[str, Value]) -> torch.Tensor:
    kernel = _ints(given["kernel_sizes"])
    steps = [1] * len(kernel) if given.get("strides") is None else _ints(given["strides"])
    padding = _padding(x, kernel, steps, [1] * len(kernel), given.get("pad_type", "valid"), given.get("pad"))
    return run(functional.pad(x, padding, value=fill), kernel, steps, ceil_mode=bool(given.get("ceil_mode", False)))


def avg_pool(x: torch.Tensor, **given: Value) -> torch.Tensor:
    """Means of windows of [n, c, h, w]; padding counts as zeros unless it is excluded."""
    mean = _pooled(functional.avg_pool2d, x, 0.0, given)
    if not given.get("exclude_padding_from_average", False):
        return mean
    return mean / _pooled(functional.avg_pool2d, torch.ones_like(x), 0.0, given)


def max_pool(x: torch.Tensor, **given: Value) -> torch.Tensor:
    """Largest values of windows of [n, c, h, w]."""
    return _pooled(functional.max_pool2d, x, -math.inf, given)


def _reduced(run: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def reduce(x: torch.Tensor, axes: Value = None, keep_dims: bool = False) -> torch.Tensor:
        return run(x, list(range(x.dim())) if axes is None else _ints(axes), keepdim=bool(keep_dims))

    return reduce


def _on_x(run: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def call(x: torch.Tensor) -> torch.Tensor:
        return run(x)

    return call


def _on_both(run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def call(x: Value, y: Value) -> torch.Tensor:
        return run(torch.as_tensor(x), torch.as_tensor(y))

    return call


def _one(value: Value) -> Value:
    return value.item() if isinstance(value, torch.Tensor) else value


def slice_by_index(
    x: torch.Tensor,
    begin: Value,
    end: Value,
    stride: Value = None,
    begin_mask: Value = None,
    end_mask: Value = None,
    squeeze_mask: Value = None,
) -> torch.Tensor:
    """`x[begin:end:stride]` along every axis; a mask sets a bound free, or takes one entry and drops the axis."""
    count = x.dim()
    steps = [1] * count if stride is None else _ints(stride)
    masks = [[False] * count if m is None else [bool(v) for v in m] for m in (begin_mask, end_mask, squeeze_mask)]
    for axis, (low, high, step) in enumerate(zip(_ints(begin), _ints(end), steps, strict=True)):
        if masks[2][axis]:
            indices = torch.tensor([low % x.shape[axis]])
        else:
            bounds = slice(None if masks[0][axis] else low, None if masks[1][axis] else high, step)
            indices = torch.tensor(range(x.shape[axis])[bounds], dtype=torch.int64)
        x = x.index_select(axis, indices)
    return x.squeeze([axis for axis in range(count) if masks[2][axis]])


def slice_by_size(x: torch.Tensor, begin: Value, size: Value) -> torch.Tensor:
    """`size` entries from `begin` on along every axis; -1: all that follow."""
    for axis, (start, length) in enumerate(zip(_ints(begin), _ints(size), strict=True)):
        x = x.narrow(axis, start, x.shape[axis] - start if length == -1 else length)
    return x


def split(
    x: torch.Tensor, axis: Value, num_splits: Value = None, split_sizes: Value = None
) -> tuple[torch.Tensor, ...]:
    """Parts along one axis: equal ones, or of given sizes."""
    along = _int(axis)
    return x.split(x.shape[along] // _int(num_splits) if split_sizes is None else _ints(split_sizes), along)


def reshape(x: torch.Tensor, shape: Value) -> torch.Tensor:
    """One size may be -1; 0 keeps the size that the axis has."""
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(_ints(shape))])


def expand_dims(x: torch.Tensor, axes: Value) -> torch.Tensor:
    """New axes of size 1, where they are in the result."""
    wanted = _ints(axes)
    for axis in sorted(a % (x.dim() + len(wanted)) for a in wanted):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: torch.Tensor, axes: Value = None) -> torch.Tensor:
    """Drop axes of size 1: the given ones, or all."""
    return x.squeeze() if axes is None else x.squeeze(_ints(axes))


def pad(x: torch.Tensor, pad: Value, mode: str = "constant", constant_val: Value = 0.0) -> torch.Tensor:
    """`pad` is (before, after) of the last axes, the outermost of them first."""
    flat = _ints(pad)
    pairs = [flat[i : i + 2] for i in range(0, len(flat), 2)]
    sides = [side for pair in reversed(pairs) for side in pair]
    if mode == "constant":
        return functional.pad(x, sides, value=float(constant_val))
    return functional.pad(x, sides, mode={"reflect": "reflect", "replicate": "replicate"}[mode])


def gather(
    x: torch.Tensor, indices: torch.Tensor, axis: Value = 0, batch_dims: Value = 0, validate_indices: bool = False
) -> torch.Tensor:
    """Slices of x along one axis, in the place of that axis the axes of `indices`; negative indices from the end."""
    if _int(batch_dims):
        raise NotImplementedError("gather with batch_dims")
    along, where = _int(axis) % x.dim(), torch.as_tensor(indices).long()
    taken = x.index_select(along, torch.where(where < 0, where + x.shape[along], where).reshape(-1))
    return taken.reshape(*x.shape[:along], *where.shape, *x.shape[along + 1 :])


def quantize(
    input: torch.Tensor,  # noqa: A002  # MIL's name
    scale: torch.Tensor,
    output_dtype: str,
    zero_point: Value = None,
    axis: Value = None,
) -> torch.Tensor:
    """round(x / scale) + zero point, ties to even, within the type."""
    low, high = {"int8": (-128, 127), "uint8": (0, 255)}[output_dtype]
    integers = (input / _along(scale, input, axis)).round()
    return (integers + (0 if zero_point is None else _along(zero_point, input, axis))).clamp(low, high).to(torch.int32)


def dequantize(
    input: torch.Tensor,  # noqa: A002  # MIL's name
    scale: torch.Tensor,
    zero_point: Value = None,
    axis: Value = None,
) -> torch.Tensor:
    """(q - zero point) * scale."""
    shifted = input.float() - (0 if zero_point is None else _along(zero_point, input, axis))
    return shifted * _along(scale, input, axis)


def _along(value: Value, x: torch.Tensor, axis: Value) -> torch.Tensor:
    tensor = torch.as_tensor(value)
    if tensor.dim() == 0:
        return tensor
    return tensor.reshape([-1 if a == _int(axis) % x.dim() else 1 for a in range(x.dim())])


def cast(x: torch.Tensor, dtype: str) -> torch.Tensor:
    """To another type; floats lose their fraction on the way to integers."""
    kinds = {"fp16": torch.float32, "fp32": torch.float32, "bool": torch.bool}
    if dtype in ("int8", "uint8", "int16", "uint16"):
        bits = torch.iinfo(getattr(torch, dtype))
        return torch.as_tensor(x).to(torch.int32).clamp(bits.min, bits.max)
    return torch.as_tensor(x).to(kinds.get(dtype, torch.int32))


def gelu(x: torch.Tensor, mode: str = "EXACT") -> torch.Tensor:
    """Gaussian error linear unit: exact, by tanh, or by a sigmoid."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def upsample_nearest_neighbor(x: torch.Tensor, scale_factor_height: Value, scale_factor_width: Value) -> torch.Tensor:
    """Each pixel of [n, c, h, w] repeated."""
    return functional.interpolate(x, scale_factor=(float(scale_factor_height), float(scale_factor_width)))


def band_part(x: torch.Tensor, lower: Value = -1, upper: Value = -1) -> torch.Tensor:
    """Entries near the diagonal, zero elsewhere; -1 keeps a whole triangle."""
    kept = x if _int(lower) < 0 else x.triu(-_int(lower))
    return kept if _int(upper) < 0 else kept.tril(_int(upper))


def concat(values: Sequence[torch.Tensor], axis: Value, interleave: bool = False) -> torch.Tensor:
    """One after the other along an axis."""
    if interleave:
        raise NotImplementedError("concat with interleave")
    return torch.cat(
        [torch.as_tensor(v).reshape(-1) if torch.as_tensor(v).dim() == 0 else v for v in values], _int(axis)
    )


_FUNCTIONS = (
    *(conv, conv_transpose, linear, matmul, scaled_dot_product_attention, layer_norm, instance_norm, batch_norm),
    *(avg_pool, max_pool, slice_by_index, slice_by_size, split, reshape, expand_dims, squeeze, pad, gather, quantize),
    *(dequantize, cast, gelu, upsample_nearest_neighbor, band_part, concat),
)
_OF_X = (
    *(torch.relu, functional.relu6, torch.sigmoid, functional.silu, functional.softplus, torch.tanh, torch.exp),
    *(torch.erf, torch.sin, torch.cos, torch.abs, torch.floor, torch.sqrt, torch.square, torch.logical_not),
)
_OF_BOTH = (
    *(torch.add, torch.sub, torch.mul, torch.floor_divide, torch.pow, torch.maximum, torch.minimum, torch.less),
    *(torch.greater, torch.greater_equal, torch.less_equal, torch.not_equal, torch.logical_and, torch.logical_or),
)
OPERATORS: dict[str, Callable[..., Any]] = {
    **{function.__name__: function for function in _FUNCTIONS},
    **{run.__name__: _on_x(run) for run in _OF_X},
    **{run.__name__: _on_both(run) for run in _OF_BOTH},
    "floor_div": _on_both(torch.floor_divide),
    "real_div": _on_both(torch.true_divide),
    "equal": _on_both(torch.eq),
    "reduce_mean": _reduced(torch.mean),
    "reduce_sum": _reduced(torch.sum),
    "reduce_max": _reduced(torch.amax),
    "select": lambda cond, a, b: torch.where(torch.as_tensor(cond).bool(), a, b),
    "clip": lambda x, alpha, beta: x.clamp(float(alpha), float(beta)),
    "leaky_relu": lambda x, alpha: functional.leaky_relu(x, float(alpha)),
    "log": lambda x, epsilon=1e-45: (x + float(epsilon)).log(),
    "rsqrt": lambda x, epsilon=1e-12: (x + float(epsilon)).rsqrt(),
    "inverse": lambda x, epsilon=1e-4: 1.0 / (x + float(epsilon)),
    "softmax": lambda x, axis=-1: x.softmax(_int(axis)),
    "transpose": lambda x, perm: x.permute(_ints(perm)),
    "tile": lambda x, reps: x.repeat(_ints(reps)),
    "stack": lambda values, axis: torch.stack(list(values), _int(axis)),
    "pixel_shuffle": lambda x, upscale_factor: functional.pixel_shuffle(x, _int(upscale_factor)),
    "identity": lambda x: x,
    "shape": lambda x: torch.tensor(x.shape, dtype=torch.int32),
    "fill": lambda shape, value=0.0: torch.full(_ints(shape), _one(value)),
    "range_1d": lambda start, end, step: torch.arange(_one(start), _one(end), _one(step)),
}
