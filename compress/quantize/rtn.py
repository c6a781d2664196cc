"""Round-to-nearest weights of 8 down to 2 bits, convolutions included; activations stay in float.

Source: the plain rounding of Krishnamoorthi 2018 (arXiv:1806.08342), section 2; optional clipping search after OMSE
(Choukroun et al. 2019, arXiv:1902.06822).
Differs: groups run over all inputs of an output channel (channels and kernel positions), so convolutions have them too.
Cost: one pass over the weights, forty with the clipping search.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator

from compress.components import kind_of
from compress.errors import UserError
from compress.nn.affine import Granularity, PerChannel, PerGroup, PerTensor, absmax_scale, clipped_scale, round_to_scale
from compress.nn.qmodules import FloatLayer, QuantizedLayer, quantize_layer
from compress.nn.surgery import replaced
from compress.quantize._layers import achieved, chosen_layers, left_in_float
from compress.records import Needs, Prediction, StageInput, StageResult
from compress.schema import Schema

NEEDS = Needs.NOTHING


class Config(Schema):
    """How weights are rounded."""

    bits: Literal[2, 3, 4, 5, 6, 7, 8] = Field(8, description="Bits per weight.")
    granularity: Literal["per_tensor", "per_channel", "per_group"] = Field(
        "per_channel", description="What shares a scale."
    )
    group_size: PositiveInt | None = Field(None, description="Inputs per scale; for per_group only.")
    clip: bool = Field(True, description="Search the clipping point with the least squared error.")
    exclude: tuple[str, ...] = Field((), description="Layers to leave in float: names with * and ? wildcards.")

    @model_validator(mode="after")
    def _group_size_fits(self) -> "Config":
        if (self.granularity == "per_group") != (self.group_size is not None):
            raise ValueError("group_size belongs to granularity: per_group, and only there")
        return self


def predict(prediction: Prediction, config: Config) -> Prediction:
    """Same architecture, fewer bits.

    Raises:
        UserError: a layer cannot hold the groups asked for, or an exclude pattern matches nothing.
    """
    for arch in prediction.ends:
        with torch.device("meta"):
            module = kind_of(arch.kind).build(arch.config)
        _check_groups(chosen_layers(module, config.exclude), config)
    return replace(prediction, weight_bits=config.bits, granularity=_granularity(config), in_float=config.exclude)


def apply(stage: StageInput, config: Config) -> StageResult:
    """Swap every convolution, linear layer and embedding that is not excluded for its quantized twin."""
    module = stage.variant.module
    layers = chosen_layers(module, config.exclude)
    _check_groups(layers, config)
    granularity = _granularity(config)
    swaps = {}
    for done, (name, layer) in enumerate(layers.items()):
        stage.progress(done, len(layers), name)
        weight = layer.weight.detach()
        search = clipped_scale if config.clip else absmax_scale
        scale = search(weight, bits=config.bits, granularity=granularity)
        rounded = round_to_scale(weight, scale, bits=config.bits, granularity=granularity)
        swaps[name] = quantize_layer(layer, QuantizedLayer(bits=config.bits, granularity=granularity), rounded)
    result = replaced(module, swaps).requires_grad_(False).eval()
    return StageResult(
        arch=stage.variant.arch,
        module=result,
        achieved=(achieved(result, swaps, config.bits),),
        skipped=left_in_float(result, config.exclude),
    )


def _granularity(config: Config) -> Granularity:
    if config.group_size is not None:
        return PerGroup(config.group_size)
    return PerTensor() if config.granularity == "per_tensor" else PerChannel()


def _check_groups(layers: Mapping[str, FloatLayer], config: Config) -> None:
    size = config.group_size
    problems = []
    for name, layer in layers.items():
        inputs = layer.weight[0].numel()
        if size is not None and inputs % size:
            divisors = [d for d in range(2, inputs + 1) if inputs % d == 0]
            near = sorted(sorted(divisors, key=lambda d: abs(d - size))[:3])
            problems.append(
                f"group_size {size} does not divide the {inputs} inputs of '{name}'; divisors near it: {near}"
            )
    if problems:
        raise UserError("quantize.rtn: " + "\n  ".join(problems) + "\n  choose another size, or exclude these layers")
