"""Integer weights and measured activation ranges: what is covered, how close it stays, and the hard cases."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

from compress.errors import UserError
from compress.nn import cost
from compress.nn.affine import PerChannel, dequantize
from compress.nn.qmodules import quantizable, quantized
from compress.quantize import static
from compress.records import Prediction

CONVOLUTIONS = quantizable(tiny.decoder().module)


def quantize(tmp_path, variant=None, inputs=None, **config):
    """Every layer on ranges, biases as they were, unless a test asks for more."""
    config = {"protect": 0, "bias_correction": False} | config
    return static.apply(tiny.stage_input(tmp_path, variant, inputs=inputs), static.Config(**config))


def sqnr_db(reference, module, x):
    expected = reference(x)
    error = module(x) - expected
    return float(10 * torch.log10((expected - expected.mean()).square().sum() / error.square().sum()))


def seen_by(module, name, x):
    """What goes into and comes out of one layer."""
    seen = {}
    handle = module.get_submodule(name).register_forward_hook(lambda part, args, out: seen.update(x=args[0], y=out))
    module(x)
    handle.remove()
    return seen["x"], seen["y"]


@pytest.mark.parametrize("observer", ["min_max", "percentile", "mse"])
def test_every_convolution_gets_weights_and_both_ranges(tmp_path, observer):
    result = quantize(tmp_path, observer=observer)
    layers = quantized(result.module)
    assert set(layers) == set(CONVOLUTIONS)
    for layer in layers.values():
        assert layer.layer.input and layer.layer.output and layer.layer.granularity == PerChannel()
    assert [(a.requested, a.achieved, a.met) for a in result.achieved][1] == (len(layers), len(layers), True)
    assert result.achieved[0].met and result.achieved[0].what == "weights at 8 bits"
    assert {s.name for s in result.skipped}.isdisjoint(layers) and len(result.skipped) == 13


def test_eight_bits_stay_close_on_inputs_that_were_not_measured(tmp_path):
    """Floors some dB below what the tiny decoder gives (36 dB with its own inputs)."""
    result, x = quantize(tmp_path), tiny.latents(seed=77)
    assert sqnr_db(tiny.decoder().module, result.module, x) > 28
    four = quantize(tmp_path, weight_bits=4)
    assert 8 < sqnr_db(tiny.decoder().module, four.module, x) < 28


def test_min_max_ranges_are_what_the_layers_saw(tmp_path):
    result, x = quantize(tmp_path, observer="min_max"), tiny.latents()
    for name in ("conv_in", "levels.1.step.conv", "levels.3.resnets.0.conv2", "conv_out", "linear"):
        for tensor, grid in zip(
            seen_by(tiny.decoder().module, name, x),
            (quantized(result.module)[name].layer.input, quantized(result.module)[name].layer.output),
            strict=True,
        ):
            low, high = min(0.0, float(tensor.min())), max(0.0, float(tensor.max()))
            assert grid.scale == pytest.approx((high - low) / 255, rel=1e-5), name
            assert abs(grid.zero_point + low / grid.scale) <= 0.51, name


@pytest.mark.parametrize("observer", ["min_max", "mse"])
def test_every_output_lies_on_its_grid(tmp_path, observer):
    result = quantize(tmp_path, observer=observer)
    for name, layer in quantized(result.module).items():
        _, y = seen_by(result.module, name, 3 * tiny.latents())  # beyond what was measured
        grid = layer.layer.output
        codes = y / grid.scale + grid.zero_point
        assert codes.min() >= -1e-3 and codes.max() <= 255.001, name
        assert (codes - codes.round()).abs().max() < 1e-2, name


def test_the_batch_hardly_matters(tmp_path):
    """Convolutions round differently for other batches, which may move a range to its neighbour in the search."""
    one, all_ = quantize(tmp_path, batch=1, clip=False), quantize(tmp_path, batch=4, clip=False)
    for name, layer in quantized(one.module).items():
        other = quantized(all_.module)[name]
        assert torch.equal(layer.qdata, other.qdata)
        assert layer.layer.input.scale == pytest.approx(other.layer.input.scale, rel=0.02)


@pytest.mark.parametrize("weight", [0.0, 1e-12])
def test_a_dead_channel_keeps_its_bias(tmp_path, weight):
    """Its scale must leave room for the bias, which an integer kernel holds in 32 bits."""
    variant = tiny.decoder()
    variant.module.conv_in.weight[3] = weight
    variant.module.conv_in.bias[3] = 0.75
    result = quantize(tmp_path, variant)
    layer = quantized(result.module)["conv_in"]
    assert layer.scale.isfinite().all() and (layer.scale > 0).all()
    assert float(layer.effective_bias()[3]) == pytest.approx(0.75, rel=1e-6)
    codes = (layer.effective_bias().double() / (layer.scale.double() * layer.layer.input.scale)).round()
    assert codes.abs().max() < 2**31
    assert dequantize(layer.quantized_weight)[3].abs().max() <= 1e-11
    x = tiny.latents()
    assert sqnr_db(variant.module, result.module, x) > 28


def test_an_activation_that_never_changes(tmp_path):
    """A convolution whose output is one constant keeps a finite grid, and the picture."""
    variant = tiny.decoder()
    variant.module.linear.weight.zero_()
    variant.module.linear.bias.fill_(0.1)
    result = quantize(tmp_path, variant)
    grid = quantized(result.module)["linear"].layer.output
    assert pytest.approx((255 - grid.zero_point) * grid.scale, rel=1e-4) == 0.1
    assert sqnr_db(variant.module, result.module, tiny.latents()) > 28


def test_inputs_that_are_all_zero(tmp_path):
    result = quantize(tmp_path, inputs=torch.zeros(2, 8, 8, 8), clip=False)
    assert result.module(torch.zeros(1, 8, 8, 8)).isfinite().all()


def test_inputs_that_are_no_numbers_are_refused(tmp_path):
    inputs = tiny.latents()
    inputs[1, 2, 3, 4] = float("nan")
    with pytest.raises(ValueError, match="'conv_in' holds NaN or infinity"):
        quantize(tmp_path, inputs=inputs)


def test_what_is_excluded_stays_in_float_and_is_named(tmp_path):
    result = quantize(tmp_path, exclude=("linear", "*.conv1"), observer="min_max", clip=False)
    left = {n for n in CONVOLUTIONS if n == "linear" or n.endswith(".conv1")}
    assert set(quantized(result.module)) == set(CONVOLUTIONS) - left
    assert left == {s.name for s in result.skipped if s.reason == "excluded by the recipe"}
    assert [a.met for a in result.achieved] == [True, True]


@pytest.mark.parametrize("plan", [True, False])
def test_a_pattern_that_matches_nothing(tmp_path, plan):
    config, arch = static.Config(exclude=("nothing*",)), tiny.decoder().arch
    with pytest.raises(UserError, match=r"exclude: 'nothing\*' matches no layer"):
        if plan:
            static.predict(Prediction(ends=(arch,)), config)
        else:
            static.apply(tiny.stage_input(tmp_path), config)


def test_a_quantized_variant_is_not_quantized_again(tmp_path):
    once = quantize(tmp_path)
    with pytest.raises(UserError, match="quantized already"):
        quantize(tmp_path, replace(tiny.decoder(), module=once.module))


def mean_errors(module, other, name, x):
    """Mean error of each output channel of one layer on what the float network gives it."""
    given, expected = seen_by(module, name, x)
    return (other.get_submodule(name)(given) - expected).double().mean(dim=(0, 2, 3))


class Views(nn.Module):
    """A module as people write them: it takes for granted that channels come first in memory."""

    def __init__(self, viewing=True):
        super().__init__()
        self.conv, self.out, self.viewing = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 3, 1), viewing

    def forward(self, x):
        y = self.conv(x)
        flat = y.view(len(y), -1) if self.viewing else y.reshape(len(y), -1)
        return self.out((flat * 2).reshape(y.shape))


@pytest.mark.parametrize("viewing", [True, False])
def test_a_module_that_views_its_tensors_is_measured_all_the_same(tmp_path, viewing):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Views(viewing).eval().requires_grad_(False)
    x, layouts = tiny.latents(), []
    module.conv.register_forward_pre_hook(
        lambda part, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    result = quantize(tmp_path, replace(tiny.decoder(), module=module), x)
    assert layouts[-1] is not viewing
    assert sqnr_db(module, result.module, x) > 28


def test_an_error_that_is_not_about_layout_is_not_passed_over(tmp_path):
    with pytest.raises(RuntimeError, match="channels"):
        quantize(tmp_path, inputs=torch.randn(2, 5, 8, 8), exclude=())


def test_one_pass_of_the_inputs_measures_everything(tmp_path):
    module, seen = tiny.decoder().module, []
    module.register_forward_pre_hook(lambda part, args: seen.append(tuple(args[0].shape)))
    x = tiny.latents(6, 24)
    quantize(tmp_path, replace(tiny.decoder(), module=module), x, batch=2, protect=0.5, bias_correction=True)
    assert [shape for shape in seen if shape[-1] == 24] == [(2, 8, 24, 24)] * 3


@pytest.mark.parametrize(("decoder", "side"), [(True, 8), (False, 16)])
def test_damage_is_measured_on_the_middle_of_two_inputs(tmp_path, decoder, side):
    """On as few latents as make a picture of 64 pixels; on more of what is not enlarged."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = tiny.decoder().module if decoder else Views(viewing=False).eval().requires_grad_(False)
    seen = []
    module.register_forward_pre_hook(lambda part, args: seen.append(tuple(args[0].shape)))
    quantize(tmp_path, replace(tiny.decoder(), module=module), tiny.latents(3, 20), protect=1, batch=3)
    of_two = [shape for shape in seen if shape[0] == 2]
    assert set(of_two) == {(2, 8, side, side)} and len(of_two) >= len(quantizable(module)) + 2


def test_bias_correction_leaves_no_mean_error(tmp_path):
    """Up to the grid of the output: the mean of rounding errors is not quite 0."""
    x, module = tiny.latents(), tiny.decoder().module
    plain, corrected = (quantize(tmp_path, bias_correction=on, weight_bits=4).module for on in (False, True))
    for name in ("levels.0.resnets.0.conv1", "levels.1.step.conv", "conv_out"):
        before, after = (mean_errors(module, other, name, x).abs().max() for other in (plain, corrected))
        assert after < 0.2 * before, name
    assert torch.equal(plain.conv_in.qdata, corrected.conv_in.qdata)
    assert torch.equal(module.conv_in.bias, tiny.decoder().module.conv_in.bias)


def test_protection_spares_the_layer_that_hurts_most_within_its_share(tmp_path):
    variant = tiny.decoder()
    variant.module.linear.weight *= 20  # now the linear path makes the picture, and its steps the error
    variant.module.linear.bias.fill_(0.5)
    result = quantize(tmp_path, variant, protect=0.2)
    spared = {s.name: s.reason for s in result.skipped if "activations left in float" in s.reason}
    assert "linear" in spared
    for name, layer in quantized(result.module).items():
        assert (layer.layer.input is None) == (name in spared) == (layer.layer.output is None)
    macs = {layer.name: layer.macs for layer in cost.measure(variant.module, [(1, 8, 8, 8)]).layers}
    assert sum(macs[name] for name in spared) <= 0.2 * sum(macs.values())
    wanted = len(CONVOLUTIONS) - len(spared)
    assert (result.achieved[1].requested, result.achieved[1].achieved) == (wanted, wanted)
    assert result.achieved[0].met and result.achieved[0].achieved == result.achieved[0].requested
    x = tiny.latents(seed=5)
    none = quantize(tmp_path, variant)
    assert sqnr_db(variant.module, result.module, x) > sqnr_db(variant.module, none.module, x) + 3


def test_linear_layers_keep_float_outputs_and_embeddings_float_activations(tmp_path):
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.project = nn.Embedding(11, 6), nn.Linear(6, 4)

        def forward(self, ids):
            return self.project(self.table(ids))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Text().eval().requires_grad_(False)
    ids = torch.arange(22).reshape(2, 11) % 11
    result = quantize(tmp_path, replace(tiny.decoder(), module=module), ids)
    layers = quantized(result.module)
    assert set(layers) == {"table", "project"}
    assert layers["project"].layer.input and layers["project"].layer.output is None
    assert layers["table"].layer.input is None and layers["table"].layer.bits == 8
    assert all(a.met for a in result.achieved)
    assert sqnr_db(module, result.module, ids) > 30
