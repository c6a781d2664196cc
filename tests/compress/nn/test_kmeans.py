"""The table of a palette against every possible clustering of small tensors, and its laws on larger ones."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.nn import kmeans
from compress.nn.affine import PerTensor, absmax_scale, dequantize, round_to_scale

LAW = settings(max_examples=60, deadline=None, derandomize=True)


def error(values, table, weights):
    return float(((values - table[kmeans.nearest(values, table)]).double().square() * weights.double()).sum())


def least_of_all_clusterings(values, weights, count):
    """Clusters of numbers on a line are stretches of the sorted numbers: try every way to cut."""
    pairs = sorted(zip(values.tolist(), weights.tolist(), strict=True))
    best = float("inf")
    for cuts in itertools.combinations_with_replacement(range(len(pairs) + 1), count - 1):
        total = 0.0
        for start, stop in itertools.pairwise((0, *cuts, len(pairs))):
            part = pairs[start:stop]
            mass = sum(w for _, w in part)
            if mass > 0:
                mean = sum(v * w for v, w in part) / mass
                total += sum(w * (v - mean) ** 2 for v, w in part)
        best = min(best, total)
    return best


@LAW
@given(seed=st.integers(0, 2**31), size=st.integers(1, 9), count=st.sampled_from([2, 4]), exponent=st.integers(-6, 4))
def test_no_clustering_of_a_small_tensor_is_better(seed, size, count, exponent):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator).mul(3).round() / 3 * 10.0**exponent  # some are equal
    weights = torch.rand(size, generator=generator)
    table = kmeans.best_table(values, count, weights=weights)
    assert table.shape == (count,) and table.dtype == torch.float32 and torch.equal(table, table.sort().values)
    best = least_of_all_clusterings(values, weights, count)
    assert error(values, table, weights) <= best * (1 + 1e-5) + 1e-12 * 100.0**exponent


@settings(LAW, max_examples=20)
@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8), tail=st.sampled_from([1, 3]))
def test_never_worse_than_rounding_to_a_uniform_grid(seed, bits, tail):
    values = torch.randn(3000, generator=torch.Generator().manual_seed(seed)) ** tail
    scale = absmax_scale(values, bits=bits, granularity=PerTensor())
    rounded = dequantize(round_to_scale(values, scale, bits=bits, granularity=PerTensor()))
    uniform = float((rounded - values).double().square().sum())
    table = kmeans.best_table(values, 2**bits)
    assert error(values, table, torch.ones(3000)) <= uniform * (1 + 1e-6)


def test_every_entry_is_the_mean_of_what_is_nearest_to_it():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    table = kmeans.best_table(values, 16)
    codes = kmeans.nearest(values, table)
    means = torch.stack([values[codes == k].double().mean() for k in range(16)]).float()
    torch.testing.assert_close(table, means, rtol=1e-4, atol=1e-5)
    brute = (values[:, None] - table[None, :]).abs().argmin(dim=1)
    assert torch.equal(codes, brute)


def test_a_known_normal_distribution():
    """The optimal quantizer of a standard normal with 4 levels: 0.4528 and 1.5104 (Max 1960, table I)."""
    values = torch.special.ndtri((torch.arange(20001, dtype=torch.float64) + 0.5) / 20001)
    table = kmeans.best_table(values.float(), 4)
    torch.testing.assert_close(table, torch.tensor([-1.5104, -0.4528, 0.4528, 1.5104]), rtol=0, atol=3e-3)


@pytest.mark.parametrize("value", [0.0, -3.5])
def test_a_constant_tensor_is_exact(value):
    table = kmeans.best_table(torch.full((10,), value), 8)
    assert torch.equal(table, torch.full((8,), value))


def test_no_weight_at_all_counts_as_equal_weights():
    values = torch.tensor([0.0, 1.0, 10.0, 11.0])
    assert kmeans.best_table(values, 2, weights=torch.zeros(4)).tolist() == [0.5, 10.5]
