"""Which layers a quantizer takes, and the account of what it took."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from compress.errors import UserError
from compress.nn.qmodules import FloatLayer, quantizable, quantized
from compress.records import Achieved, Skipped


def chosen(module: nn.Module, exclude: tuple[str, ...]) -> dict[str, nn.Conv2d | nn.Linear]:
    """The float convolutions and linear layers to quantize, by name.

    Raises:
        UserError: an exclude pattern matches no layer, or the module is quantized already.
    """
    return {n: m for n, m in chosen_layers(module, exclude).items() if not isinstance(m, nn.Embedding)}


def chosen_layers(module: nn.Module, exclude: tuple[str, ...]) -> dict[str, FloatLayer]:
    """The same with embeddings, for methods that quantize weights without looking at activations.

    Raises:
        UserError: as `chosen`.
    """
    if quantized(module):
        raise UserError("this variant is quantized already; quantize the float variant instead")
    layers = quantizable(module)
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise UserError(f"exclude: '{pattern}' matches no layer; layers are {', '.join(layers)}")
    return {n: m for n, m in layers.items() if not any(fnmatchcase(n, pattern) for pattern in exclude)}


def achieved(module: nn.Module, swapped: Iterable[str], bits: int) -> Achieved:
    """Weights asked for (all that are not excluded) against weights that are integers now."""
    asked = set(swapped)
    done = {name: layer.qdata.numel() for name, layer in quantized(module).items() if layer.layer.bits == bits}
    total = sum(done.values()) + sum(m.weight.numel() for n, m in quantizable(module).items() if n in asked)
    return Achieved(
        what=f"weights at {bits} bits",
        requested=total,
        achieved=sum(done.values()),
        unit="weights",
        met=asked == set(done),
    )


def left_in_float(module: nn.Module, exclude: tuple[str, ...]) -> tuple[Skipped, ...]:
    """Every module with weights that stayed in float, and why."""
    skipped = []
    for name, layer in module.named_modules():
        if not list(layer.parameters(recurse=False)):
            continue
        if any(fnmatchcase(name, pattern) for pattern in exclude):
            skipped.append(Skipped(name=name, reason="excluded by the recipe"))
        else:
            skipped.append(Skipped(name=name, reason=f"{type(layer).__name__}: computed in float by every runtime"))
    return tuple(skipped)
