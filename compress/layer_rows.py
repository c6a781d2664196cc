"""The layers of a variant beside those of its reference, as the report lists them."""

from torch import nn

from compress.nn.affine import Granularity, Half, Palette, PerChannel, PerGroup, PerTensor
from compress.nn.cost import Cost
from compress.nn.qmodules import quantized
from eval.report import records


def layer_rows(module: nn.Module, cost: Cost, reference: Cost) -> tuple[records.LayerRow, ...]:
    """Every layer with parameters or MACs of its own, in the module's order."""
    before = {layer.name: layer.weight_bytes for layer in reference.layers}
    specs = {name: layer.layer for name, layer in quantized(module).items()}
    return tuple(
        records.LayerRow(
            name=layer.name or "(itself)",
            kind=layer.kind,
            weights=stored(specs[layer.name].bits, specs[layer.name].granularity) if layer.name in specs else "float32",
            parameters=layer.parameters,
            macs=layer.macs,
            bytes=layer.weight_bytes,
            reference_bytes=before.get(layer.name),
        )
        for layer in cost.layers
    )


def removed(cost: Cost, reference: Cost) -> tuple[str, ...]:
    """Layers that only the reference has."""
    kept = {layer.name for layer in cost.layers}
    return tuple(layer.name for layer in reference.layers if layer.name not in kept)


def stored(bits: int, granularity: Granularity) -> str:
    """How the weights of a layer are stored, in words."""
    match granularity:
        case PerTensor():
            return f"{bits} bits, per tensor"
        case PerChannel():
            return f"{bits} bits, per channel"
        case PerGroup(size=size):
            return f"{bits} bits, groups of {size}"
        case Palette(channels=None):
            return f"{bits} bits, one palette"
        case Palette(channels=channels):
            return f"{bits} bits, a palette per {channels} channels"
        case Half(dtype=dtype):
            return dtype
