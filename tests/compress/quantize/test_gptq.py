"""GPTQ against its definition in float64 and against all roundings of small layers; convolutions as linear layers."""

import itertools

import pytest
import tiny
import torch
from torch import nn

from calibration.hessian import hessian
from compress.errors import UserError
from compress.nn.affine import PerChannel, PerGroup
from compress.nn.batches import outputs
from compress.nn.qmodules import quantizable, quantized
from compress.quantize import gptq, rtn
from compress.quantize.gptq import Rounding, damped, output_error, round_columns, round_layer
from compress.records import Prediction

DAMPING = 0.01


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moments(columns, rows=50, seed=0):
    """Of correlated inputs: neighbouring columns share most of their values."""
    x = randn(rows, columns, seed=seed).cumsum(dim=1)
    return x.T @ x


def by_definition(weight, scale, hessian, qmax):
    """Optimal brain quantization in column order: the inverse is made anew from what is left, after each column."""
    h = damped(hessian, DAMPING)
    work, integers = weight.double().clone(), torch.zeros_like(weight)
    for j in range(len(h)):
        inverse = torch.linalg.inv(h[j:, j:])
        integers[:, j] = (work[:, j] / scale[:, j]).round().clamp(-qmax, qmax)
        error = work[:, j] - integers[:, j] * scale[:, j].double()
        work[:, j:] -= torch.outer(error / inverse[0, 0], inverse[0])
    return integers


@pytest.mark.parametrize("columns", [1, 5, 130, 300])
@pytest.mark.parametrize("qmax", [1, 7])
def test_it_is_what_the_definition_says(columns, qmax):
    weight, hessian = randn(3, columns), moments(columns, rows=2 * columns + 3)
    scale = torch.full_like(weight, 2.5 / (qmax + 0.5))
    found = round_columns(weight, scale, hessian, Rounding(qmax=qmax, damping=DAMPING, order=False))
    assert torch.equal(found, by_definition(weight, scale, hessian, qmax))


def test_the_order_of_columns_is_that_of_their_inputs():
    weight, hessian, scale = randn(4, 9), moments(9), torch.full((4, 9), 0.3)
    order = damped(hessian, DAMPING).diagonal().argsort(descending=True)
    expected = torch.empty_like(weight)
    expected[:, order] = by_definition(weight[:, order], scale, hessian[order][:, order], 7)
    assert torch.equal(round_columns(weight, scale, hessian, Rounding(qmax=7, damping=DAMPING)), expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("columns", [2, 3])
def test_between_round_to_nearest_and_the_best_of_all_roundings(seed, columns):
    weight, hessian, qmax = randn(1, columns, seed=seed), moments(columns, seed=seed), 3
    scale = torch.full_like(weight, 0.4)
    every = torch.tensor(list(itertools.product(range(-qmax, qmax + 1), repeat=columns))).float()
    best = output_error(every * 0.4 - weight, hessian).min()
    nearest = output_error((weight / 0.4).round().clamp(-qmax, qmax) * 0.4 - weight, hessian)
    for sweeps in (0, 10):
        rounding = Rounding(qmax=qmax, damping=1e-6, sweeps=sweeps)
        found = output_error(round_layer(weight, scale, hessian[None], rounding) * 0.4 - weight, hessian)
        assert best * (1 - 1e-9) <= found <= nearest * (1 + 1e-9)


def test_independent_inputs_are_rounded_to_nearest():
    weight, scale = randn(4, 6), torch.full((4, 6), 0.3)
    for sweeps in (0, 3):
        found = round_columns(weight, scale, torch.diag(torch.arange(1.0, 7.0)), Rounding(qmax=7, sweeps=sweeps))
        assert torch.equal(found, (weight / 0.3).round().clamp(-7, 7))


def test_sweeps_end_where_no_single_change_helps():
    x = randn(60, 40) @ randn(40, 40, seed=1)
    weight, hessian, scale = randn(5, 40), x.T @ x, torch.full((5, 40), 0.3)
    before = round_columns(weight, scale, hessian, Rounding(qmax=7))
    after = round_columns(weight, scale, hessian, Rounding(qmax=7, sweeps=100))
    h = damped(hessian, 0.01)
    least = output_error(after * 0.3 - weight, h)
    assert (least <= output_error(before * 0.3 - weight, h)).all()
    assert least.sum() < output_error(before * 0.3 - weight, h).sum()
    for j, change in itertools.product(range(40), (-1, 1)):
        other = after.clone()
        other[:, j] = (other[:, j] + change).clamp(-7, 7)
        assert (output_error(other * 0.3 - weight, h) >= least * (1 - 1e-9)).all()


@pytest.mark.parametrize("conv", [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, groups=2)], ids=str)
def test_a_convolution_is_a_linear_layer_on_its_patches(conv):
    x = randn(3, conv.in_channels, 8, 8)
    weight = conv.weight.detach()
    scale, rounding = torch.full_like(weight, 0.05), Rounding(qmax=7, sweeps=2)
    found = round_layer(weight, scale, hessian(conv, x).matrix, rounding)
    unfolded = nn.functional.unfold(x, 3, padding=conv.padding, stride=conv.stride)
    rows, outs = conv.weight[0].numel(), conv.out_channels // conv.groups
    for g in range(conv.groups):
        linear = nn.Linear(rows, outs, bias=False)
        linear.weight.data = weight[g * outs : (g + 1) * outs].flatten(1)
        patches = unfolded[:, g * rows : (g + 1) * rows].transpose(1, 2)
        expected = round_layer(
            linear.weight.detach(), scale[:outs].flatten(1), hessian(linear, patches).matrix, rounding
        )
        assert torch.equal(found[g * outs : (g + 1) * outs].flatten(1), expected)


@pytest.mark.parametrize("inputs", ["zero", "one dead", "constant", "few"])
def test_dead_and_constant_inputs_and_weights_of_zero_stay_finite(inputs):
    x = randn(3 if inputs == "few" else 30, 6)
    x = {"zero": x * 0, "constant": x * 0 + 2}.get(inputs, x)
    if inputs == "one dead":
        x[:, 2] = 0
    weight = randn(4, 6)
    weight[1] = 0
    scale = (weight.abs().amax(dim=1, keepdim=True) / 7).clamp_min(2.0**-60).expand(4, 6)
    found = round_layer(weight, scale, (x.T @ x)[None], Rounding(qmax=7, sweeps=3))
    assert found.isfinite().all() and found.abs().max() <= 7 and not found[1].any()
    if inputs == "one dead":
        assert torch.equal(found[:, 2], (weight / scale).round()[:, 2])


def test_the_decoder_is_closer_to_its_float_self_than_rounded_to_nearest(tmp_path):
    float_picture = outputs(tiny.decoder().module, (tiny.latents(seed=7),))
    errors = {}
    for sequential in (True, False):
        result = gptq.apply(tiny.stage_input(tmp_path), gptq.Config(bits=3, group_size=8, sequential=sequential))
        errors[sequential] = float((outputs(result.module, (tiny.latents(seed=7),)) - float_picture).square().mean())
    nearest = rtn.apply(tiny.stage_input(tmp_path), rtn.Config(bits=3, granularity="per_group", group_size=8)).module
    picture = outputs(nearest, (tiny.latents(seed=7),))
    assert max(errors.values()) < float((picture - float_picture).square().mean())  # random weights: little to gain


def test_layers_with_eight_bits_layers_in_float_and_the_account(tmp_path):
    config = gptq.Config(bits=4, group_size=9, eight_bits=("conv_*",), exclude=("linear",), latent_size=4)
    result = gptq.apply(tiny.stage_input(tmp_path), config)
    layers = quantized(result.module)
    assert set(layers) == set(quantizable(tiny.decoder().module)) - {"linear"}
    for name, layer in layers.items():
        fine = name in ("conv_in", "conv_out")
        assert (layer.layer.bits, layer.layer.granularity) == ((8, PerChannel()) if fine else (4, PerGroup(9)))
    assert [row.what for row in result.achieved] == ["weights at 4 bits", "weights at 8 bits"]
    assert sum(row.achieved for row in result.achieved) == sum(q.qdata.numel() for q in layers.values())
    assert all(row.met for row in result.achieved)
    assert {row.name for row in result.skipped} >= {"linear"}


@pytest.mark.parametrize("plan", [True, False])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"group_size": 16}, r"group_size 16 does not divide the 8 inputs of 'linear'; near it: \[2, 4, 8\]"),
        ({"eight_bits": ("conv_inn",)}, r"eight_bits: 'conv_inn' matches no layer; layers are conv_in, "),
        ({"exclude": ("conv_inn",)}, r"exclude: 'conv_inn' matches no layer"),
    ],
)
def test_what_cannot_be_done_is_said_when_planned(tmp_path, plan, keys, message):
    config = gptq.Config(**keys)
    with pytest.raises(UserError, match=message):
        if plan:
            gptq.predict(Prediction(ends=(tiny.decoder().arch,)), config)
        else:
            gptq.apply(tiny.stage_input(tmp_path), config)
