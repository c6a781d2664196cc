"""Histograms against numpy, their laws, and clipping ranges against brute force."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.errors import DataError
from calibration.observers import BINS, Histogram, _flat, expected_mse, merge, min_max, mse, percentile, start, update


def drawn(seed: int, count: int, scale_bits: int = 0, shift: float = 0.0) -> torch.Tensor:
    values = np.random.default_rng(seed).standard_normal(count) * 2.0**scale_bits + shift
    return torch.from_numpy(values.astype(np.float32))


def same(a: Histogram, b: Histogram) -> bool:
    return torch.equal(a.counts, b.counts) and all(
        getattr(a, field) == getattr(b, field) for field in ("low", "high", "minimum", "maximum", "count")
    )


def quantization_error(values: np.ndarray, low: float, high: float, bits: int) -> float:
    """By definition, one value after the other, in float64."""
    levels = 2**bits - 1
    scale = (high - low) / levels
    zero_point = round(-low / scale)
    total = 0.0
    for value in values.astype(np.float64):
        q = min(max(round(value / scale) + zero_point, 0), levels)
        total += ((q - zero_point) * scale - value) ** 2
    return total / len(values)


PARTS = st.lists(
    st.tuples(
        st.integers(0, 2**16), st.integers(1, 300), st.integers(-30, 30), st.sampled_from([0.0, 1.0, -7.5, 100.0])
    ),
    min_size=1,
    max_size=5,
)


@given(PARTS, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_and_grouping_do_not_change_a_bit(parts, random):
    tensors = [drawn(*part) for part in parts]
    whole = start(torch.cat(tensors))
    shuffled = random.sample(tensors, len(tensors))
    streamed = start(shuffled[0])
    for tensor in shuffled[1:]:
        streamed = update(streamed, tensor)
    folded = start(tensors[-1])
    for tensor in reversed(tensors[:-1]):
        folded = merge(start(tensor), folded)
    assert same(whole, streamed)
    assert same(whole, folded)


@given(PARTS)
@settings(max_examples=40, deadline=None)
def test_counts_are_numpys_and_extremes_exact(parts):
    values = torch.cat([drawn(*part) for part in parts])
    histogram = start(values)
    counts, _ = np.histogram(values.double().numpy(), BINS, (histogram.low, histogram.high))
    edges = np.linspace(histogram.low, histogram.high, BINS + 1)
    by_search = np.bincount(np.searchsorted(edges, values.double().numpy(), side="right") - 1, minlength=BINS)
    np.testing.assert_array_equal(histogram.counts.numpy(), by_search)
    assert np.abs(counts - by_search).sum() <= 2  # numpy rounds its own edges
    assert histogram.minimum == float(values.min())
    assert histogram.maximum == float(values.max())
    assert histogram.count == values.numel()
    assert histogram.low <= histogram.minimum <= histogram.maximum < histogram.high


def test_at_least_half_the_window_is_used():
    histogram = start(torch.linspace(0, 5, 100_000))
    assert histogram.low == 0
    assert histogram.width == 2.0**-8  # 5 / 2^-8 = 1280 of 2048 bins; at 2^-9 it would not fit


def test_memory_does_not_grow_and_many_updates_equal_one():
    batches = [drawn(seed, 64) for seed in range(50)]
    histogram = start(batches[0])
    for batch in batches[1:]:
        histogram = update(histogram, batch)
    assert histogram.counts.shape == (BINS,)
    assert same(histogram, start(torch.cat(batches)))


def test_large_tensors_are_counted_in_pieces(monkeypatch):
    values = drawn(0, 1000)
    whole = start(values)
    monkeypatch.setattr("calibration.observers.CHUNK", 7)
    assert same(start(values), whole)


def test_channels_last_are_counted_without_a_copy_to_the_same():
    values = drawn(1, 2 * 3 * 40 * 50).reshape(2, 3, 40, 50)
    turned = values.contiguous(memory_format=torch.channels_last)
    assert same(start(turned), start(values))
    flat = _flat(turned)
    assert flat.data_ptr() == turned.data_ptr() and flat.numel() == values.numel()


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("shape", [(1, 8, 32, 32), (2, 24, 16, 16), (1, 7, 49, 11), (1, 13, 16, 32)])
def test_of_large_tensors_some_values_are_counted_from_every_channel_alike(shape, last):
    channels = torch.arange(float(shape[1]))[:, None, None].expand(shape)
    values = channels.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    found = start(values, most=values.numel() // 7)
    assert 0.5 * values.numel() // 7 < found.count <= values.numel() // 7
    seen = [int(found.counts[int((c - found.low) / found.width)]) for c in range(shape[1])]
    assert max(seen) - min(seen) <= max(2, 0.1 * max(seen))


def test_thinning_misses_no_extreme_and_no_nan():
    values = drawn(2, 10_000)
    values[4321], values[1234] = 99.0, -77.0
    found = start(values, most=100)
    assert (found.minimum, found.maximum, found.count) == (-77.0, 99.0, 100)
    values[777] = float("nan")
    with pytest.raises(DataError, match="NaN"):
        start(values, most=100)
    assert same(start(drawn(2, 100), most=100), start(drawn(2, 100)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_name_the_tensor(bad):
    values = drawn(0, 50)
    values[17] = bad
    with pytest.raises(DataError, match=r"output of 'conv_in' holds NaN or infinity"):
        start(values, name="the output of 'conv_in'")
    with pytest.raises(DataError, match="NaN"):
        update(start(drawn(1, 5)), values)


def test_an_empty_tensor_is_refused():
    with pytest.raises(DataError, match="empty"):
        start(torch.zeros(0, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_other_dtypes_count_the_same_values(dtype):
    values = torch.tensor([-3, 0, 1, 1, 2]).to(dtype)
    assert same(start(values), start(values.float()))


@pytest.mark.parametrize("value", [0.0, -0.0, 5.0, -5.0, 1e-45, -1e-40, 1e-8, 3e38, -3e38])
@pytest.mark.parametrize("choose", [min_max, mse, lambda h: percentile(h, 99.9)], ids=["min_max", "mse", "percentile"])
def test_constant_tensors_get_a_usable_range(value, choose):
    low, high = choose(start(torch.full((4, 3), value)))
    assert np.isfinite([low, high]).all()
    assert low <= 0 <= high
    assert low <= np.float32(value) <= high
    assert np.float32((high - low) / 255) > 0


def test_min_max_includes_zero():
    assert min_max(start(torch.tensor([2.0, 5.0]))) == (0.0, 5.0)
    assert min_max(start(torch.tensor([-2.0, -5.0]))) == (-5.0, 0.0)


@given(st.integers(0, 1000), st.sampled_from([90.0, 99.0, 99.9, 100.0]), st.sampled_from([0.0, 0.5, -40.0]))
@settings(max_examples=40, deadline=None)
def test_percentile_is_within_a_bin_of_the_sorted_one(seed, p, shift):
    values = drawn(seed, 2000, 0, shift)
    histogram = start(values)
    found = percentile(histogram, p)
    ordered = np.sort(values.double().numpy())
    beyond = int((100 - Fraction(str(p))) / 100 * len(ordered))
    assert abs(found.high - max(0.0, ordered[len(ordered) - 1 - beyond])) <= histogram.width
    assert abs(found.low - min(0.0, ordered[beyond])) <= histogram.width
    assert (values > found.high).sum() <= beyond
    assert (values < found.low).sum() <= beyond


@pytest.mark.parametrize("p", [50.0, 101.0, float("nan")])
def test_percentile_refuses_what_is_not_one(p):
    with pytest.raises(ValueError, match="at most 100"):
        percentile(start(drawn(0, 9)), p)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_expected_error_is_the_measured_one(bits):
    values = drawn(3, 20_000)
    ranges = [(-4.5, 4.5), (-1.0, 2.0), (-0.3, 3.9)]
    expected = expected_mse(start(values), *(torch.tensor(ends).double() for ends in zip(*ranges, strict=True)), bits)
    measured = [quantization_error(values.numpy(), low, high, bits) for low, high in ranges]
    np.testing.assert_allclose(expected.numpy(), measured, rtol=0.02)


SHAPES = {
    "gauss": lambda x: x,
    "positive": lambda x: x.abs() + 0.5,
    "negative": lambda x: -x.exp(),
    "silu": torch.nn.functional.silu,
    "outlier": lambda x: torch.cat([x, torch.tensor([25.0])]),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [2, 4])
def test_mse_is_as_good_as_brute_force(shape, bits):
    values = SHAPES[shape](drawn(5, 400))
    full = min_max(start(values))
    lows = {full.low * k / 20 for k in range(21)}
    highs = {full.high * k / 20 for k in range(21)}
    numbers = values.double().numpy()
    pairs = np.array([(low, high) for low, high in itertools.product(lows, highs) if low < high])
    levels = 2**bits - 1
    scale = ((pairs[:, 1] - pairs[:, 0]) / levels)[:, None]
    zero_point = np.round(-pairs[:, :1] / scale)
    q = np.clip(np.round(numbers / scale) + zero_point, 0, levels)
    best = ((q - zero_point) * scale - numbers).__pow__(2).mean(axis=1).min()
    found = mse(start(values), bits)
    assert quantization_error(values.numpy(), *found, bits) <= 1.03 * best


@given(st.integers(0, 1000), st.integers(2, 1000), st.sampled_from([4, 8]), st.sampled_from([0.0, 3.0, -3.0]))
@settings(max_examples=30, deadline=None)
def test_mse_is_expected_no_worse_than_min_max_and_inside_it(seed, count, bits, shift):
    histogram = start(drawn(seed, count, 0, shift))
    full, found = min_max(histogram), mse(histogram, bits)
    low, high = (torch.tensor(ends).double() for ends in zip(full, found, strict=True))
    of_full, of_found = expected_mse(histogram, low, high, bits).tolist()
    assert of_found <= of_full * (1 + 1e-9)
    assert full.low <= found.low <= 0 <= found.high <= full.high
    assert found.low < found.high


def test_mse_clips_a_lone_outlier_at_few_bits():
    values = torch.cat([drawn(0, 100_000), torch.tensor([50.0])])
    assert mse(start(values), 4).high < 6
    assert min_max(start(values)).high == 50


@pytest.mark.parametrize("bits", [1, 17])
def test_mse_refuses_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="from 2 to 16"):
        mse(start(drawn(0, 9)), bits)
