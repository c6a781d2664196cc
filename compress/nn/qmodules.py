"""What a quantizer leaves behind and every exporter understands: QConv2d, QLinear and QEmbedding.

Each holds what is stored of its weight (`affine.QuantizedWeight`: integers and scales, codes and tables, or half
precision), and the ranges of its input and output where activations are quantized too; an embedding has none. Its
forward pass computes in float on the dequantized weight and on fake-quantized activations: what a runtime's integer
kernel computes, up to the order of summation. The bias stays float here; a static integer kernel rounds it to a grid
of input scale times weight scale, which is done here as well so that both agree.

Source: the map-instead-of-pickle idea is optimum-quanto's `quantization_map`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from compress.nn.affine import (
    ActivationRange,
    Granularity,
    Half,
    Palette,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedWeight,
    dequantize,
    dequantized_rows,
    fake_quantize,
    scale_shape,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedLayer:
    """The description of one quantized module, without its tensors: one entry of quantization.json."""

    bits: int
    granularity: Granularity
    input: ActivationRange | None = None
    output: ActivationRange | None = None


class _Quantized(nn.Module):
    """Integers, scales and bias of one layer; the subclasses add the operation."""

    layer: QuantizedLayer
    qdata: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, layer: QuantizedLayer, weight: QuantizedWeight, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("qdata", weight.qdata)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", bias)

    @property
    def quantized_weight(self) -> QuantizedWeight:
        """The weight as it is stored."""
        return QuantizedWeight(
            qdata=self.qdata, scale=self.scale, bits=self.layer.bits, granularity=self.layer.granularity
        )

    def effective_bias(self) -> torch.Tensor | None:
        """The bias as an integer kernel adds it: on the grid input scale * weight scale where inputs are quantized."""
        if self.bias is None or self.layer.input is None:
            return self.bias
        if not isinstance(self.layer.granularity, PerTensor | PerChannel):
            return self.bias
        grid = self.scale * self.layer.input.scale
        return (self.bias / grid).round().clamp(-(2.0**31), 2.0**31 - 1) * grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.layer.input is not None:
            x = fake_quantize(x, self.layer.input)
        y = self.operation(x, dequantize(self.quantized_weight), self.effective_bias())
        return y if self.layer.output is None else fake_quantize(y, self.layer.output)

    def operation(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        raise TypeError(f"{type(self).__name__} has no operation")


class QConv2d(_Quantized):
    """A 2-d convolution with integer weights; [n, c_in, h, w] to [n, c_out, h', w']."""

    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def __init__(self, conv: nn.Conv2d, layer: QuantizedLayer, weight: QuantizedWeight) -> None:
        super().__init__(layer, weight, None if conv.bias is None else conv.bias.detach())
        self.stride = cast("tuple[int, int]", conv.stride)
        self.padding = cast("str | tuple[int, int]", conv.padding)
        self.dilation = cast("tuple[int, int]", conv.dilation)
        self.groups = conv.groups

    def operation(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class QLinear(_Quantized):
    """A linear layer with integer weights; [..., i] to [..., o]."""

    def __init__(self, linear: nn.Linear, layer: QuantizedLayer, weight: QuantizedWeight) -> None:
        super().__init__(layer, weight, None if linear.bias is None else linear.bias.detach())

    def operation(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return functional.linear(x, weight, bias)


class QEmbedding(_Quantized):
    """A table of vectors with integer weights, one row per output channel; ids [...] to [..., d]."""

    def __init__(self, table: nn.Embedding, layer: QuantizedLayer, weight: QuantizedWeight) -> None:
        super().__init__(layer, weight, None)

    @property
    def weight(self) -> torch.Tensor:
        """The whole table in float32, for those who slice it instead of looking up ids."""
        return dequantize(self.quantized_weight)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return dequantized_rows(self.quantized_weight, ids)


FloatLayer = nn.Conv2d | nn.Linear | nn.Embedding
QuantizedModule = QConv2d | QLinear | QEmbedding


def quantizable(module: nn.Module) -> dict[str, FloatLayer]:
    """Every float layer that has a quantized twin, by qualified name."""
    return {
        name: m
        for name, m in module.named_modules()
        if isinstance(m, FloatLayer)
        and not (isinstance(m, nn.Conv2d) and m.padding_mode != "zeros")
        and not (isinstance(m, nn.Embedding) and m.max_norm is not None)
    }


def quantized(module: nn.Module) -> dict[str, QuantizedModule]:
    """Every quantized layer, by qualified name."""
    return {name: m for name, m in module.named_modules() if isinstance(m, QuantizedModule)}


def quantize_layer(layer: FloatLayer, spec: QuantizedLayer, weight: QuantizedWeight) -> QuantizedModule:
    """The quantized twin of a float layer."""
    match layer:
        case nn.Conv2d():
            return QConv2d(layer, spec, weight).eval()
        case nn.Linear():
            return QLinear(layer, spec, weight).eval()
        case _:
            return QEmbedding(layer, spec, weight).eval()


def quantization_map(module: nn.Module) -> dict[str, dict[str, Any]]:
    """What quantization.json holds: name -> {bits, granularity, input, output}; empty for a float module."""
    return {name: _layer_to_json(q.layer) for name, q in quantized(module).items()}


def apply_map(module: nn.Module, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, nn.Module]:
    """The swaps that turn a float module built from its configuration into the shape that a saved variant has.

    Values are blank: the caller swaps them in and loads the saved tensors.
    """
    layers = quantizable(module)
    return {name: _blank_twin(layers[name], _layer_from_json(entry)) for name, entry in entries.items()}


def _blank_twin(layer: FloatLayer, spec: QuantizedLayer) -> QuantizedModule:
    shape = layer.weight.shape
    half = getattr(torch, spec.granularity.dtype) if isinstance(spec.granularity, Half) else torch.int8
    blank = QuantizedWeight(
        qdata=torch.zeros(shape, dtype=half),
        scale=torch.zeros(scale_shape(shape, bits=spec.bits, granularity=spec.granularity)),
        bits=spec.bits,
        granularity=spec.granularity,
    )
    return quantize_layer(layer, spec, blank)


def _layer_to_json(layer: QuantizedLayer) -> dict[str, Any]:
    match layer.granularity:
        case PerTensor():
            granularity: str | dict[str, int | None] = "per_tensor"
        case PerChannel():
            granularity = "per_channel"
        case PerGroup(size=size):
            granularity = {"per_group": size}
        case Palette(channels=channels):
            granularity = {"palette": channels}
        case Half(dtype=dtype):
            granularity = dtype
    return {
        "bits": layer.bits,
        "granularity": granularity,
        "input": None if layer.input is None else asdict(layer.input),
        "output": None if layer.output is None else asdict(layer.output),
    }


def _layer_from_json(entry: Mapping[str, Any]) -> QuantizedLayer:
    match entry["granularity"]:
        case "per_tensor":
            granularity: Granularity = PerTensor()
        case "per_channel":
            granularity = PerChannel()
        case {"per_group": size}:
            granularity = PerGroup(size)
        case {"palette": channels}:
            granularity = Palette(channels)
        case dtype:
            granularity = Half(dtype)
    return QuantizedLayer(
        bits=entry["bits"],
        granularity=granularity,
        input=None if entry["input"] is None else ActivationRange(**entry["input"]),
        output=None if entry["output"] is None else ActivationRange(**entry["output"]),
    )
