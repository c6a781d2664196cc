"""New module trees from old ones: the old one stays as it was.

Source: the tensor-sharing deep copy of the `memo` argument of `copy.deepcopy`.
The law that makes sharing safe: nobody writes into a tensor of a variant.
"""

import copy
from collections.abc import Mapping

import torch
from torch import nn

from compress.nn.affine import dequantize
from compress.nn.qmodules import FloatLayer, QConv2d, QEmbedding, QuantizedModule, quantized


def twin(module: nn.Module) -> nn.Module:
    """A new module tree that shares every tensor with the old one."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(t): t for t in tensors})


def replaced(module: nn.Module, swaps: Mapping[str, nn.Module]) -> nn.Module:
    """A twin in which the named submodules are replaced.

    Raises:
        KeyError: a name is not a submodule.
    """
    new = twin(module)
    known = dict(new.named_modules())
    for name, submodule in swaps.items():
        if name not in known:
            raise KeyError(name)
        parent, _, leaf = name.rpartition(".")
        setattr(known[parent], leaf, submodule)
    return new


def float_twin(module: nn.Module) -> nn.Module:
    """The same network with every quantized layer as a float layer on its dequantized weight, activations left float.

    This is the graph that exporters trace; names are kept, so integers can be put back where they came from.
    """
    return replaced(module, {name: _float_layer(q) for name, q in quantized(module).items()})


def _float_layer(q: QuantizedModule) -> nn.Module:
    weight, bias = dequantize(q.quantized_weight), q.bias
    with torch.device("meta"):
        layer = _blank_float_layer(q, weight, biased=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer.eval()


def _blank_float_layer(q: QuantizedModule, weight: torch.Tensor, *, biased: bool) -> FloatLayer:
    if isinstance(q, QEmbedding):
        return nn.Embedding(weight.shape[0], weight.shape[1])
    if not isinstance(q, QConv2d):
        return nn.Linear(weight.shape[1], weight.shape[0], bias=biased)
    height, width = weight.shape[2:]
    return nn.Conv2d(
        weight.shape[1] * q.groups,
        weight.shape[0],
        (height, width),
        stride=q.stride,
        padding=q.padding,
        dilation=q.dilation,
        groups=q.groups,
        bias=biased,
    )
