"""Parameters, MACs and bytes, against counts by hand and against torch's own counter."""

import pytest
import tiny
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compress import components
from compress.files import read_json
from compress.nn.affine import PerChannel, PerGroup, absmax_scale, round_to_scale
from compress.nn.cost import measure
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
