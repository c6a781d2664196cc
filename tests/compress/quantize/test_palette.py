"""Palettes of a decoder's weights: what is promised, what is weighted, what a dead layer does."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

from compress.components import load_variant, save_variant
from compress.errors import UserError
from compress.nn.affine import Palette, PerTensor, absmax_scale, dequantize, round_to_scale
from compress.nn.qmodules import quantizable, quantized
from compress.quantize import palette
from compress.records import Prediction
from compress.registry import load

LAYERS = quantizable(tiny.decoder().module)


def quantize(folder, variant=None, **config):
    return palette.apply(tiny.stage_input(folder, variant), palette.Config(**config))


@pytest.mark.parametrize("bits", [2, 5])
@pytest.mark.parametrize("channels", [None, 3])
def test_every_weight_is_an_entry_of_its_table(tmp_path, bits, channels):
    result = quantize(tmp_path, bits=bits, channels=channels)
    assert set(quantized(result.module)) == set(LAYERS)
    for name, q in quantized(result.module).items():
        weight, outputs = dequantize(q.quantized_weight), LAYERS[name].weight.shape[0]
        assert q.scale.shape == (1 if channels is None else -(-outputs // channels), 2**bits)
        for o in range(outputs):
            table = q.scale[0 if channels is None else o // channels]
            assert torch.isin(weight[o], table).all()


@pytest.mark.parametrize("bits", [3, 5])
def test_not_worse_than_rounding_with_one_scale(tmp_path, bits):
    for name, q in quantized(quantize(tmp_path, bits=bits, weighted=False).module).items():
        weight = LAYERS[name].weight
        scale = absmax_scale(weight, bits=bits, granularity=PerTensor())
        rounded = dequantize(round_to_scale(weight, scale, bits=bits, granularity=PerTensor()))
        ours = (dequantize(q.quantized_weight) - weight).double().square().sum()
        assert ours <= (rounded - weight).double().square().sum() * (1 + 1e-6)


def test_the_weighting_spends_the_table_on_what_is_multiplied_with_large_activations():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 32)
    energy = torch.logspace(-3, 1, 64)
    weight = torch.randn(32, 64, generator=generator) * energy**-0.25  # small where activations are large
    layer.weight = nn.Parameter(weight, requires_grad=False)
    x = torch.randn(500, 64, generator=generator) * energy.sqrt()
    errors = []
    for weights in (None, palette._per_weight(energy, layer)):
        stored = palette.palettized(layer.weight, bits=3, channels=None, weights=weights)
        errors.append(float((x @ (dequantize(stored) - layer.weight).T).square().mean()))
    assert errors[1] < 0.9 * errors[0]


def test_a_grouped_convolution_is_weighted_by_its_own_inputs():
    layer = nn.Conv2d(4, 6, 1, groups=2)
    found = palette._per_weight(torch.tensor([1.0, 2.0, 3.0, 4.0]), layer)
    assert found.shape == (6, 2, 1, 1)
    assert found[:, :, 0, 0].tolist() == [[1, 2]] * 3 + [[3, 4]] * 3


@pytest.mark.parametrize("bits", [3, 6])
def test_the_folder_is_as_small_as_promised(tmp_path, bits):
    result = quantize(tmp_path, bits=bits)
    save_variant(replace(tiny.decoder(), module=result.module), tmp_path / "saved")
    state = result.module.state_dict()
    stored = sum(-(-t.numel() * bits // 8) if n.endswith(".qdata") else t.numel() * 4 for n, t in state.items())
    size = (tmp_path / "saved" / "weights.safetensors").stat().st_size
    assert stored < size < stored + 150 * (len(state) + 1)  # and a header of one line per tensor
    back = load_variant(tmp_path / "saved").module.state_dict()
    assert all(torch.equal(t, back[n]) for n, t in state.items())


def test_a_layer_of_zeros_stays_zero_and_finite(tmp_path):
    variant = tiny.decoder()
    variant.module.conv_out.weight.zero_()
    result = quantize(tmp_path, variant, bits=2)
    q = quantized(result.module)["conv_out"]
    assert q.scale.isfinite().all() and (dequantize(q.quantized_weight) == 0).all()
    assert result.module(tiny.latents()).isfinite().all()


def test_formats_that_hold_no_palette_say_so_before_anything_runs():
    prediction = palette.predict(Prediction(ends=(tiny.decoder().arch,)), palette.Config())
    assert (prediction.weight_bits, prediction.granularity) == (6, Palette(None))
    reasons = load("export.onnx").refuse(prediction.weight_bits, prediction.granularity, 32)
    assert len(reasons) == 1 and "palettes" in reasons[0] and "choose quantize.rtn" in reasons[0]


def test_a_pattern_that_matches_nothing(tmp_path):
    with pytest.raises(UserError, match="matches no layer"):
        quantize(tmp_path, exclude=("nothing",))
