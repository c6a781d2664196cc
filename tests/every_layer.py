"""A network with every kind of layer that can be quantized, each in another way, and what is held of it in a file."""

from types import ModuleType

import torch
from torch import nn

from compress.nn.affine import (
    ActivationRange,
    Granularity,
    Half,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedWeight,
    absmax_scale,
    activation_range,
    round_to_scale,
)
from compress.nn.qmodules import QuantizedLayer, quantizable, quantize_layer, quantized
from compress.nn.surgery import replaced

IDS = torch.tensor([[0, 3, 8, 1, 1, 7]])
GRID = ActivationRange(scale=0.02, zero_point=128)


def ranges(module, x):
    """Input and output ranges of every layer but embeddings, on some inputs."""
    found = {}

    def note(name):
        def hook(_, inputs, output):
            found[name] = tuple(activation_range(float(t.min()), float(t.max())) for t in (inputs[0], output))

        return hook

    layers = {n: m for n, m in quantizable(module).items() if not isinstance(m, nn.Embedding)}
    hooks = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    with torch.no_grad():
        module(*x)
    for hook in hooks:
        hook.remove()
    return found


class Net(nn.Module):
    """Ids [1, 6] to [1, 36, 8]: a look-up, convolutions around a norm, projections square and not, biased and not."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 12)
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.biased, self.square, self.plain = nn.Linear(12, 10), nn.Linear(10, 10), nn.Linear(10, 8, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids).reshape(1, 2, -1, 12)
        x = self.second(self.norm(self.first(x)))
        return self.plain(self.square(torch.tanh(self.biased(x.flatten(1, 2)))))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


def mixed(bits: int) -> nn.Module:
    """Every granularity, with and without ranges of activations."""
    layers: dict[str, tuple[Granularity, bool]] = {
        "table": (PerGroup(4), False),
        "first": (PerChannel(), bits == 8),
        "second": (PerGroup(6), False),
        "biased": (PerTensor(), bits == 8),
        "square": (PerChannel(), False),
        "plain": (PerGroup(2), False),
    }
    module, swaps = net(), {}
    for name, (granularity, static) in layers.items():
        layer = module.get_submodule(name)
        scale = absmax_scale(layer.weight, bits=bits, granularity=granularity)
        weight = round_to_scale(layer.weight, scale, bits=bits, granularity=granularity)
        spec = QuantizedLayer(bits=bits, granularity=granularity, input=GRID if static else None)
        swaps[name] = quantize_layer(layer, spec, weight)
    return replaced(module, swaps)


def halved() -> nn.Module:
    """16-bit weights of both kinds."""
    module, swaps = net(), {}
    for number, name in enumerate(("table", "first", "second", "biased", "square", "plain")):
        layer, granularity = module.get_submodule(name), Half("bfloat16" if number % 2 else "float16")
        weight = QuantizedWeight(
            qdata=layer.weight.to(getattr(torch, granularity.dtype)),
            scale=torch.zeros(0),
            bits=16,
            granularity=granularity,
        )
        swaps[name] = quantize_layer(layer, QuantizedLayer(bits=16, granularity=granularity), weight)
    return replaced(module, swaps)


def assert_held(exporter: ModuleType, path: object, module: nn.Module) -> None:
    """Integers and scales in the file are the module's, layer by layer."""
    held, own = exporter.read_back(path), quantized(module)
    assert held.keys() == own.keys()
    for name, q in own.items():
        assert torch.equal(held[name].qdata, q.qdata), name
        assert torch.equal(held[name].scale, q.scale), name
        assert (held[name].bits, held[name].granularity) == (q.layer.bits, q.layer.granularity), name
