"""Half precision: the numbers themselves, the bytes, and what does not fit."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from compress.components import load_variant, save_variant
from compress.errors import UserError
from compress.nn.affine import Half, dequantize
from compress.nn.cost import measure
from compress.nn.qmodules import quantizable, quantized
from compress.quantize import half
from compress.records import Prediction
from compress.registry import load


def quantize(folder, variant=None, **config):
    return half.apply(tiny.stage_input(folder, variant), half.Config(**config))


def test_float16_is_numpys(tmp_path):
    layers = quantizable(tiny.decoder().module)
    for name, q in quantized(quantize(tmp_path).module).items():
        expected = layers[name].weight.numpy().astype(np.float16).astype(np.float32)
        assert np.array_equal(dequantize(q.quantized_weight).numpy(), expected)


def test_bfloat16_keeps_eight_bits_of_each_weight(tmp_path):
    layers = quantizable(tiny.decoder().module)
    for name, q in quantized(quantize(tmp_path, dtype="bfloat16").module).items():
        weight = layers[name].weight
        off = (dequantize(q.quantized_weight) - weight).abs()
        assert (off <= weight.abs() * 2.0**-8).all() and off.max() > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_two_bytes_per_weight_in_the_forecast_and_in_the_file(tmp_path, dtype):
    result = quantize(tmp_path, dtype=dtype)
    layers = quantizable(tiny.decoder().module).values()
    whole = measure(tiny.decoder().module, [(1, 8, 4, 4)]).weight_bytes
    promised = measure(result.module, [(1, 8, 4, 4)]).weight_bytes
    assert promised == whole - 2 * sum(layer.weight.numel() for layer in layers)
    save_variant(replace(tiny.decoder(), module=result.module), tmp_path / "saved")
    assert 0 < (tmp_path / "saved" / "weights.safetensors").stat().st_size - promised < 10_000  # the header
    stored = load_variant(tmp_path / "saved").module.state_dict()["conv_in.qdata"]
    assert stored.dtype == getattr(torch, dtype)


def test_a_weight_beyond_float16_is_named_and_bfloat16_takes_it(tmp_path):
    variant = tiny.decoder()
    variant.module.conv_in.weight[0, 0, 0, 0] = 1e5
    with pytest.raises(UserError, match=r"float16 ends at 6.55e\+04[\s\S]*conv_in.weight has magnitudes up to 1e\+05"):
        quantize(tmp_path, variant)
    assert quantize(tmp_path, variant, dtype="bfloat16").module(tiny.latents()).isfinite().all()
    assert "conv_in" not in quantized(quantize(tmp_path, variant, exclude=("conv_in",)).module)


def test_the_plan_says_sixteen_bits():
    prediction = half.predict(Prediction(ends=(tiny.decoder().arch,)), half.Config())
    assert (prediction.weight_bits, prediction.granularity) == (16, Half("float16"))
    assert load("export.onnx").refuse(16, prediction.granularity, 32) == []
