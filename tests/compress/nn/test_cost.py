"""Parameters, MACs and bytes, against counts by hand and against torch's own counter."""

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from compress import components
from compress.files import read_json
from compress.nn.affine import PerChannel, PerGroup, absmax_scale, round_to_scale
from compress.nn.blocks import PixelAttention, ResnetBlock, Upsample
from compress.nn.cost import by_block, measure
from compress.nn.qmodules import QuantizedLayer, quantizable, quantize_layer
from compress.nn.surgery import replaced


def convolutions_of_a_decoder(config, side):
    """(name, inputs, outputs, kernel, side of the output), conv by conv, from arch.json alone."""
    levels = config["levels"]
    yield "conv_in", config["latent_channels"], levels[0]["width"], 3, side
    for i, level in enumerate(levels):
        for j, hidden in enumerate(level["hidden"]):
            yield f"levels.{i}.resnets.{j}.conv1", level["width"], hidden, 3, side
            yield f"levels.{i}.resnets.{j}.conv2", hidden, level["width"], 3, side
        if level["step"] is not None:
            side *= 2
            yield f"levels.{i}.step.conv", level["width"], level["step"], 3, side
    yield "conv_out", levels[-1]["width"], 3, 3, side
    yield "linear", config["latent_channels"], 192, 1, side // 8


def test_md_tiny_decoder_conv_by_conv():
    config = read_json(components.find("md-tiny/decoder") / "arch.json")["config"]
    cost = components.component_cost("md-tiny/decoder", 256)
    measured = {layer.name: layer for layer in cost.layers}
    macs = parameters = 0
    for name, inputs, outputs, kernel, side in convolutions_of_a_decoder(config, 32):
        assert measured[name].macs == inputs * outputs * kernel**2 * side**2, name
        assert measured[name].parameters == inputs * outputs * kernel**2 + outputs, name
        macs += measured[name].macs
        parameters += measured[name].parameters
    norms = sum(2 * (level["width"] + hidden) for level in config["levels"] for hidden in level["hidden"])
    assert cost.macs == macs
    assert cost.parameters == parameters + norms + 2 * config["levels"][-1]["width"]
    assert cost.weight_bytes == 4 * cost.parameters


def test_the_first_convolution_by_hand():
    layer = next(x for x in components.component_cost("md-tiny/decoder", 256).layers if x.name == "conv_in")
    assert layer.macs == 8 * 192 * 9 * 32 * 32 == 14_155_776


@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_torch_counts_twice_as_many_flops(name):
    variant = getattr(tiny, name)()
    x = torch.zeros(2, 8, 4, 4) if name == "decoder" else torch.zeros(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        variant.module(x)
    assert measure(variant.module, [tuple(x.shape)]).macs * 2 == counter.get_total_flops()


def test_linear_and_grouped_layers_by_hand():
    network = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    conv, linear = measure(network, [(3, 4, 6, 6)]).layers
    assert (conv.parameters, conv.macs) == (8 * 9, 3 * 8 * 16 * 9)
    assert (linear.parameters, linear.macs) == (128 * 5 + 5, 3 * 128 * 5)


def test_a_layer_that_runs_twice_counts_twice_and_is_stored_once():
    layer = nn.Linear(4, 4)
    cost = measure(nn.Sequential(layer, nn.ReLU(), layer), [(1, 4)])
    assert (cost.parameters, cost.macs) == (20, 32)


@pytest.mark.parametrize("bits, granularity, scales", [(8, PerChannel(), 1), (4, PerChannel(), 1), (3, PerGroup(9), 4)])
def test_quantized_layers_are_counted_packed(bits, granularity, scales):
    conv = nn.Conv2d(4, 6, 3).requires_grad_(False)
    scale = absmax_scale(conv.weight, bits=bits, granularity=granularity)
    weight = round_to_scale(conv.weight, scale, bits=bits, granularity=granularity)
    twin = quantize_layer(conv, QuantizedLayer(bits=bits, granularity=granularity), weight)
    plain, packed = measure(nn.Sequential(conv), [(1, 4, 5, 5)]), measure(nn.Sequential(twin), [(1, 4, 5, 5)])
    assert packed.weight_bytes == 6 * 36 * bits // 8 + 6 * scales * 4 + 6 * 4
    assert (packed.parameters, packed.macs) == (plain.parameters, plain.macs)


def test_counting_leaves_the_module_as_it_was():
    module = tiny.decoder().module
    before = {n: id(t) for n, t in module.state_dict(keep_vars=True).items()}
    measure(module, [(1, 8, 4, 4)])
    assert {n: id(t) for n, t in module.state_dict(keep_vars=True).items()} == before
    assert not any(m._forward_hooks for m in module.modules())


def test_a_quantized_network_has_the_macs_of_the_float_one():
    module = tiny.decoder().module
    swaps = {}
    for name, layer in quantizable(module).items():
        scale = absmax_scale(layer.weight, bits=8, granularity=PerChannel())
        weight = round_to_scale(layer.weight, scale, bits=8, granularity=PerChannel())
        swaps[name] = quantize_layer(layer, QuantizedLayer(bits=8, granularity=PerChannel()), weight)
    assert measure(replaced(module, swaps), [(1, 8, 4, 4)]).macs == measure(module, [(1, 8, 4, 4)]).macs


def test_attention_counts_its_two_products_under_its_own_name():
    pixels, channels, keys, values = 6 * 5, 16, 12, 8
    module = nn.Sequential(PixelAttention(channels, keys, values, scale_width=16, norm_groups=4))
    layers = {layer.name: layer for layer in measure(module, [(3, channels, 6, 5)]).layers}
    assert layers["0"].macs == 3 * pixels * pixels * (keys + values)
    assert (layers["0"].kind, layers["0"].parameters, layers["0"].activations) == (
        "PixelAttention",
        0,
        3 * channels * pixels,
    )
    assert layers["0.q"].macs == 3 * pixels * channels * keys
    assert layers["0.out"].macs == 3 * pixels * values * channels


class FusedAttention(nn.Module):
    def forward(self, q, k, v):
        return functional.scaled_dot_product_attention(q, k, v)


def test_fused_attention_counts_the_same():
    queries, keys, width, values = 7, 9, 4, 6
    cost = measure(FusedAttention(), [(2, 3, queries, width), (2, 3, keys, width), (2, 3, keys, values)])
    assert cost.macs == 2 * 3 * queries * keys * (width + values)


def test_inputs_may_be_tensors_of_any_type():
    cost = measure(nn.Embedding(11, 5), [torch.zeros(2, 7, dtype=torch.int64)])
    assert (cost.parameters, cost.macs, cost.activations) == (55, 0, 2 * 7 * 5)
    assert cost.peak_activations == 2 * 7 + 2 * 7 * 5


def test_outputs_of_layers_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 2, 1))
    cost = measure(network, [(2, 3, 9, 9)])
    assert [layer.activations for layer in cost.layers] == [2 * 8 * 16, 2 * 2 * 16]
    assert cost.activations == 2 * 10 * 16


def test_peak_of_a_chain_is_two_neighbours():
    """No tensor is needed once the next one is there: conv's input 243 and output 256, then 256 twice, then 256 + 32."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 1, 1))
    cost = measure(network, [(1, 3, 9, 9)])
    assert dict(cost.alive) == {"": 243, "0": 243 + 128, "1": 2 * 128, "2": 128 + 16}
    assert cost.peak_activations == 243 + 128


def test_peak_of_a_residual_block():
    """x waits for the shortcut, the shortcut's output for the sum; beside them an operation's input and output."""
    x, inside, out = 8 * 36, 16 * 36, 4 * 36
    cost = measure(ResnetBlock(8, 16, 4, norm_groups=4, projected=True), [(1, 8, 6, 6)])
    assert dict(cost.alive) == {
        "": 2 * inside + out,  # the second silu; the sum needs less
        "norm1": 2 * x,
        "conv1": x + x + inside,
        "shortcut": x + inside + out,
        "norm2": out + 2 * inside,
        "conv2": out + inside + out,
    }
    identity = measure(ResnetBlock(8, 16, 8, norm_groups=4), [(1, 8, 6, 6)])
    assert identity.alive["norm2"] == identity.peak_activations == x + 2 * inside


def test_peak_of_an_upsampler():
    cost = measure(Upsample(4, 6), [(1, 4, 5, 5)])
    assert dict(cost.alive) == {"": 6 * 100, "conv": 4 * 100 + 6 * 100}


class Views(nn.Module):
    def forward(self, x):
        left, right = x.reshape(2, -1).t().chunk(2)
        return (left.contiguous() + right).flatten()


def test_views_take_nothing_and_outputs_stay():
    """x 24; the copy of its left half 12; their sum 12, and x until then; the flattened sum is the sum."""
    assert measure(Views(), [(4, 6)]).peak_activations == 24 + 12 + 12


class KeepsItsInput(nn.Module):
    def forward(self, x):
        y = torch.relu(torch.relu(x))
        return y, x


def test_an_output_is_alive_to_the_end():
    assert measure(KeepsItsInput(), [(10,)]).peak_activations == 30
    assert measure(nn.Sequential(nn.ReLU(), nn.ReLU()), [(10,)]).peak_activations == 20


@pytest.mark.parametrize("pixels", [64, 128])
def test_blocks_share_out_the_whole(pixels):
    cost = components.component_cost("stable-diffusion-1.5/decoder", pixels)
    arch = components.read_arch(components.find("stable-diffusion-1.5/decoder"))
    names = [block.name for block in components.kind_of(arch.kind).blocks(arch.config)]
    blocks = by_block(cost, names)
    assert [b.name for b in blocks if b.name in names] == names
    assert {b.name for b in blocks} - set(names) == {
        "post_quant_conv",
        "conv_in",
        "levels.0.step.conv",
        "levels.1.step.conv",
        "levels.2.step.conv",
        "norm_out",
        "conv_out",
    }
    for what in ("parameters", "macs", "weight_bytes", "activations"):
        assert sum(getattr(b, what) for b in blocks) == getattr(cost, what)
    by_name = {b.name: b for b in blocks}
    attention, score = by_name["mid.attention"], (pixels // 8) ** 2
    assert attention.macs == 4 * 512 * 512 * score + 2 * 512 * score**2
    assert by_name["levels.0.resnets.1"].macs == 2 * 9 * 512 * 512 * score
    assert by_name["levels.2.resnets.0"].macs == (9 * 512 * 256 + 9 * 256 * 256 + 512 * 256) * 16 * score
    # where the stream goes from 256 to 128 channels at full size: shortcut's output, silu's input and output
    assert cost.peak_activations == by_name["levels.3.resnets.0"].peak_activations == 3 * 256 * 64 * score


def test_a_block_is_not_mistaken_for_one_whose_name_begins_alike():
    cost = measure(nn.ModuleDict({"a": nn.Linear(2, 3), "a1": nn.Linear(3, 4)}).a, [(1, 2)])
    assert [b.name for b in by_block(cost, ["a"])] == [""]
    chain = measure(nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(11))), [(1, 1)])
    assert [(b.name, b.parameters) for b in by_block(chain, ["1"])] == [(str(i), 1) for i in range(11)]


@pytest.mark.parametrize("bits", [4, 8])
def test_bytes_at_other_precisions_are_those_of_the_quantized_network(bits):
    module = tiny.decoder().module
    swaps = {}
    for name, layer in quantizable(module).items():
        scale = absmax_scale(layer.weight, bits=bits, granularity=PerChannel())
        weight = round_to_scale(layer.weight, scale, bits=bits, granularity=PerChannel())
        swaps[name] = quantize_layer(layer, QuantizedLayer(bits=bits, granularity=PerChannel()), weight)
    cost, packed = measure(module, [(1, 8, 4, 4)]), measure(replaced(module, swaps), [(1, 8, 4, 4)])
    assert cost.weight_bytes_at(bits) == packed.weight_bytes == packed.weight_bytes_at(bits)
    assert cost.weight_bytes_at(32) == cost.weight_bytes == 2 * cost.weight_bytes_at(16) == 4 * cost.parameters
    assert (cost.activations, cost.alive) == (packed.activations, packed.alive)
