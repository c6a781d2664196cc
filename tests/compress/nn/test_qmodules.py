"""Quantized layers compute what a float layer on the dequantized weight computes, and what an integer kernel would."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from compress.nn.affine import (
    Half,
    Palette,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedWeight,
    absmax_scale,
    activation_range,
    dequantize,
    round_to_scale,
    scale_shape,
)
from compress.nn.qmodules import (
    QConv2d,
    QEmbedding,
    QLinear,
    QuantizedLayer,
    apply_map,
    quantizable,
    quantization_map,
    quantize_layer,
    quantized,
)
from compress.nn.surgery import replaced

LAYERS = {
    "conv": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "strided conv, no bias": lambda: nn.Conv2d(4, 6, 3, stride=2, bias=False),
    "grouped dilated conv": lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=2),
    "linear": lambda: nn.Linear(4, 6),
    "linear, no bias": lambda: nn.Linear(4, 6, bias=False),
}
GRANULARITIES = [PerTensor(), PerChannel(), PerGroup(4)]


def layer_and_input(kind):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layer = LAYERS[kind]().requires_grad_(False)
        x = torch.randn(2, 4, 7, 7) if isinstance(layer, nn.Conv2d) else torch.randn(2, 3, 4)
    return layer, x


def twin_of(layer, granularity, bits=8, given=None, made=None):
    scale = absmax_scale(layer.weight, bits=bits, granularity=granularity)
    weight = round_to_scale(layer.weight, scale, bits=bits, granularity=granularity)
    return quantize_layer(layer, QuantizedLayer(bits=bits, granularity=granularity, input=given, output=made), weight)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_equals_the_float_layer_with_the_dequantized_weight(kind, granularity):
    layer, x = layer_and_input(kind)
    twin = twin_of(layer, granularity, bits=4)
    plain = copy.deepcopy(layer)
    plain.weight = nn.Parameter(dequantize(twin.quantized_weight), requires_grad=False)
    assert isinstance(twin, QConv2d if isinstance(layer, nn.Conv2d) else QLinear)
    assert not torch.equal(plain.weight, layer.weight)
    torch.testing.assert_close(twin(x), plain(x))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel()], ids=str)
def test_equals_an_integer_kernel(kind, granularity):
    """Sums of products of integers (exact in float64), an integer bias, one multiplication at the end."""
    layer, x = layer_and_input(kind)
    given, made = activation_range(-3.0, 3.0), activation_range(-2.0, 2.5)
    twin = twin_of(layer, granularity, given=given, made=made)
    codes = ((x / given.scale).round() + given.zero_point).clamp(0, 255).double() - given.zero_point
    weight = twin.qdata.double()
    grid = twin.scale.double() * given.scale * torch.ones(6, dtype=torch.float64)
    bias = None if layer.bias is None else (layer.bias.double() / grid).round()
    if isinstance(layer, nn.Conv2d):
        sums = functional.conv2d(codes, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        real = sums * grid.reshape(1, -1, 1, 1)
    else:
        real = functional.linear(codes, weight, bias) * grid
    expected = ((real / made.scale).round() + made.zero_point).clamp(0, 255) - made.zero_point
    got = (twin(x) / made.scale).round().double()
    off = (got - expected).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < 0.01  # a sum on the edge of two codes may fall either way


def test_the_bias_moves_by_at_most_half_a_step_and_only_where_inputs_are_quantized():
    layer, _ = layer_and_input("conv")
    given = activation_range(-3.0, 3.0)
    twin = twin_of(layer, PerChannel(), given=given)
    assert ((twin.effective_bias() - layer.bias).abs() <= twin.scale * given.scale * 0.501).all()
    assert not torch.equal(twin.effective_bias(), layer.bias)
    assert torch.equal(twin_of(layer, PerChannel()).effective_bias(), layer.bias)
    assert twin_of(layer_and_input("linear, no bias")[0], PerChannel(), given=given).effective_bias() is None


@pytest.mark.parametrize("granularity", [*GRANULARITIES, PerGroup(5)], ids=str)
@pytest.mark.parametrize("active", [False, True])
def test_map_and_tensors_bring_a_module_back(granularity, active):
    conv, x = layer_and_input("conv")
    given = activation_range(-3.0, 3.0) if active else None
    network = nn.Sequential(conv, nn.SiLU(), nn.Conv2d(6, 3, 1).requires_grad_(False))
    saved = replaced(network, {"0": twin_of(conv, granularity, bits=4, given=given, made=given)})
    entries = json.loads(json.dumps(quantization_map(saved)))
    assert list(entries) == ["0"]
    blank = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 3, 1))
    back = replaced(blank, apply_map(blank, entries))
    back.load_state_dict(saved.state_dict())
    assert torch.equal(back(x), saved(x))
    assert quantization_map(back) == quantization_map(saved)


def test_names_what_can_be_quantized():
    network = nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), nn.GroupNorm(1, 1), nn.Conv2d(1, 1, 1), nn.Linear(1, 1)
    )
    assert list(quantizable(network)) == ["2", "3"]  # an integer kernel pads with zeros
    assert quantized(network) == {} and quantization_map(network) == {}


TABLES = [PerTensor(), PerChannel(), PerGroup(2), Palette(None), Palette(3), Half("float16")]


def table_of(granularity):
    table = nn.Embedding(7, 5).requires_grad_(False)
    table.weight.copy_(torch.randn(7, 5, generator=torch.Generator().manual_seed(8)))
    bits = 16 if isinstance(granularity, Half) else 4
    if isinstance(granularity, Half):
        weight = QuantizedWeight(qdata=table.weight.half(), scale=torch.zeros(0), bits=16, granularity=granularity)
    elif isinstance(granularity, Palette):
        codes = torch.randint(-8, 8, (7, 5), generator=torch.Generator().manual_seed(9)).to(torch.int8)
        tables = torch.randn(scale_shape((7, 5), bits=4, granularity=granularity))
        weight = QuantizedWeight(qdata=codes, scale=tables, bits=4, granularity=granularity)
    else:
        scale = absmax_scale(table.weight, bits=4, granularity=granularity)
        weight = round_to_scale(table.weight, scale, bits=4, granularity=granularity)
    return quantize_layer(table, QuantizedLayer(bits=bits, granularity=granularity), weight)


@pytest.mark.parametrize("granularity", TABLES, ids=str)
def test_an_embedding_looks_up_rows_of_the_dequantized_table(granularity):
    twin = table_of(granularity)
    ids = torch.tensor([[0, 6, 3], [3, 5, 0]])
    assert isinstance(twin, QEmbedding)
    assert torch.equal(twin(ids), functional.embedding(ids, dequantize(twin.quantized_weight)))
    assert torch.equal(twin.weight[:2], twin(torch.tensor([0, 1])))
    network = nn.Sequential(nn.Embedding(7, 5))
    saved = nn.Sequential(twin)
    entries = json.loads(json.dumps(quantization_map(saved)))
    back = replaced(network, apply_map(network, entries))
    back.load_state_dict(saved.state_dict())
    assert torch.equal(back(ids), saved(ids)) and back[0].layer == twin.layer
    assert back[0].qdata.dtype == twin.qdata.dtype


def test_a_palette_by_its_definition():
    """Entry code + 2^(bits-1) of the table of the row's group, one weight at a time."""
    twin = table_of(Palette(3))
    weight = dequantize(twin.quantized_weight)
    for o in range(7):
        for i in range(5):
            assert weight[o, i] == twin.scale[o // 3, int(twin.qdata[o, i]) + 8]


def test_an_embedding_that_rescales_its_rows_is_left_alone():
    assert quantizable(nn.Sequential(nn.Embedding(7, 5, max_norm=1.0))) == {}
