"""Every convolution is rounded, what is left in float is named, and the promised bytes are there."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

from compress.errors import UserError
from compress.nn import cost
from compress.nn.affine import dequantize
from compress.nn.qmodules import quantizable, quantized
from compress.quantize import rtn
from compress.records import Prediction

CONVOLUTIONS = quantizable(tiny.decoder().module)
NORMS = [n for n, m in tiny.decoder().module.named_modules() if isinstance(m, nn.GroupNorm)]


def quantize(tmp_path, variant=None, **config):
    return rtn.apply(tiny.stage_input(tmp_path, variant), rtn.Config(**config))


def sqnr_db(module):
    reference = tiny.decoder().module(tiny.latents())
    error = module(tiny.latents()) - reference
    return float(10 * torch.log10((reference - reference.mean()).square().sum() / error.square().sum()))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
def test_the_promised_bytes(tmp_path, bits, granularity):
    size = 4 if granularity == "per_group" else None
    result = quantize(tmp_path, bits=bits, granularity=granularity, group_size=size, clip=False)
    expected = sum(8 * tiny.decoder().module.get_submodule(name).num_channels for name in NORMS)
    for layer in CONVOLUTIONS.values():
        outputs, inputs = layer.weight.shape[0], layer.weight[0].numel()
        scales = {"per_tensor": 1, "per_channel": outputs, "per_group": outputs * inputs // 4}[granularity]
        expected += -(-outputs * inputs * bits // 8) + 4 * scales + 4 * outputs
    assert cost.measure(result.module, [(1, 8, 4, 4)]).weight_bytes == expected


def test_every_convolution_is_quantized_and_every_norm_is_named(tmp_path):
    result = quantize(tmp_path, bits=4)
    assert set(quantized(result.module)) == set(CONVOLUTIONS)
    assert [s.name for s in result.skipped] == NORMS
    assert all("GroupNorm" in s.reason and "float" in s.reason for s in result.skipped)
    (achieved,) = result.achieved
    weights = sum(layer.weight.numel() for layer in CONVOLUTIONS.values())
    assert (achieved.what, achieved.requested, achieved.achieved) == ("weights at 4 bits", weights, weights)
    assert achieved.met


def test_what_is_excluded_stays_in_float_and_is_named(tmp_path):
    result = quantize(tmp_path, exclude=("conv_out", "levels.0.*"))
    left = {n for n in CONVOLUTIONS if n == "conv_out" or n.startswith("levels.0.")}
    assert set(quantized(result.module)) == set(CONVOLUTIONS) - left
    reasons = {s.name: s.reason for s in result.skipped}
    assert all(reasons[name] == "excluded by the recipe" for name in left) and set(NORMS) <= set(reasons)
    assert result.module.conv_out.weight is not None and result.achieved[0].met


@pytest.mark.parametrize("plan", [True, False])
def test_a_pattern_that_matches_nothing(tmp_path, plan):
    config, arch = rtn.Config(exclude=("conv_out", "levels.7.*")), tiny.decoder().arch
    with pytest.raises(UserError, match=r"exclude: 'levels\.7\.\*' matches no layer; layers are conv_in, .*conv_out"):
        if plan:
            rtn.predict(Prediction(ends=(arch,)), config)
        else:
            rtn.apply(tiny.stage_input(tmp_path), config)


@pytest.mark.parametrize("plan", [True, False])
def test_groups_that_do_not_divide_name_the_layers_and_what_would(tmp_path, plan):
    config, arch = rtn.Config(granularity="per_group", group_size=16), tiny.decoder().arch
    with pytest.raises(UserError) as caught:
        if plan:
            rtn.predict(Prediction(ends=(arch,)), config)
        else:
            rtn.apply(tiny.stage_input(tmp_path), config)
    message = str(caught.value)
    for name, layer in CONVOLUTIONS.items():
        assert (f"'{name}'" in message) == (layer.weight[0].numel() % 16 != 0)
    assert "group_size 16 does not divide the 72 inputs of 'conv_out'; divisors near it: [9, 12, 18]" in message
    assert "group_size 16 does not divide the 8 inputs of 'linear'; divisors near it: [2, 4, 8]" in message


@pytest.mark.parametrize("config", [{"granularity": "per_group"}, {"group_size": 4}, {"bits": 9}, {"bits": 1}])
def test_a_configuration_that_contradicts_itself(config):
    with pytest.raises(ValueError, match="group_size belongs to|Input should be"):
        rtn.Config(**config)


def test_a_quantized_variant_is_not_quantized_again(tmp_path):
    once = quantize(tmp_path)
    with pytest.raises(UserError, match="quantized already"):
        quantize(tmp_path, replace(tiny.decoder(), module=once.module))


def test_eight_bits_are_close_and_each_bit_counts(tmp_path):
    """Floors well below what the tiny decoder gives, and some 6 dB for each bit."""
    decibels = [sqnr_db(quantize(tmp_path, bits=bits).module) for bits in (2, 3, 4, 8)]
    assert decibels == sorted(decibels)
    assert decibels[3] > 35 and 4.0 < (decibels[3] - decibels[2]) / 4 < 8.0


def test_without_clipping_it_is_plain_rounding(tmp_path):
    result = quantize(tmp_path, bits=4, granularity="per_group", group_size=4, clip=False)
    for name, layer in CONVOLUTIONS.items():
        rows = layer.weight.double().reshape(-1, 4)
        scale = rows.abs().amax(dim=1, keepdim=True) / 7
        expected = ((rows / scale).round() * scale).reshape(layer.weight.shape)
        got = dequantize(result.module.get_submodule(name).quantized_weight).double()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_clipping_lowers_the_error_of_every_layer(tmp_path):
    result, plain = quantize(tmp_path, bits=4).module, quantize(tmp_path, bits=4, clip=False).module
    for name, layer in CONVOLUTIONS.items():
        errors = [
            float((dequantize(module.get_submodule(name).quantized_weight) - layer.weight).square().sum())
            for module in (result, plain)
        ]
        assert errors[0] < errors[1], name
