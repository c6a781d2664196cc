"""A backend's integers and ranges, brought into our representation, and the account of what it left alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from compress.nn.affine import ActivationRange, QuantizedWeight, signed_qmax
from compress.nn.qmodules import QuantizedLayer, quantize_layer, quantized
from compress.nn.surgery import replaced, twin
from compress.quantize._layers import achieved, left_in_float
from compress.records import Achieved, Skipped, StageInput, StageResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a backend decided for one layer."""

    weight: QuantizedWeight
    input: ActivationRange | None = None
    output: ActivationRange | None = None
    bias: torch.Tensor | None = None  # where the backend corrected it
    clipped: int = 0  # weights at the lowest code, which ours leaves out: moved up by one step


def adopted(
    stage: StageInput,
    layers: Mapping[str, nn.Conv2d | nn.Linear],
    found: Mapping[str, Found],
    exclude: tuple[str, ...],
    bits: int,
) -> StageResult:
    """The variant with the backend's integers; each layer that the backend left in float is a row and a failure."""
    swaps = {}
    for name, layer in layers.items():
        if name in found:
            one = found[name]
            spec = QuantizedLayer(
                bits=one.weight.bits, granularity=one.weight.granularity, input=one.input, output=one.output
            )
            swaps[name] = quantize_layer(_with_bias(layer, one.bias), spec, one.weight)
    module = replaced(stage.variant.module, swaps).requires_grad_(False).eval()
    untouched = [name for name in layers if name not in found]
    rows = {row.name: row for row in left_in_float(module, exclude)}
    rows |= {name: Skipped(name=name, reason="left in float by the backend, without a word") for name in untouched}
    ranged = [q for q in quantized(module).values() if q.layer.input is not None]
    results = [achieved(module, layers, bits)]
    if ranged:
        results.append(
            Achieved(
                what="layers with quantized activations",
                requested=len(layers),
                achieved=len(ranged),
                unit="layers",
                met=len(ranged) == len(layers),
            )
        )
    clipped = sum(one.clipped for one in found.values())
    notes = (f"{clipped} weights at the code -{2 ** (bits - 1)} moved up by one step",) if clipped else ()
    return StageResult(
        arch=stage.variant.arch,
        module=module,
        achieved=tuple(results),
        skipped=tuple(rows.values()),
        notes=notes,
    )


def _with_bias(layer: nn.Conv2d | nn.Linear, bias: torch.Tensor | None) -> nn.Conv2d | nn.Linear:
    if bias is None or layer.bias is None:
        return layer
    corrected = twin(layer)
    corrected.register_parameter("bias", nn.Parameter(bias.to(layer.bias.dtype), requires_grad=False))
    return cast("nn.Conv2d | nn.Linear", corrected)


def unsigned(scale: float, zero_point: int, *, signed: bool) -> ActivationRange:
    """A backend's per-tensor grid of 8 bits with our unsigned codes."""
    return ActivationRange(scale=float(scale), zero_point=int(zero_point) + (128 if signed else 0), bits=8)


def symmetric(qdata: torch.Tensor, bits: int) -> tuple[torch.Tensor, int]:
    """Integers without the lowest code, which ours leave out so that the range is symmetric; how many had it."""
    lowest = -signed_qmax(bits)
    return qdata.clamp_min(lowest).to(torch.int8).contiguous(), int((qdata < lowest).sum())
