"""What a diffusion UNet needs of static quantization: halves of a skip's concatenation, and the start token."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

from calibration import collect
from compress import registry
from compress.components import load_variant, save_variant
from compress.errors import UserError
from compress.files import read_json, write_json
from compress.nn.qmodules import quantized
from compress.nn.splits import splits
from compress.quantize import _tokens, static
from compress.records import Prediction

CONFIG = {"protect": 0, "bias_correction": False, "observer": "min_max", "clip": False}


class Skip(nn.Module):
    """A large stream joined to a small skip, read by one convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.shortcut = nn.Conv2d(4, 4, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        return self.shortcut(torch.cat([100 * self.first(x), x], dim=1))


class Text(nn.Module):
    """Keys of a text [n, t, c]."""

    def __init__(self):
        super().__init__()
        self.to_k, self.other = nn.Linear(6, 5), nn.Linear(5, 5)

    def forward(self, text):
        return self.other(self.to_k(text))


def seeded(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval().requires_grad_(False)


def static_of(tmp_path, variant, inputs, **config):
    return static.apply(tiny.stage_input(tmp_path, variant, inputs=inputs), static.Config(**CONFIG | config))


def error(module, other, *inputs):
    return float((module(*inputs) - other(*inputs)).square().mean())


def test_both_halves_of_a_concatenation_get_ranges_of_their_own(tmp_path, monkeypatch):
    module, x = seeded(Skip), torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    module.shortcut.weight[:, :4] /= 100  # both halves count alike in the output
    result = static_of(tmp_path, replace(tiny.decoder(), module=module), x)
    layers = quantized(result.module)
    assert set(layers) == {"first", "shortcut.parts.0", "shortcut.parts.1"}
    stream, skip = (layers[f"shortcut.parts.{i}"].layer.input for i in (0, 1))
    span = float(x.max() - x.min())
    assert skip.scale == pytest.approx(span / 255, rel=1e-4) and stream.scale > 20 * skip.scale
    assert result.notes == ("shortcut reads a concatenation: taken apart, with ranges for its 4 + 4 channels",)
    monkeypatch.setattr(static, "concatenations", lambda module, inputs: {})
    whole = static_of(tmp_path, replace(tiny.decoder(), module=module), x)
    assert set(quantized(whole.module)) == {"first", "shortcut"} and whole.notes == ()
    assert error(module, result.module, x) < error(module, whole.module, x) / 20


def test_a_quantized_unet_rebuilds_with_its_convolutions_taken_apart(tmp_path):
    variant, inputs = tiny.unet(), tiny.unet_inputs(2)
    result = static_of(tmp_path, variant, inputs)
    assert all(item.met for item in result.achieved) and len(splits(result.module)) == 5
    made = replace(variant, module=result.module)
    save_variant(made, tmp_path / "saved")
    back = load_variant(tmp_path / "saved")
    assert splits(back.module) == splits(result.module)
    assert torch.equal(back.module(*inputs), result.module(*inputs))
    path = tmp_path / "saved" / "quantization.json"
    data = read_json(path)
    write_json(path, data | {"splits": {"conv_in": [1, 1]}})
    with pytest.raises(UserError, match=r"quantization\.json: splits: .* cannot be taken apart"):
        load_variant(tmp_path / "saved")


def test_the_plan_and_the_result_agree_on_what_is_excluded(tmp_path):
    variant, inputs = tiny.unet(), tiny.unet_inputs(1)
    config = static.Config(exclude=("up_blocks.*.conv_shortcut",), **CONFIG)
    static.predict(Prediction(ends=(variant.arch,)), config)
    result = static.apply(tiny.stage_input(tmp_path, variant, inputs=inputs), config)
    assert splits(result.module) == {} and result.notes == ()
    left = {row.name for row in result.skipped if row.reason == "excluded by the recipe"}
    assert len(left) == 5


def test_an_exported_file_computes_the_parts_on_integers(tmp_path):
    pytest.importorskip("onnx", reason="extra onnx is not installed")
    exporter = registry.load("export.onnx")
    module, x = seeded(Skip), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    result = static_of(tmp_path, replace(tiny.decoder(), module=module), x)
    exporter.export(result.module, (x[:1],), tmp_path / "skip.onnx", exporter.Config(), metadata={})
    assert set(exporter.read_back(tmp_path / "skip.onnx")) == set(quantized(result.module))
    made = exporter.load(tmp_path / "skip.onnx", threads=1)(x)
    step = max(q.layer.output.scale for q in quantized(result.module).values())
    assert (
        float((made - result.module(x)).abs().max()) <= 1.01 * step
    )  # one step of a grid, where a sum lands on a half


def test_a_text_whose_first_token_is_an_outlier_keeps_float_activations(tmp_path):
    module, text = seeded(Text), torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(1))
    plain = static_of(tmp_path, replace(tiny.decoder(), module=module), text)
    assert quantized(plain.module)["to_k"].layer.input is not None
    text[:, 0] *= 40
    result = static_of(tmp_path, replace(tiny.decoder(), module=module), text)
    layer = quantized(result.module)["to_k"].layer
    assert layer.input is None and layer.bits == 8
    (row,) = [row for row in result.skipped if row.name == "to_k"]
    assert "its first token is" in row.reason and all(item.met for item in result.achieved)


def test_an_outlier_must_be_one_in_every_input():
    module, text = seeded(Text), torch.ones(3, 7, 6)
    text[:2, 0] = 50.0

    def outliers(*batches):
        found = _tokens.FirstTokens()
        collect.watch(module, [(batch,) for batch in batches], ["to_k"], found.see)
        return found.outliers()

    assert outliers(text[:2]) == {"to_k": 50.0}
    assert outliers(text[:2], text[2:]) == {}
    assert outliers(text[:, :1]) == {}
    assert outliers(text[:, 0]) == {}
