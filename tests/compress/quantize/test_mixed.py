"""Sensitivity against swaps made by hand, budgets against what came, and bits where they are needed."""

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from compress import registry
from compress.components import load_variant, save_variant
from compress.errors import UserError
from compress.nn import cost
from compress.nn.affine import PerChannel, PerGroup, absmax_scale, round_to_scale
from compress.nn.qmodules import QEmbedding, QuantizedLayer, quantizable, quantize_layer, quantized
from compress.nn.surgery import replaced
from compress.quantize import _layer_latency as layer_latency
from compress.quantize import mixed
from compress.records import Prediction, StageRecord

pytest.importorskip("scipy", reason="extra mixed is not installed")

LAYERS = quantizable(tiny.decoder().module)
WEIGHTS = sum(layer.weight.numel() for layer in LAYERS.values())


def quantize(tmp_path, variant=None, inputs=None, **config):
    config = {"lpips": False, "samples": 1, "latent_size": 4, "bias_correction": False, "clip": False} | config
    return mixed.apply(tiny.stage_input(tmp_path, variant, inputs=inputs), mixed.Config(**config))


@functools.cache
def under(budget):
    """The tiny decoder under this many bytes per weight."""
    return quantize(Path(), bytes_per_weight=budget)


def column(result, name):
    (table,) = result.tables
    place = table.columns.index(name)
    return {row[0]: row[place] for row in table.rows}


def weight_bytes(result):
    """Without biases and norms."""
    layers = cost.measure(result.module, [(1, 8, 4, 4)]).layers
    biases = sum(4 * layer.bias.numel() for layer in LAYERS.values())
    return sum(layer.weight_bytes for layer in layers if layer.name in LAYERS) - biases


def error(module):
    x = tiny.latents()[:1, :, 2:6, 2:6]
    return float((module(x) - tiny.decoder().module(x)).square().mean())


def twin(layer, bits):
    scale = absmax_scale(layer.weight, bits=bits, granularity=PerChannel())
    stored = round_to_scale(layer.weight, scale, bits=bits, granularity=PerChannel())
    return quantize_layer(layer, QuantizedLayer(bits=bits, granularity=PerChannel()), stored)


def test_sensitivity_is_what_swaps_made_by_hand_give():
    result, module = under(0.9), tiny.decoder().module
    all_at_four = {name: twin(layer, 4) for name, layer in LAYERS.items()}
    whole = error(replaced(module, all_at_four))
    for name in ("levels.1.resnets.0.conv1", "linear"):
        for bits in (4, 8):
            expected = error(replaced(module, {name: twin(LAYERS[name], bits)}))
            assert column(result, f"mse alone, {bits} bits")[name] == pytest.approx(expected, rel=1e-4)
        others = {n: t for n, t in all_at_four.items() if n != name}
        expected = whole - error(replaced(module, others))
        assert column(result, "mse spared")[name] == pytest.approx(expected, rel=1e-3, abs=1e-3 * whole)


@pytest.mark.parametrize("budget", [0.62, 0.9])
def test_a_byte_budget_holds_and_is_used(budget):
    result = under(budget)
    used = weight_bytes(result)
    assert 0.9 * budget * WEIGHTS < used <= budget * WEIGHTS
    saved = result.achieved[-1]
    assert (saved.what, saved.unit, saved.met) == ("bytes of weights saved", "bytes", True)
    assert saved.achieved == 4 * WEIGHTS - used and saved.requested == pytest.approx((4 - budget) * WEIGHTS)
    got = {n: q.layer.bits for n, q in quantized(result.module).items()}
    assert column(result, "bits") == {n: got.get(n, 32) for n in LAYERS}


def test_more_bytes_never_do_more_damage():
    errors = [error(under(budget).module) for budget in (0.62, 0.9, 2.0)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 30


def test_chosen_bits_beat_the_same_bytes_spread_evenly(tmp_path):
    """Five bits everywhere against four, five and eight where the measurement says."""
    even = registry.load("quantize.rtn")
    plain = even.apply(tiny.stage_input(tmp_path), even.Config(bits=5, clip=False))
    chosen = quantize(tmp_path, bits=(4, 5, 6, 8), bytes_per_weight=weight_bytes(plain) / WEIGHTS)
    assert weight_bytes(chosen) <= weight_bytes(plain)
    assert error(chosen.module) < 0.7 * error(plain.module)


def test_the_layer_that_hurts_most_is_protected_and_the_reason_is_a_row(tmp_path):
    variant = tiny.decoder()
    variant.module.linear.weight *= 20  # now the linear path makes the picture
    variant.module.linear.bias.fill_(0.5)
    result = quantize(tmp_path, variant, bits=(4,), bytes_per_weight=0.9)
    bits = column(result, "bits")
    assert bits["linear"] == 32 and list(bits.values()).count(4) > len(bits) / 2
    reasons = {row.name: row.reason for row in result.skipped}
    assert "in float by choice: alone at 4 bits it makes" in reasons["linear"]
    assert {n for n, b in bits.items() if b == 32} == {n for n in reasons if "by choice" in reasons[n]}
    assert result.module.linear.weight is not None


@pytest.mark.parametrize("wanted", [36.0, 70.0])
def test_a_quality_budget_is_met_as_measured(tmp_path, wanted):
    result = quantize(tmp_path, bits=(3, 6, 8), quality=wanted, keep_float=False)
    met = result.achieved[-1]
    x = tiny.latents()[:1, :, 2:6, 2:6]
    db = 10 * torch.log10(1 / (result.module(x) - tiny.decoder().module(x)).square().mean())
    assert met.achieved == pytest.approx(float(db), abs=1e-3) and met.requested == wanted
    assert met.met == (float(db) >= wanted)
    if wanted == 36:  # between what three and eight bits give
        assert met.met and len(set(column(result, "bits").values())) > 1
    else:
        assert not met.met and set(column(result, "bits").values()) == {8}


def test_the_quality_of_what_is_no_picture_counts_from_its_power(tmp_path):
    variant, inputs = tiny.text(), tiny.text_inputs(1)
    result = quantize(tmp_path, variant, inputs, bits=(4, 8), quality=30)
    expected, found = variant.module(*inputs), result.module(*inputs)
    db = float(10 * torch.log10(expected.square().mean() / (found - expected).square().mean()))
    assert db == pytest.approx(result.achieved[-1].achieved, abs=1e-3) and db >= 30
    assert any(isinstance(layer, QEmbedding) for layer in quantized(result.module).values())


def test_a_latency_budget_puts_layers_on_integers(tmp_path, monkeypatch):
    def milliseconds(module, layers, inputs):
        return {n: layer_latency.Milliseconds(on_floats=2.0, on_integers=1.0) for n in layers}

    monkeypatch.setattr(layer_latency, "milliseconds", milliseconds)
    result = quantize(tmp_path, activation_bits=8, latency=0.75)
    on_integers = [n for n, q in quantized(result.module).items() if q.layer.input]
    assert len(on_integers) == -(-len(LAYERS) // 2)
    assert result.achieved[-1].met and result.achieved[-1].unit == "ms"
    assert all(quantized(result.module)[n].layer.bits == 8 for n in on_integers)
    damages = column(result, "mse alone, 8 bits, 8-bit activations")
    assert max(damages, key=damages.get) not in on_integers
    with pytest.raises(UserError, match="40% of the layers' ms are asked for, and 50% is the least"):
        quantize(tmp_path, bits=(8,), activation_bits=8, latency=0.4, keep_float=False, exclude=("levels.*",))


def test_layers_are_timed_in_the_runtime_shape_by_shape(tmp_path):
    pytest.importorskip("onnxruntime", reason="extra onnx is not installed")
    ticks = iter(range(10**6))
    module = tiny.decoder().module
    found = layer_latency.milliseconds(module, LAYERS, (tiny.latents(1, 4),), clock=lambda: next(ticks))
    assert set(found) == set(LAYERS)
    assert {(t.on_floats, t.on_integers) for t in found.values()} == {(1000.0, 1000.0)}
    shapes = {(layer.weight.shape, layer.stride, layer.padding) for layer in LAYERS.values()}
    assert next(ticks) >= 4 * (layer_latency.ROUNDS + 1) * len(shapes)
    text = quantizable(tiny.text().module)
    assert set(layer_latency.milliseconds(tiny.text().module, text, tiny.text_inputs(1))) < set(text)


def test_the_exported_file_holds_the_same_integers(tmp_path):
    pytest.importorskip("onnx", reason="extra onnx is not installed")
    onnx, result = registry.load("export.onnx"), under(0.9)
    assert {q.layer.bits for q in quantized(result.module).values()} == {4, 8}
    onnx.export(result.module, (tiny.latents(1),), tmp_path / "m.onnx", onnx.Config(), metadata={})
    back = onnx.read_back(tmp_path / "m.onnx")
    assert set(back) == set(quantized(result.module))
    for name, layer in quantized(result.module).items():
        assert torch.equal(back[name].qdata, layer.qdata) and back[name].bits == layer.layer.bits
    x = tiny.latents(2, seed=3)
    run = onnx.load(tmp_path / "m.onnx", threads=1)
    torch.testing.assert_close(run(x), result.module(x), rtol=0, atol=2e-5)


def test_lpips_is_measured_beside_and_can_decide(tmp_path):
    pytest.importorskip("stlpips_pytorch", reason="extra lpips is not installed")
    result = quantize(tmp_path, bytes_per_weight=0.7, lpips=True, minimise="lpips")
    assert all(value >= 0 for value in column(result, "lpips alone, 4 bits").values())
    assert sum(column(result, "lpips alone, 4 bits").values()) > sum(column(result, "lpips alone, 8 bits").values())
    with pytest.raises(UserError, match="LPIPS compares pictures"):
        quantize(tmp_path, tiny.text(), tiny.text_inputs(1), bytes_per_weight=1, lpips=True, minimise="lpips")


def test_the_table_is_kept_with_the_variant(tmp_path):
    result = under(0.9)
    record = StageRecord(method="quantize.mixed", config={}, key="0" * 64, tables=result.tables)
    made = replace(tiny.decoder(), module=result.module, lineage=(record,))
    save_variant(made, tmp_path / "saved")
    assert load_variant(tmp_path / "saved").lineage == (record,)
    assert [row[0] for row in result.tables[0].rows] == list(LAYERS)


def test_a_layer_without_whole_groups_has_fewer_options_and_is_named(tmp_path):
    result = quantize(tmp_path, bits=(4, 8), group_size=16, bytes_per_weight=0.95, keep_float=False)
    odd = {name for name, layer in LAYERS.items() if layer.weight[0].numel() % 16}
    bits, alone = column(result, "bits"), column(result, "mse alone, 4 bits")
    assert {"linear", "conv_out"} <= odd and all(bits[n] == 8 and alone[n] is None for n in odd)
    assert 4 in bits.values() and f"not open to {', '.join(n for n in LAYERS if n in odd)}: 4 bits" in result.notes[1]
    grouped = {q.layer.granularity for q in quantized(result.module).values() if q.layer.bits == 4}
    assert grouped == {PerGroup(16)}


def test_biases_are_corrected(tmp_path):
    plain, corrected = (
        quantize(tmp_path, bits=(4,), keep_float=False, bytes_per_weight=3, bias_correction=on) for on in (False, True)
    )
    assert error(corrected.module) < error(plain.module)
    assert torch.equal(plain.module.conv_in.qdata, corrected.module.conv_in.qdata)


@pytest.mark.parametrize("plan", [True, False])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bytes_per_weight": 0.5}, r"0\.5 bytes per weight are asked for, and bits \[4, 8\] .* need at least 0\.5639"),
        (
            {"bytes_per_weight": 0.9, "bits": (4,), "group_size": 16, "keep_float": False},
            "group_size 16 does not divide the inputs of .*conv_out.*, and they have no other option",
        ),
        ({"bytes_per_weight": 0.9, "exclude": ("nothing*",)}, r"'nothing\*' matches no layer"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(tmp_path, plan, config, message):
    with pytest.raises(UserError, match=message):
        if plan:
            mixed.predict(Prediction(ends=(tiny.decoder().arch,)), mixed.Config(**config))
        else:
            quantize(tmp_path, **config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "exactly one budget"),
        ({"bytes_per_weight": 1, "quality": 40}, "exactly one budget"),
        ({"latency": 0.5}, "latency needs activation_bits"),
        ({"bytes_per_weight": 1, "activation_bits": 8, "bits": (4,)}, "put 8 into bits"),
        ({"quality": 40, "minimise": "lpips"}, "minimise: lpips needs"),
        ({"bytes_per_weight": 1, "bits": ()}, "at least 1 item"),
    ],
)
def test_a_configuration_that_contradicts_itself(config, message):
    with pytest.raises(ValueError, match=message):
        mixed.Config(**config)
