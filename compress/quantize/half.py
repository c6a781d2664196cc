"""Half-precision storage: the weights of every layer as float16 or bfloat16 numbers; computed in float32.

Source: IEEE 754-2019 binary16, and bfloat16 (Kalamkar et al. 2019, arXiv:1905.12322); rounded to nearest, ties to even.
Differs: a weight that float16 cannot hold is an error that names its tensor, not an infinity; biases and norms, which
are next to nothing in size, stay in float32.
Cost: one pass over the weights.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field

from compress.components import kind_of
from compress.errors import UserError
from compress.nn.affine import Half, QuantizedWeight
from compress.nn.qmodules import QuantizedLayer, quantize_layer
from compress.nn.surgery import replaced
from compress.quantize._layers import achieved, chosen_layers, left_in_float
from compress.records import Needs, Prediction, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.NOTHING
BITS = 16


class Config(Schema):
    """Which 16-bit format, and what to leave alone."""

    dtype: Literal["float16", "bfloat16"] = Field(
        "float16", description="float16 has 3 more bits of precision, bfloat16 the range of float32."
    )
    exclude: tuple[str, ...] = Field((), description="Layers to leave in float: names with * and ? wildcards.")


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Same architecture, 16 bits per weight."""
    for arch in prediction.ends:
        with torch.device("meta"):
            chosen_layers(kind_of(arch.kind).build(arch.config), config.exclude)
    return replace(prediction, weight_bits=BITS, granularity=Half(config.dtype), in_float=config.exclude)


def apply(stage: StageInput, config: Config) -> StageResult:
    """Swap every layer that is not excluded for its twin in half precision.

    Raises:
        UserError: weights are too large for the format; all such tensors are named.
    """
    module = stage.variant.module
    layers = chosen_layers(module, config.exclude)
    rounded = {name: layer.weight.detach().to(getattr(torch, config.dtype)) for name, layer in layers.items()}
    too_large = [
        f"{name}.weight has magnitudes up to {float(layers[name].weight.abs().max()):.4g}"
        for name, weight in rounded.items()
        if not weight.isfinite().all()
    ]
    if too_large:
        limit = torch.finfo(getattr(torch, config.dtype)).max
        raise UserError(
            f"quantize.half: {config.dtype} ends at {limit:.4g}:\n  "
            + "\n  ".join(too_large)
            + "\n  choose dtype: bfloat16, or exclude these layers"
        )
    spec, nothing = QuantizedLayer(bits=BITS, granularity=Half(config.dtype)), torch.zeros(0)
    swaps = {}
    for done, (name, weight) in enumerate(rounded.items()):
        stage.progress(done, len(rounded), name)
        stored = QuantizedWeight(qdata=weight, scale=nothing.clone(), bits=BITS, granularity=spec.granularity)
        swaps[name] = quantize_layer(layers[name], spec, stored)
    result = replaced(module, swaps).requires_grad_(False).eval()
    return StageResult(
        arch=stage.variant.arch,
        module=result,
        achieved=(achieved(result, swaps, BITS),),
        skipped=left_in_float(result, config.exclude),
    )
