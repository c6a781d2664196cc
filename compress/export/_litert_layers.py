"""Convolutions, linear layers and embeddings in a .tflite file, with the variant's own integers as their weights.

Source: TensorFlow Lite's quantization specification (8-bit: int8 activations with a zero point, int8 weights with
zero point 0, int32 bias on the grid of input scale times weight scale); 4-bit weights two to a byte, the first one in
the low half. A convolution of a doubled map as four convolutions of the map itself, after the sub-pixel view of Shi et
al. 2016 (arXiv:1609.07009).
Differs: a float operator on integer weights would round its activations to 8 bits as it runs, which no recipe asked
for; weight-only layers therefore stand behind a DEQUANTIZE. Activations are unsigned in the variant and signed in the
format: the zero point moves by 128 and the grid is the same.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from compress.errors import UserError
from compress.export._litert_file import Grid, Type
from compress.export._litert_writer import MAP, Const, Value, Writer, permuted, plain
from compress.nn.affine import ActivationRange, Half, PerChannel, PerTensor
from compress.nn.pack import pack
from compress.nn.qmodules import QuantizedLayer, QuantizedModule

SIGNED = 128  # from unsigned to signed zero points
HALF_LIMIT = torch.finfo(torch.float16).max


@dataclass(frozen=True, slots=True)
class Weight:
    """The weight of one layer: the parameter, and how the operator wants its axes."""

    const: Const
    axes: tuple[int, ...]  # the operator's axes, as axes of torch's weight

    @property
    def layer(self) -> str:
        """The module that it is the weight of."""
        return self.const.name.removesuffix(".weight")

    @property
    def laid(self) -> tuple[int, ...]:
        """Its shape in the file."""
        return tuple(self.const.shape[axis] for axis in self.axes)


def signed_grid(grid: ActivationRange) -> Grid:
    """The grid of an activation as the format has it."""
    return Grid(scale=(grid.scale,), zero_point=grid.zero_point - SIGNED)


def quantize(w: Writer, tensor: int, grid: ActivationRange) -> int:
    """A float value as int8; once for all who want it on the same grid."""
    key = (tensor, signed_grid(grid))
    if key not in w.quantized:
        shape = w.file.shape(tensor)
        w.quantized[key] = w.emit("QUANTIZE", [tensor], shape, kind="QuantizeOptions", type="INT8", grid=key[1])
    return w.quantized[key]


def dequantize(w: Writer, tensor: int, version: int = 2) -> int:
    """Integers, or half precision, as float32."""
    return w.emit("DEQUANTIZE", [tensor], w.file.shape(tensor), kind="DequantizeOptions", version=version)


def on_grid(w: Writer, value: Value, grid: ActivationRange | None) -> Value:
    """Rounded to the grid and back."""
    if grid is None:
        return value
    return Value(dequantize(w, quantize(w, value.tensor, grid)), value.shape, value.order)


def layer_of(w: Writer, weight: Weight) -> QuantizedModule | None:
    """The quantized layer that a weight is of, which thereby has its place in the file; None for a float layer."""
    layer = w.layers.get(weight.layer) if weight.const.name.endswith(".weight") else None
    if layer is not None:
        w.placed.add(weight.layer)
    return layer


def packs(w: Writer, q: QuantizedModule) -> bool:
    """Whether a layer's weights share bytes, two and two."""
    return q.layer.bits == 4 and not w.bytes_of_four


def integers(w: Writer, weight: Weight, q: QuantizedModule) -> int:
    """The stored weight: int8, or int4 two to a byte, or half precision, with its scales."""
    data = q.qdata.permute(*weight.axes).contiguous()
    if isinstance(q.layer.granularity, Half):
        return w.file.constant(data.numpy(), data.shape, "FLOAT16", weight.const.name)
    axis = weight.axes.index(0) if q.layer.granularity == PerChannel() else 0
    grid = Grid(scale=tuple(q.scale.tolist()), axis=axis)
    if packs(w, q):
        return w.file.constant(pack(data.reshape(-1), 4).numpy().tobytes(), data.shape, "INT4", weight.const.name, grid)
    return w.file.constant(data.numpy(), data.shape, "INT8", weight.const.name, grid)


def float_weight(w: Writer, weight: Weight, q: QuantizedModule | None) -> int:
    """The weight as float operators take it: a constant, or what DEQUANTIZE makes of the stored integers."""
    if q is not None:
        half, per_channel = isinstance(q.layer.granularity, Half), q.layer.granularity == PerChannel()
        version = 3 if half else 6 if packs(w, q) else 5 if per_channel else 2
        return dequantize(w, integers(w, weight, q), version)
    return stored_float(w, weight.const.data.permute(*weight.axes), weight.const.name)


def stored_float(w: Writer, data: torch.Tensor, name: str) -> int:
    """A float constant, in half precision where the file is; large ones only, since each needs an operator."""
    if not w.half or data.dim() < 2:
        return w.floats(data, name)
    if float(data.abs().max()) > HALF_LIMIT:
        raise UserError(f"{name} has values beyond {HALF_LIMIT:.0f}, the end of half precision: use precision: float32")
    array = data.detach().contiguous().numpy().astype(np.float16)
    # another name than a weight that the variant itself holds in half precision
    return dequantize(w, w.file.constant(array, array.shape, "FLOAT16", f"{name}/float16"), version=3)


def is_integer(spec: QuantizedLayer) -> bool:
    """Whether the format has an integer kernel for the layer: input and output on grids, weights on one too."""
    gridded = spec.input is not None and spec.output is not None
    return gridded and isinstance(spec.granularity, PerTensor | PerChannel)


def biases(w: Writer, weight: Weight, q: QuantizedModule | None, bias: Const | None, *, integer: bool) -> int:
    """The bias [o]: float32, or int32 on the grid of input scale times weight scale; zeros where there is none."""
    outputs = weight.const.shape[0]
    if not integer or q is None or q.layer.input is None:
        data = q.effective_bias() if q is not None and bias is not None else None if bias is None else bias.data
        named = f"{weight.layer}.bias" if weight.const.name else ""
        return w.floats(torch.zeros(outputs), named) if data is None else w.floats(data, named)
    scale = (q.scale * q.layer.input.scale).expand(outputs)  # float32, as the variant's own rounding has it
    given = torch.zeros(outputs) if q.bias is None else q.bias
    whole = (given / scale).round().double().clamp(-(2.0**31), 2.0**31 - 1).to(torch.int32).numpy()
    axis = Grid(scale=tuple(scale.tolist()) if q.layer.granularity == PerChannel() else (float(scale[0]),))
    return w.file.constant(whole, whole.shape, "INT32", f"{weight.layer}.bias", axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """An operator that multiplies weights with a value, and what it makes of its input's shape."""

    code: str
    kind: str
    options: dict[str, Any]
    shape: tuple[int, ...]  # of the output in memory
    versions: tuple[int, int, int]  # of the operator in float, on int8 weights, on int4 weights


def applied(w: Writer, kernel: Kernel, tensor: int, weight: Weight, bias: Const | None) -> int:
    """One layer on a value in memory: on integers where the variant and the format have them, else in float."""
    q = layer_of(w, weight)
    spec = None if q is None else q.layer
    if q is not None and spec is not None and spec.input is not None and spec.output is not None and is_integer(spec):
        given = [quantize(w, tensor, spec.input), integers(w, weight, q), biases(w, weight, q, bias, integer=True)]
        made = _product(w, kernel, given, kernel.versions[1 + packs(w, q)], "INT8", signed_grid(spec.output))
        return dequantize(w, made)
    if spec is not None and spec.input is not None:
        tensor = dequantize(w, quantize(w, tensor, spec.input))
    given = [tensor, float_weight(w, weight, q), biases(w, weight, q, bias, integer=False)]
    made = _product(w, kernel, given, kernel.versions[0])
    return made if spec is None or spec.output is None else dequantize(w, quantize(w, made, spec.output))


def _product(
    w: Writer, kernel: Kernel, given: list[int], version: int, held: Type = "FLOAT32", grid: Grid | None = None
) -> int:
    return w.emit(
        kernel.code, given, kernel.shape, kernel.options, kind=kernel.kind, version=version, type=held, grid=grid
    )


def linear(w: Writer, x: Value, weight: Const, bias: Const | None = None) -> Value:
    """A linear layer: the last axis is contracted, the others stay as they lie."""
    x = w.last(x)
    outputs = weight.shape[0]
    kernel = Kernel(
        code="FULLY_CONNECTED",
        kind="FullyConnectedOptions",
        options={"keepNumDims": len(x.shape) > 2},
        shape=(*x.laid[:-1], outputs),
        versions=(5, 5, 10) if len(x.shape) > 2 else (1, 4, 10),
    )
    made = applied(w, kernel, x.tensor, Weight(weight, (0, 1)), bias)
    return Value(made, (*x.shape[:-1], outputs), x.order)


def embedding(w: Writer, weight: Const, ids: Value) -> Value:
    """Rows of a table by whole numbers of any shape."""
    count, width = int(np.prod(ids.shape)), weight.shape[1]
    rows = w.relaid(w.straight(ids).tensor, (count,)) if ids.shape != (count,) else ids.tensor
    table = Weight(weight, (0, 1))
    q = layer_of(w, table)
    if q is not None and not isinstance(q.layer.granularity, Half):
        stored = integers(w, table, q)
        version = 4 if packs(w, q) or q.layer.granularity == PerChannel() else 1
        made = w.emit("EMBEDDING_LOOKUP", [rows, stored], (count, width), version=version)
    else:
        stored = float_weight(w, table, q)
        made = w.emit("GATHER", [stored, rows], (count, width), {"axis": 0}, kind="GatherOptions")
    return w.reshaped(plain(made, (count, width)), (*ids.shape, width))


def conv2d(
    w: Writer,
    x: Value,
    weight: Const,
    bias: Const | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> Value:
    """A 2-d convolution of a map, by torch's arguments."""
    x = w.arranged(x, MAP)
    stride, dilation = _pair(stride), _pair(dilation)
    depthwise = groups > 1 and groups == x.shape[1]
    laid = Weight(weight, (1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
    tensor, same = _padded(w, x, laid, _padding(padding, weight, dilation), (stride, dilation))
    held = w.file.shape(tensor)[1:3]
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    sides = [-(-n // s) if same else (n - k) // s + 1 for n, s, k in zip(held, stride, spans, strict=True)]
    options = {
        "padding": w.file.schema.Padding.SAME if same else w.file.schema.Padding.VALID,
        "strideH": stride[0], "strideW": stride[1], "dilationHFactor": dilation[0], "dilationWFactor": dilation[1],
    }  # fmt: skip
    outputs = weight.shape[0]
    kernel = Kernel(
        code="DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
        kind="DepthwiseConv2DOptions" if depthwise else "Conv2DOptions",
        options=options | {"depthMultiplier": outputs // groups} if depthwise else options,
        shape=(x.shape[0], *sides, outputs),
        versions=(6, 6, 7) if groups > 1 and not depthwise else (2 if depthwise and dilation != (1, 1) else 1, 3, 7),
    )
    made = applied(w, kernel, tensor, laid, bias)
    return permuted(plain(made, kernel.shape), (0, 3, 1, 2))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _padding(padding: Any, weight: Const, dilation: tuple[int, int]) -> list[tuple[int, int]]:
    """Zeros before and after, for height and width."""
    if padding == "valid":
        return [(0, 0), (0, 0)]
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(n, n) for n in _pair(padding)]


def _padded(
    w: Writer, x: Value, weight: Weight, zeros: list[tuple[int, int]], steps: tuple[tuple[int, int], tuple[int, int]]
) -> tuple[int, bool]:
    """The value that the operator reads, and whether it adds the zeros by itself.

    With a stride the format's own padding puts more zeros behind than before, which is not torch's.
    """
    stride, dilation = steps
    totals = [d * (k - 1) for d, k in zip(dilation, weight.const.shape[2:], strict=True)]
    if zeros == [(0, 0), (0, 0)]:
        return x.tensor, False
    if stride == (1, 1) and zeros == [(total // 2, total - total // 2) for total in totals]:
        return x.tensor, True
    return pad_map(w, x, zeros).tensor, False


def pad_map(w: Writer, x: Value, zeros: list[tuple[int, int]]) -> Value:
    """Zeros around a map."""
    x = w.arranged(x, MAP)
    (top, bottom), (left, right) = zeros
    n, c, height, width = x.shape
    shape = (n, height + top + bottom, width + left + right, c)
    pads = np.asarray([[0, 0], [top, bottom], [left, right], [0, 0]], dtype=np.int32)
    table = w.file.constant(pads, pads.shape, "INT32", f"{w.scope}/paddings".lstrip("/"))
    made = w.emit("PAD", [x.tensor, table], shape, kind="PadOptions")
    return permuted(plain(made, shape), (0, 3, 1, 2))


def doubled(w: Writer, x: Value) -> Value:
    """Nearest-neighbour doubling of a map: the same map four times in depth, then depth to space.

    The format's own operator for it is none that XNNPACK runs, and would cut the graph in two.
    """
    return _interleaved(w, [w.arranged(x, MAP)] * 4)


def _interleaved(w: Writer, maps: list[Value]) -> Value:
    """Four maps as the even and odd rows and columns of one of twice the size."""
    n, c, height, width = maps[0].shape
    given, options = [x.tensor for x in maps], {"axis": 3}
    deep = w.emit("CONCATENATION", given, (n, height, width, 4 * c), options, kind="ConcatenationOptions")
    shape = (n, 2 * height, 2 * width, c)
    made = w.emit("DEPTH_TO_SPACE", [deep], shape, {"blockSize": 2}, kind="DepthToSpaceOptions")
    return permuted(plain(made, shape), (0, 3, 1, 2))


def doubled_conv(w: Writer, x: Value, weight: Const, bias: Const | None) -> Value:
    """`doubled`, then a float 3x3 convolution, in 16 instead of 36 products a pixel and channel.

    A pixel of the doubled map sees each pixel of the small one once, twice or four times, so its 3x3 kernel is one of
    four 2x2 kernels on the small map, by whether its row and its column are even or odd.
    """
    maps = []
    for row, part in enumerate(_halves(weight.data, 2)):
        for column, kernel in enumerate(_halves(part, 3)):
            padded = pad_map(w, x, [(1 - row, row), (1 - column, column)])
            name = f"{weight.name.removesuffix('.weight')}.{2 * row + column}"
            maps.append(conv2d(w, padded, Const(kernel, f"{name}.weight"), bias))
    return _interleaved(w, maps)


def _halves(kernel: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three taps on a doubled line as two taps on the line itself, for its even and its odd places."""
    before, here, after = kernel.unbind(axis)
    return torch.stack([before, here + after], axis), torch.stack([before + here, after], axis)
