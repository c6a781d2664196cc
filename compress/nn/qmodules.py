"""What a quantizer leaves behind and every exporter understands: QConv2d and QLinear.

Each holds the integers and scales of its weight, and the ranges of its input and output where activations are quantized
too. Its forward pass computes in float on the dequantized weight and on fake-quantized activations: what a runtime's
integer kernel computes, up to the order of summation. The bias stays float here; a static integer kernel rounds it to
a grid of input scale times weight scale, which is done here as well so that both agree.

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
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedWeight,
    dequantize,
    fake_quantize,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedLayer:
    """The description of one quantized module, without its tensors: one entry of quantization.json."""

    bits: int
    granularity: Granularity
    input: ActivationRange | None = None
    output: ActivationRange | None = None


class _Quantized(nn.Module):
    """Integers, scales and bias of one layer; the two subclasses add the operation."""

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
        """The weight as integers and scales."""
        return QuantizedWeight(
            qdata=self.qdata, scale=self.scale, bits=self.layer.bits, granularity=self.layer.granularity
        )

    def effective_bias(self) -> torch.Tensor | None:
        """The bias as an integer kernel adds it: on the grid input scale * weight scale where inputs are quantized."""
        if self.bias is None or self.layer.input is None or isinstance(self.layer.granularity, PerGroup):
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


def quantizable(module: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Every float layer that a quantizer can take, by qualified name."""
    return {
        name: m
        for name, m in module.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and not (isinstance(m, nn.Conv2d) and m.padding_mode != "zeros")
    }


def quantized(module: nn.Module) -> dict[str, QConv2d | QLinear]:
    """Every quantized layer, by qualified name."""
    return {name: m for name, m in module.named_modules() if isinstance(m, QConv2d | QLinear)}


def quantize_layer(layer: nn.Conv2d | nn.Linear, spec: QuantizedLayer, weight: QuantizedWeight) -> QConv2d | QLinear:
    """The quantized twin of a float layer."""
    twin = QConv2d(layer, spec, weight) if isinstance(layer, nn.Conv2d) else QLinear(layer, spec, weight)
    return twin.eval()


def quantization_map(module: nn.Module) -> dict[str, dict[str, Any]]:
    """What quantization.json holds: name -> {bits, granularity, input, output}; empty for a float module."""
    return {name: _layer_to_json(q.layer) for name, q in quantized(module).items()}


def apply_map(module: nn.Module, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, nn.Module]:
    """The swaps that turn a float module built from its configuration into the shape that a saved variant has.

    Values are blank: the caller swaps them in and loads the saved tensors.
    """
    layers = quantizable(module)
    return {name: _blank_twin(layers[name], _layer_from_json(entry)) for name, entry in entries.items()}


def _blank_twin(layer: nn.Conv2d | nn.Linear, spec: QuantizedLayer) -> QConv2d | QLinear:
    weight = layer.weight
    match spec.granularity:
        case PerTensor():
            scale = torch.zeros(1)
        case PerChannel():
            scale = torch.zeros(weight.shape[0])
        case PerGroup(size=size):
            scale = torch.zeros(weight.shape[0], -(-weight[0].numel() // size))
    qdata = torch.zeros(weight.shape, dtype=torch.int8)
    blank = QuantizedWeight(qdata=qdata, scale=scale, bits=spec.bits, granularity=spec.granularity)
    return quantize_layer(layer, spec, blank)


def _layer_to_json(layer: QuantizedLayer) -> dict[str, Any]:
    match layer.granularity:
        case PerTensor():
            granularity: str | dict[str, int] = "per_tensor"
        case PerChannel():
            granularity = "per_channel"
        case PerGroup(size=size):
            granularity = {"per_group": size}
    return {
        "bits": layer.bits,
        "granularity": granularity,
        "input": None if layer.input is None else asdict(layer.input),
        "output": None if layer.output is None else asdict(layer.output),
    }


def _layer_from_json(entry: Mapping[str, Any]) -> QuantizedLayer:
    granularity = entry["granularity"]
    if granularity == "per_tensor":
        parsed: Granularity = PerTensor()
    elif granularity == "per_channel":
        parsed = PerChannel()
    else:
        parsed = PerGroup(granularity["per_group"])
    return QuantizedLayer(
        bits=entry["bits"],
        granularity=parsed,
        input=None if entry["input"] is None else ActivationRange(**entry["input"]),
        output=None if entry["output"] is None else ActivationRange(**entry["output"]),
    )
