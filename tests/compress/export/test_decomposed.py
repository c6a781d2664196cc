"""Quantized layers spelled out in operators compute what the layers compute, with the same integers."""

import pytest
import torch
from torch import nn

from compress.export._decomposed import Style, decomposed, one_for_each_reader, without_repeats
from compress.nn.affine import (
    ActivationRange,
    Half,
    Palette,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedWeight,
    absmax_scale,
    round_to_scale,
)
from compress.nn.qmodules import QuantizedLayer, quantize_layer, quantized
from compress.nn.surgery import replaced

ops = torch.ops.quantized_decomposed
GRID = ActivationRange(scale=0.03, zero_point=120)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 12)
        self.conv = nn.Conv2d(2, 6, (3, 1), padding=(1, 0), groups=2)
        self.wide = nn.Linear(12, 10)

    def forward(self, ids):
        x = self.table(ids).reshape(1, 2, -1, 12)
        return self.wide(self.conv(x))


def stored(weight, bits, granularity):
    match granularity:
        case Half(dtype=dtype):
            nothing = torch.zeros(0)
            return QuantizedWeight(
                qdata=weight.to(getattr(torch, dtype)), scale=nothing, bits=16, granularity=granularity
            )
        case Palette(channels=channels):
            count = 1 if channels is None else -(-len(weight) // channels)
            codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), weight.shape, dtype=torch.int8)
            return QuantizedWeight(qdata=codes, scale=torch.randn(count, 2**bits), bits=bits, granularity=granularity)
        case _:
            scale = absmax_scale(weight, bits=bits, granularity=granularity)
            return round_to_scale(weight, scale, bits=bits, granularity=granularity)


def quantize(net, bits, granularity, grid=None):
    swaps = {}
    for name in ("table", "conv", "wide"):
        layer = net.get_submodule(name)
        grids = {} if name == "table" else {"input": grid, "output": grid}
        spec = QuantizedLayer(bits=bits, granularity=granularity, **grids)
        swaps[name] = quantize_layer(layer, spec, stored(layer.weight.detach(), bits, granularity))
    return replaced(net, swaps)


@pytest.mark.parametrize(
    ("bits", "granularity"),
    [
        (8, PerTensor()),
        (8, PerChannel()),
        (4, PerChannel()),
        (4, PerGroup(4)),
        (8, PerGroup(5)),  # divides neither 12 nor 3
        (16, Half("float16")),
        (16, Half("bfloat16")),
        (4, Palette()),
        (3, Palette(4)),
    ],
    ids=str,
)
def test_weights_of_every_kind_compute_the_same(bits, granularity):
    torch.manual_seed(0)
    module = quantize(Net().eval(), bits, granularity)
    ids = torch.randint(0, 9, (1, 8))
    with torch.no_grad():
        expected = module(ids)
        program = torch.export.export(decomposed(module, Style()), (ids,))
        torch.testing.assert_close(program.module()(ids), expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 0.1
    for name, q in quantized(module).items():
        held = program.state_dict[f"{name}.qdata"]
        if isinstance(granularity, PerGroup):
            held = held[:, : q.qdata[0].numel()].reshape(q.qdata.shape)
        assert torch.equal(held, q.qdata)


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("bias", ["float32", "int32"])
def test_activations_are_rounded_to_the_same_grid_and_only_once(activations, bias):
    torch.manual_seed(1)
    module = quantize(Net().eval(), 8, PerChannel(), GRID)
    ids = torch.randint(0, 9, (1, 8))
    with torch.no_grad():
        expected = module(ids)
        graph = torch.export.export(decomposed(module, Style(activations=activations, bias=bias)), (ids,)).module()
    assert expected.unique().numel() > 20
    count = sum(node.target == ops.quantize_per_tensor.default for node in graph.graph.nodes)
    assert without_repeats(graph) == 1  # between the convolution and the linear layer
    assert sum(node.target == ops.quantize_per_tensor.default for node in graph.graph.nodes) == count - 1 == 3
    steps = (graph(ids) - expected).abs() / GRID.scale
    assert float(steps.max()) < 1.01
    assert float((steps > 0.5).float().mean()) < 0.02
    types = {node.args[5] for node in graph.graph.nodes if node.target == ops.quantize_per_tensor.default}
    assert types == {getattr(torch, activations)}
    biases = [b for n, b in graph.named_buffers() if n.endswith(".bias") or n.endswith("_bias")]
    assert {b.dtype for b in biases} == {getattr(torch, bias)}


class Shared(nn.Module):
    """What was rounded once is read three times."""

    def forward(self, x):
        limits = (GRID.scale, 0, -128, 127, torch.int8)
        y = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *limits), *limits)
        return y * y.relu() + y


def test_each_reader_has_a_dequantization_of_its_own():
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    graph = torch.export.export(Shared(), (x,)).module()
    one_for_each_reader(graph)
    made = [node for node in graph.graph.nodes if node.target == ops.dequantize_per_tensor.default]
    assert len(made) == 3 and all(len(node.users) == 1 for node in made)
    assert torch.equal(graph(x), Shared()(x))
