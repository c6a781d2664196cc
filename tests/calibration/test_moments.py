"""Patches against unfold, the fit against numpy's least squares on explicit rows, the ridge's laws."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from calibration import moments


def seeded(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gathered(x, y):
    return moments.update(moments.start(x.shape[1], y.shape[1]), x, y)


@given(
    kernel=st.sampled_from([(1, 1), (3, 3), (3, 2), (2, 5)]),
    stride=st.sampled_from([(1, 1), (2, 2), (1, 3)]),
    padding=st.sampled_from([(0, 0), (1, 1), (2, 0)]),
    dilation=st.sampled_from([(1, 1), (2, 1)]),
    size=st.tuples(st.integers(6, 9), st.integers(6, 9)),
    most=st.integers(1, 100),
)
@settings(max_examples=60)
def test_a_convolution_is_its_matrix_on_the_patches(kernel, stride, padding, dilation, size, most):
    layer = nn.Conv2d(3, 5, kernel, stride=stride, padding=padding, dilation=dilation).double()
    x = seeded(2, 3, *size)
    with torch.no_grad():
        output = layer(x)
    at = moments.positions(layer, output, most, torch.Generator().manual_seed(0))
    rows = moments.input_rows(layer, x, at)
    assert len(rows) == 2 * min(most, output[0, 0].numel()) and at.tolist() == sorted(set(at.tolist()))
    unfolded = functional.unfold(x, kernel, dilation, padding, stride)[:, :, at].transpose(1, 2).reshape(len(rows), -1)
    torch.testing.assert_close(rows, unfolded)
    by_matrix = rows @ moments.matrix(layer).T + layer.bias.detach()
    torch.testing.assert_close(by_matrix, moments.output_rows(layer, output, at))


@pytest.mark.parametrize("shape", [(4, 6), (2, 7, 6)])
def test_a_linear_layer_is_its_matrix_on_its_rows(shape):
    layer = nn.Linear(6, 5).double()
    x = seeded(*shape)
    output = layer(x).detach()
    at = moments.positions(layer, output, 3, torch.Generator().manual_seed(0))
    got = moments.input_rows(layer, x, at) @ moments.matrix(layer).T + layer.bias.detach()
    torch.testing.assert_close(got, moments.output_rows(layer, output, at))


def test_what_has_no_patches_is_refused():
    x, at = seeded(1, 4, 5, 5), torch.arange(3)
    for layer in (
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ):
        with pytest.raises(ValueError, match="padding or groups"):
            moments.input_rows(layer.double(), x, at)


@pytest.mark.parametrize("free_bias", [True, False])
def test_the_fit_is_the_least_squares_of_explicit_rows(free_bias):
    """numpy.linalg.lstsq on im2col rows, with a column of ones where the bias is free, in float64."""
    layer = nn.Conv2d(4, 3, 3, padding=1).double()
    x, wanted = seeded(3, 4, 6, 6), seeded(3, 3, 6, 6, seed=1)
    at = torch.arange(36)
    rows, targets = moments.input_rows(layer, x, at), moments.output_rows(layer, wanted, at)
    bias = layer.bias.detach()
    weight, found = moments.fit(gathered(rows, targets), moments.matrix(layer), bias, ridge=0.0, free_bias=free_bias)
    design = functional.unfold(x, 3, 1, 1, 1).transpose(1, 2).reshape(-1, 36).numpy()
    if free_bias:
        design = np.hstack([design, np.ones((len(design), 1))])
    expected = np.linalg.lstsq(design, (targets if free_bias else targets - bias).numpy(), rcond=None)[0]
    np.testing.assert_allclose(weight.numpy(), expected[:36].T, atol=1e-9)
    np.testing.assert_allclose(found.numpy(), expected[36] if free_bias else bias.numpy(), atol=1e-9)


@given(rows=st.integers(1, 40), d=st.integers(1, 6), o=st.integers(1, 4), seed=st.integers(0, 999), bias=st.booleans())
@settings(max_examples=60)
def test_a_fit_never_errs_more_on_its_own_rows_and_less_ridge_errs_less(rows, d, o, seed, bias):
    x, y = seeded(rows, d, seed=seed), seeded(rows, o, seed=seed + 1)
    here, start, offset = gathered(x, y), seeded(o, d, seed=seed + 2), seeded(o, seed=seed + 3)

    def error(weight, at):
        by_moments = moments.squared_error(here, weight, at)
        assert by_moments == pytest.approx(float((x @ weight.T + at - y).square().sum(1).mean()), abs=1e-8)
        return by_moments

    errors = [error(start, offset)]
    errors += [error(*moments.fit(here, start, offset, ridge=r, free_bias=bias)) for r in reversed(moments.RIDGES)]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(errors))


@given(cut=st.integers(0, 20), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_moments_do_not_depend_on_how_the_rows_came(cut, seed):
    x, y = seeded(20, 3, seed=seed), seeded(20, 2, seed=seed + 1)
    parts = moments.merged(gathered(x[:cut], y[:cut]), gathered(x[cut:], y[cut:]))
    whole = gathered(x, y)
    assert parts.count == whole.count == 20
    for name in ("x", "y", "xx", "yx", "yy"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_noise_is_not_learnt():
    """Few rows, targets that are the layer's own outputs plus noise: held out, the layer at hand or a strong ridge wins."""
    truth, x, new = seeded(4, 30), seeded(32, 30, seed=1), seeded(500, 30, seed=2)
    noisy = gathered(x, x @ truth.T + 3 * seeded(32, 4, seed=3))
    held_out = gathered(seeded(32, 30, seed=4), seeded(32, 30, seed=4) @ truth.T + 3 * seeded(32, 4, seed=5))
    zero = torch.zeros(4, dtype=torch.float64)
    weight, _ = moments.solve(noisy, held_out, truth, zero, free_bias=False)
    plain, _ = moments.fit(moments.merged(noisy, held_out), truth, zero, ridge=0.0, free_bias=False)
    assert (new @ (weight - truth).T).square().mean() < 0.2 * (new @ (plain - truth).T).square().mean()


def test_a_dead_input_keeps_its_weight_and_nothing_is_nan():
    x, y = seeded(50, 3), seeded(50, 2, seed=1)
    x[:, 1] = 0.0
    start = seeded(2, 3, seed=2)
    weight, bias = moments.solve(gathered(x[:30], y[:30]), gathered(x[30:], y[30:]), start, y[0] * 0, free_bias=True)
    torch.testing.assert_close(weight[:, 1], start[:, 1])
    assert weight.isfinite().all() and bias.isfinite().all()
    nothing = gathered(x * 0, y)
    kept, mean = moments.solve(nothing, nothing, start, y[0] * 0, free_bias=True)
    torch.testing.assert_close(kept, start)
    torch.testing.assert_close(mean, y.mean(0))
