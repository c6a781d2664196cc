"""The mean error that is taken out of a bias, against the twin itself run on the same values."""

import pytest
import torch
from torch import nn

from calibration.collect import watch
from compress.nn.affine import PerChannel, absmax_scale, activation_range, fake_quantize, round_to_scale
from compress.nn.qmodules import QuantizedLayer, quantize_layer
from compress.quantize import _biases


def layer_of(kind, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(8, 8, **options).requires_grad_(False)


def twin_of(layer, bits, low=None, high=None, out=None):
    """Rounded weights; an input grid over [low, high], and an output grid over [-out, out]."""
    spec = QuantizedLayer(
        bits=bits,
        granularity=PerChannel(),
        input=None if low is None else activation_range(low, high, bits=4),
        output=None if out is None else activation_range(-out, out, bits=4),
    )
    scale = absmax_scale(layer.weight, bits=bits, granularity=PerChannel())
    return quantize_layer(layer, spec, round_to_scale(layer.weight, scale, bits=bits, granularity=PerChannel()))


def seen_by(layer, x):
    seen = _biases.Averages(len(x))
    watch(nn.Sequential(layer), [(x[:1],), (x[1:],)], ["0"], seen.see)
    return seen


def measured(layer, twin, x, axis):
    error = (twin(x) - layer(x)).double()
    return error.movedim(axis, 0).flatten(1).mean(dim=1)


def positive(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).abs()


CASES = {
    "pointwise": (nn.Conv2d, {"kernel_size": 1}, (4, 8, 9, 9), 1),
    "padded": (nn.Conv2d, {"kernel_size": 3, "padding": 1}, (4, 8, 9, 9), 1),
    "grouped": (nn.Conv2d, {"kernel_size": 3, "groups": 4, "stride": 2, "padding": 1}, (4, 8, 9, 9), 1),
    "linear": (nn.Linear, {}, (4, 11, 8), -1),
    "without a bias": (nn.Conv2d, {"kernel_size": 1, "bias": False}, (4, 8, 9, 9), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_of_rounded_weights_it_is_exact(case):
    kind, options, shape, axis = CASES[case]
    layer, x = layer_of(kind, **options), positive(*shape)
    twin = twin_of(layer, bits=3)
    expected = measured(layer, twin, x, axis)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(seen_by(layer, x).mean_error("0", layer, twin), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["pointwise", "linear"])
def test_of_a_grid_that_clips_it_is_exact_where_every_value_is_kept(case):
    kind, options, shape, axis = CASES[case]
    layer, x = layer_of(kind, **options), positive(*shape)
    twin = twin_of(layer, bits=3, low=0.0, high=1.0)
    expected = measured(layer, twin, x, axis)
    torch.testing.assert_close(seen_by(layer, x).mean_error("0", layer, twin), expected, rtol=1e-4, atol=1e-5)


def test_at_the_edges_what_a_grid_does_is_taken_from_the_whole_channel():
    kind, options, shape, axis = CASES["padded"]
    layer, x = layer_of(kind, **options), positive(16, *shape[1:])
    twin = twin_of(layer, bits=3, low=0.0, high=1.0)
    expected = measured(layer, twin, x, axis)
    found = seen_by(layer, x).mean_error("0", layer, twin)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_an_output_grid_that_clips_is_seen():
    layer, x = layer_of(nn.Conv2d, kernel_size=3, padding=1), positive(4, 8, 9, 9)
    twin = twin_of(layer, bits=8, out=0.3)
    expected = measured(layer, twin, x, 1)
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(seen_by(layer, x).mean_error("0", layer, twin), expected, rtol=0.05, atol=2e-3)


def test_few_kept_values_say_nearly_the_same(monkeypatch):
    layer, x = layer_of(nn.Conv2d, kernel_size=1), positive(8, 8, 32, 32)
    twin = twin_of(layer, bits=8, low=0.0, high=1.0)
    monkeypatch.setattr(_biases, "KEPT", 8 * 8 * 64)
    seen = seen_by(layer, x)
    assert sum(len(rows) for rows in seen.rows["0", "input"]) == 8 * 64
    expected = measured(layer, twin, x, 1)
    moved = fake_quantize(x, twin.layer.input) - x
    deviation = float(moved.std()) / (8 * 64) ** 0.5 * layer.weight.flatten(1).norm(dim=1)  # of a mean of so many
    assert ((seen.mean_error("0", layer, twin) - expected).abs() < 3 * deviation).all()
    assert (expected.abs() > 3 * deviation).sum() >= 4


def test_a_corrected_twin_has_no_mean_error_and_the_layer_keeps_its_bias():
    layer, x = layer_of(nn.Conv2d, kernel_size=3, padding=1), positive(4, 8, 9, 9)
    twin, before = twin_of(layer, bits=3), layer.bias.clone()
    plain = measured(layer, twin, x, 1).abs().max()
    _biases.correct_biases({"0": layer}, {"0": twin}, seen_by(layer, x))
    assert measured(layer, twin, x, 1).abs().max() < 1e-4 * plain
    assert torch.equal(layer.bias, before)
