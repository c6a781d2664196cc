"""What a module costs: parameters, bytes and MACs, per leaf module and in all.

MACs count one multiply-add as one, of convolutions and linear layers; normalisation, activations and additions are not
counted (as in the papers). Counted on the meta device, so a model of any size costs no memory.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from compress.nn.qmodules import QConv2d, QLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One leaf module."""

    name: str
    kind: str
    parameters: int
    macs: int
    weight_bytes: int  # as stored: integers packed to their bits, scales and biases in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A whole module, for one input shape."""

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """Weights, biases and normalisation parameters; scales of quantized weights are not parameters."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of one forward pass."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(layer.weight_bytes for layer in self.layers)


def _on_meta(module: nn.Module) -> nn.Module:
    tensors = (*module.parameters(), *module.buffers())
    memo = {
        id(t): nn.Parameter(t.to("meta"), requires_grad=False) if isinstance(t, nn.Parameter) else t.to("meta")
        for t in tensors
    }
    return copy.deepcopy(module, memo).eval()


def _parameters(module: nn.Module) -> int:
    if isinstance(module, QConv2d | QLinear):
        return module.qdata.numel() + (0 if module.bias is None else module.bias.numel())
    return sum(p.numel() for p in module.parameters(recurse=False))


def _weight_bytes(module: nn.Module) -> int:
    if not isinstance(module, QConv2d | QLinear):
        return sum(p.numel() * p.element_size() for p in module.parameters(recurse=False))
    packed = -(-module.qdata.numel() * module.layer.bits // 8)
    bias = 0 if module.bias is None else module.bias.numel() * 4
    return packed + bias + module.scale.numel() * 4


def _macs(module: nn.Module, output: torch.Tensor) -> int:
    """Multiply-adds of one call: output elements times the inputs that each one sums over."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return output.numel() * module.weight[0].numel()
    if isinstance(module, QConv2d | QLinear):
        return output.numel() * module.qdata[0].numel()
    return 0


def measure(module: nn.Module, input_shapes: Sequence[Sequence[int]]) -> Cost:
    """Cost of one forward pass on float32 inputs of these shapes (batch included)."""
    ghost = _on_meta(module)
    macs: dict[str, int] = {}
    leaves = {n: m for n, m in ghost.named_modules() if not any(m.children()) or _parameters(m)}

    def count(name: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        def hook(submodule: nn.Module, _: object, output: torch.Tensor) -> None:
            macs[name] = macs.get(name, 0) + _macs(submodule, output)

        return hook

    for name, submodule in leaves.items():
        submodule.register_forward_hook(count(name))
    with torch.no_grad():
        ghost(*(torch.zeros(tuple(shape), device="meta") for shape in input_shapes))
    return Cost(
        layers=tuple(
            LayerCost(
                name=name,
                kind=type(m).__name__,
                parameters=_parameters(m),
                macs=macs.get(name, 0),
                weight_bytes=_weight_bytes(m),
            )
            for name, m in leaves.items()
            if _parameters(m) or macs.get(name)
        )
    )
