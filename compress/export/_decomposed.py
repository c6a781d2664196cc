"""Our integers as PyTorch's `quantized_decomposed` operators: what backends that read exported programs recognise.

`decomposed(module)` is a twin in which every quantized layer dequantizes its own integers and rounds its activations
with these operators. `torch.export.export` of it is a program with the variant's integers in it, and nothing is chosen
anew. Layer names are kept; a layer's buffers are `qdata` (the variant's integers), `scale`, `zero_point`, and `bias`.

Source: torch.ao.quantization.fx._decomposed, as PT2E's convert step writes it (torch 2.13).
Differs: a group runs along a channel's flattened inputs, so a grouped convolution's weight is flattened, dequantized
and reshaped; a last group that is shorter is padded with zeros and cut off again. Palettes become a table look-up, half
precision a cast.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from compress.nn.affine import ActivationRange, Half, Palette, PerChannel, PerGroup, PerTensor, signed_qmax
from compress.nn.qmodules import QConv2d, QEmbedding, QuantizedModule, quantized
from compress.nn.surgery import replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """What differs between backends: the type of activations, and whether the bias is integers too."""

    activations: Literal["uint8", "int8"] = "int8"
    bias: Literal["float32", "int32"] = "float32"  # float32: already on the grid of integer kernels, where there is one


def decomposed(module: nn.Module, style: Style) -> nn.Module:
    """The same network with every quantized layer spelled out in `quantized_decomposed` operators."""
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  # importing it registers the operators

    return replaced(module, {name: _Layer(q, style).eval() for name, q in quantized(module).items()})


def without_repeats(graph: torch.fx.GraphModule) -> int:
    """Drop a rounding of what was already rounded to the same grid, in place; how many were dropped."""
    ops, found = torch.ops.quantized_decomposed, 0
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.args else None
        if node.target != ops.quantize_per_tensor.default or not isinstance(source, torch.fx.Node):
            continue
        if source.target == ops.dequantize_per_tensor.default and source.args[1:] == node.args[1:]:
            node.replace_all_uses_with(source.args[0])
            graph.graph.erase_node(node)
            found += 1
    if found:
        graph.graph.eliminate_dead_code()
        graph.recompile()
    return found


def one_for_each_reader(graph: torch.fx.GraphModule) -> None:
    """Give each reader of dequantized numbers a dequantization of its own, in place."""
    for node in list(graph.graph.nodes):
        if node.target == torch.ops.quantized_decomposed.dequantize_per_tensor.default:
            for reader in list(node.users)[1:]:
                with graph.graph.inserting_before(reader):
                    reader.replace_input_with(node, graph.graph.node_copy(node))
    graph.recompile()


class _Layer(nn.Module):
    """One quantized layer in operators that say so; takes and gives what the layer takes and gives."""

    qdata: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, q: QuantizedModule, style: Style) -> None:
        super().__init__()
        self.layer, self.style, self.shape = q.layer, style, tuple(q.qdata.shape)
        self.kind = "embedding" if isinstance(q, QEmbedding) else "conv" if isinstance(q, QConv2d) else "linear"
        if isinstance(q, QConv2d):
            self.geometry: tuple[Any, ...] = (q.stride, q.padding, q.dilation, q.groups)
        qdata, scale = q.qdata, q.scale
        if isinstance(q.layer.granularity, PerGroup):
            padding = -qdata[0].numel() % q.layer.granularity.size
            qdata = functional.pad(qdata.reshape(self.shape[0], -1), (0, padding))
        self.only_scale = float(scale) if isinstance(q.layer.granularity, PerTensor) else 0.0
        self.register_buffer("qdata", qdata)
        self.register_buffer("scale", scale)
        if isinstance(q.layer.granularity, PerTensor | PerChannel | PerGroup):
            self.register_buffer("zero_point", torch.zeros(scale.shape, dtype=torch.int64))
        self._keep_bias(q)

    def _keep_bias(self, q: QuantizedModule) -> None:
        on_grid = q.layer.input is not None and isinstance(q.layer.granularity, PerTensor | PerChannel)
        self.integer_bias = self.style.bias == "int32" and on_grid and q.bias is not None
        if self.integer_bias and q.layer.input is not None and q.bias is not None:
            grid = (q.scale * q.layer.input.scale).expand(self.shape[0])
            integers = (q.bias / grid).round().double().clamp(-(2.0**31), 2.0**31 - 1).to(torch.int32)
            self.register_buffer("bias", integers)
            self.register_buffer("bias_scale", grid.contiguous())
            self.register_buffer("bias_zero_point", torch.zeros(grid.shape, dtype=torch.int64))
        else:
            self.register_buffer("bias", q.effective_bias())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "embedding":
            return functional.embedding(x, self._weight())
        if self.layer.input is not None:
            x = self._rounded(x, self.layer.input)
        weight, bias = self._weight(), self._bias()
        if self.kind == "conv":
            y = functional.conv2d(x, weight, bias, *self.geometry)
        else:
            y = functional.linear(x, weight, bias)
        return y if self.layer.output is None else self._rounded(y, self.layer.output)

    def _weight(self) -> torch.Tensor:
        ops, bits = torch.ops.quantized_decomposed, self.layer.bits
        qdata, scale = self.qdata, self.scale
        match self.layer.granularity:
            case Half():
                return qdata.float()
            case Palette(channels=channels):
                return self._looked_up(channels or self.shape[0])
            case PerTensor():
                limits = (-signed_qmax(bits), signed_qmax(bits), torch.int8)
                return ops.dequantize_per_tensor(qdata, self.only_scale, 0, *limits)
            case PerChannel():
                limits = (-signed_qmax(bits), signed_qmax(bits), torch.int8)
                return ops.dequantize_per_channel(qdata, scale, self.zero_point, 0, *limits)
            case PerGroup(size=size):
                limits = (-signed_qmax(bits) - 1, signed_qmax(bits), torch.int8)
                flat = ops.dequantize_per_channel_group(qdata, scale, self.zero_point, *limits, size, torch.float32)
                inputs = torch.Size(self.shape[1:]).numel()
                return flat[:, :inputs].reshape(self.shape) if flat.shape != self.shape else flat

    def _looked_up(self, channels: int) -> torch.Tensor:
        entries = self.qdata.to(torch.int32) + 2 ** (self.layer.bits - 1)
        parts = zip(self.scale.unbind(0), entries.split(channels), strict=True)
        return torch.cat([table[part] for table, part in parts])

    def _bias(self) -> torch.Tensor | None:
        if not self.integer_bias:
            return self.bias
        ops, limits = torch.ops.quantized_decomposed, (-(2**31), 2**31 - 1, torch.int32)
        return ops.dequantize_per_channel(self.bias, self.bias_scale, self.bias_zero_point, 0, *limits)

    def _rounded(self, x: torch.Tensor, grid: ActivationRange) -> torch.Tensor:
        ops = torch.ops.quantized_decomposed
        grid = signed(grid) if self.style.activations == "int8" else grid
        low = -(2 ** (grid.bits - 1)) if self.style.activations == "int8" else 0
        limits = (low, low + 2**grid.bits - 1, torch.int8 if low else torch.uint8)
        integers = ops.quantize_per_tensor(x, grid.scale, grid.zero_point, *limits)
        return ops.dequantize_per_tensor(integers, grid.scale, grid.zero_point, *limits)


def signed(grid: ActivationRange) -> ActivationRange:
    """The same grid for signed integers: the zero point moves by half of the range."""
    return replace(grid, zero_point=grid.zero_point - 2 ** (grid.bits - 1))
