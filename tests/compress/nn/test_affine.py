"""Rounding and its inverse, against loops over single numbers and against the laws of an affine grid."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.nn.affine import (
    MIN_SCALE,
    PerChannel,
    PerGroup,
    PerTensor,
    absmax_scale,
    activation_range,
    clipped_scale,
    dequantize,
    fake_quantize,
    round_to_scale,
    signed_qmax,
)

LAW = settings(max_examples=40, deadline=None, derandomize=True)
GRANULARITIES = [PerTensor(), PerChannel(), PerGroup(4), PerGroup(5)]
bits_of = st.sampled_from([2, 3, 4, 8])
granularities = st.sampled_from(GRANULARITIES)


@st.composite
def weights(draw):
    shape = draw(st.sampled_from([(1, 1), (3, 7), (4, 2, 3, 3), (5, 1, 1, 1), (2, 3, 1, 2)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-6, 4))


def rounded(weight, bits, granularity, scale_of=absmax_scale):
    scale = scale_of(weight, bits=bits, granularity=granularity)
    return round_to_scale(weight, scale, bits=bits, granularity=granularity)


def scale_per_weight(quantized):
    """The scale of each weight, found through its position and not through broadcasting."""
    rows = quantized.qdata.reshape(quantized.qdata.shape[0], -1)
    found = torch.empty(rows.shape, dtype=torch.float64)
    for o in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            match quantized.granularity:
                case PerTensor():
                    found[o, i] = quantized.scale[0]
                case PerChannel():
                    found[o, i] = quantized.scale[o]
                case PerGroup(size=size):
                    found[o, i] = quantized.scale[o, i // size]
    return found.reshape(quantized.qdata.shape)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_rounding_equals_a_loop_in_double_precision(bits, granularity):
    weight = torch.randn(3, 2, 3, 2, generator=torch.Generator().manual_seed(bits))
    shared = {}  # what shares a scale -> its largest magnitude
    keys = {}
    for o, row in enumerate(weight.reshape(3, -1).tolist()):
        for i, value in enumerate(row):
            size = getattr(granularity, "size", None)
            key = 0 if granularity == PerTensor() else o if size is None else (o, i // size)
            keys[o, i] = key
            shared[key] = max(shared.get(key, 0.0), abs(value))
    qmax = 2 ** (bits - 1) - 1
    got = rounded(weight, bits, granularity)
    for o, row in enumerate(weight.reshape(3, -1).tolist()):
        for i, value in enumerate(row):
            scale = shared[keys[o, i]] / qmax
            integer = round(value / scale)
            assert got.qdata.reshape(3, -1)[o, i] == integer
            assert math.isclose(float(dequantize(got).reshape(3, -1)[o, i]), integer * scale, rel_tol=1e-6)


@LAW
@given(weight=weights(), bits=bits_of, granularity=granularities)
def test_no_weight_moves_by_more_than_half_a_step(weight, bits, granularity):
    quantized = rounded(weight, bits, granularity)
    error = (dequantize(quantized).double() - weight.double()).abs()
    assert (error <= scale_per_weight(quantized) * 0.500001 + weight.abs().double() * 1e-6).all()


@LAW
@given(weight=weights(), bits=bits_of, granularity=granularities)
def test_rounding_what_is_rounded_changes_nothing(weight, bits, granularity):
    once = rounded(weight, bits, granularity)
    twice = round_to_scale(dequantize(once), once.scale, bits=bits, granularity=granularity)
    assert torch.equal(once.qdata, twice.qdata)


@LAW
@given(weight=weights(), bits=bits_of, granularity=granularities)
def test_the_grid_is_symmetric_and_leaves_the_lowest_code_unused(weight, bits, granularity):
    plus, minus = rounded(weight, bits, granularity), rounded(-weight, bits, granularity)
    assert torch.equal(plus.qdata, -minus.qdata)
    assert plus.qdata.abs().max() == signed_qmax(bits)


@LAW
@given(weight=weights(), bits=bits_of)
def test_finer_granularity_never_has_a_larger_scale(weight, bits):
    tensor = absmax_scale(weight, bits=bits, granularity=PerTensor())
    channel = absmax_scale(weight, bits=bits, granularity=PerChannel())
    group = absmax_scale(weight, bits=bits, granularity=PerGroup(4))
    assert (channel <= tensor).all() and channel.max() == tensor
    assert (group <= channel[:, None]).all() and torch.equal(group.amax(dim=1), channel)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scale_of", [absmax_scale, clipped_scale])
def test_finer_granularity_has_less_error(bits, scale_of):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(16, 8, 3, 3, generator=generator) * torch.logspace(-2, 0, 16).reshape(-1, 1, 1, 1)
    weight = weight * torch.logspace(-0.5, 0.5, 8).reshape(1, -1, 1, 1)  # groups of one input channel differ too
    errors = [
        float((dequantize(rounded(weight, bits, g, scale_of)) - weight).square().mean())
        for g in (PerGroup(9), PerChannel(), PerTensor())
    ]
    assert errors == sorted(errors) and errors[0] < 0.7 * errors[1] < 0.7 * errors[2]


@LAW
@given(weight=weights(), bits=bits_of, granularity=granularities)
def test_the_clipping_search_never_does_worse_than_no_clipping(weight, bits, granularity):
    plain = (dequantize(rounded(weight, bits, granularity)) - weight).double().square().sum()
    clipped = (dequantize(rounded(weight, bits, granularity, clipped_scale)) - weight).double().square().sum()
    assert clipped <= plain * (1 + 1e-5)


def test_the_clipping_search_finds_the_known_optimum_of_two_bits():
    # Codes -1, 0, 1. One weight of 1 and many of 0.5: errors at scale s are (1 - s)^2 + n (0.5 - s)^2, least near 0.5.
    weight = torch.tensor([[1.0, *[0.5] * 30]])
    scale = float(clipped_scale(weight, bits=2, granularity=PerChannel()))
    best = (1 + 30 * 0.5) / 31
    assert abs(scale - best) <= 0.6 / 40


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("scale_of", [absmax_scale, clipped_scale])
def test_zero_weights_keep_a_finite_scale_and_stay_exactly_zero(granularity, scale_of):
    weight = torch.zeros(3, 5)
    weight[0] = 1.0 if granularity != PerTensor() else 0.0
    quantized = rounded(weight, 8, granularity, scale_of)
    assert quantized.scale.isfinite().all() and (quantized.scale >= MIN_SCALE).all()
    assert (dequantize(quantized)[1:] == 0).all()


ends = st.floats(-1e6, 1e6, width=32)


@LAW
@given(a=ends, b=ends, bits=st.sampled_from([4, 8]), seed=st.integers(0, 1000))
def test_an_activation_grid_holds_zero_and_its_range(a, b, bits, seed):
    low, high = min(a, b), max(a, b)
    grid = activation_range(low, high, bits=bits)
    assert 0 <= grid.zero_point < 2**bits and grid.scale > 0 and math.isfinite(grid.scale)
    assert float(fake_quantize(torch.zeros(1), grid)) == 0.0
    x = low + (high - low) * torch.rand(50, generator=torch.Generator().manual_seed(seed))
    error = (fake_quantize(x, grid).double() - x.double()).abs()
    # half a step of rounding, half a step more at one end where the zero point was rounded
    assert (error <= grid.scale * 1.001 + 1e-6 * x.abs()).all()
    assert torch.equal(fake_quantize(fake_quantize(x, grid), grid), fake_quantize(x, grid))


def test_fake_quantize_equals_a_loop_and_clips():
    grid = activation_range(-1.0, 3.0)
    values = [-5.0, -1.0, -0.37, 0.0, 0.013, 1.7, 3.0, 9.0]
    for value, got in zip(values, fake_quantize(torch.tensor(values), grid).tolist(), strict=True):
        integer = min(max(round(value / grid.scale) + grid.zero_point, 0), 255)
        assert got == pytest.approx((integer - grid.zero_point) * grid.scale, abs=1e-6)


@pytest.mark.parametrize("constant", [0.0, 1e-30, -1e-30, 5.0, -5.0])
def test_a_constant_activation_keeps_its_value_on_a_finite_grid(constant):
    grid = activation_range(constant, constant)
    got = float(fake_quantize(torch.tensor([constant]), grid))
    assert got == pytest.approx(constant, rel=1e-6, abs=1e-18)


@pytest.mark.parametrize(
    "low, high", [(math.nan, 1.0), (0.0, math.nan), (0.0, math.inf), (-math.inf, 0.0), (1.0, -1.0)]
)
def test_a_range_that_is_none_is_refused(low, high):
    with pytest.raises(ValueError, match="not a finite interval"):
        activation_range(low, high)
