"""What NNCF decided is what the variant holds, its corrected biases included."""

import pytest
import tiny
import torch

from compress.nn.qmodules import quantized
from compress.quantize import nncf

pytest.importorskip("nncf", reason="extra nncf is not installed")


def error_db(module):
    x = tiny.latents(seed=5)
    return float(-10 * torch.log10((module(x) - tiny.decoder().module(x)).square().mean()))


def test_every_layer_is_there_and_near_the_float_network(tmp_path):
    result = nncf.apply(tiny.stage_input(tmp_path), nncf.Config(samples=4))
    layers = quantized(result.module)
    assert len(layers) == 18 and all(layer.layer.input for layer in layers.values())
    assert error_db(result.module) > 35


def test_corrected_biases_are_taken_over(tmp_path):
    corrected = quantized(nncf.apply(tiny.stage_input(tmp_path), nncf.Config(samples=4)).module)
    own = dict(tiny.decoder().module.named_modules())
    moved = [n for n, q in corrected.items() if q.bias is not None and not torch.equal(q.bias, own[n].bias)]
    assert moved and all(torch.allclose(corrected[n].bias, own[n].bias, atol=0.2) for n in moved)


def test_excluded_layers_stay_float(tmp_path):
    result = nncf.apply(tiny.stage_input(tmp_path), nncf.Config(samples=2, exclude=("linear",)))
    assert "linear" not in quantized(result.module) and len(quantized(result.module)) == 17
    assert all(item.met for item in result.achieved)


def test_it_is_silent(tmp_path, capfd):
    nncf.apply(tiny.stage_input(tmp_path), nncf.Config(samples=2))
    seen = capfd.readouterr()
    assert "Statistics" not in seen.out + seen.err
