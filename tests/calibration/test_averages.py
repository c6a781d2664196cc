"""Means of what layers read against the layers themselves, and the values that are kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from calibration import averages


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.7


def weighted(layer, reads):
    """The layer's mean outputs, by definition: each weight times what its element reads."""
    weight, mean = layer.weight.detach().double(), reads.mean
    groups = getattr(layer, "groups", 1)
    width = weight.shape[0] // groups
    rows = [weight[o].reshape(-1) @ mean.chunk(groups)[o // width].reshape(-1) for o in range(weight.shape[0])]
    return torch.stack(rows)


CONVOLUTIONS = st.fixed_dictionaries(
    {
        "kernel_size": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "groups": st.sampled_from([1, 2, 4]),
    }
)


@given(CONVOLUTIONS, st.integers(7, 10), st.integers(7, 10), st.booleans())
@settings(max_examples=60, deadline=None)
def test_mean_outputs_are_those_of_the_convolution(options, height, width, last):
    layer = nn.Conv2d(4, 8, bias=False, **options)
    x = drawn(3, 4, height, width)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    reads = averages.merge(averages.start(layer, x[:1]), averages.start(layer, x[1:]))
    made = layer(x).detach().double()
    assert reads.count == made[:, 0].numel()
    torch.testing.assert_close(weighted(layer, reads), made.mean(dim=(0, 2, 3)), rtol=1e-5, atol=1e-5)
    ones = averages.start(layer, torch.ones_like(x))
    torch.testing.assert_close(ones.mean, reads.share_inside.expand_as(ones.mean))


@pytest.mark.parametrize(
    ("padding", "kernel", "dilation"), [("valid", 3, 2), ("same", 3, 2), ("same", 4, 1), ("same", 2, 3)]
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's note of what it costs
def test_padding_by_name(padding, kernel, dilation):
    layer = nn.Conv2d(2, 3, kernel, padding=padding, dilation=dilation, bias=False)
    x = drawn(2, 2, 9, 8)
    torch.testing.assert_close(
        weighted(layer, averages.start(layer, x)), layer(x).detach().double().mean(dim=(0, 2, 3)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(4, 5), (4, 6, 5), (2, 3, 4, 5)])
def test_mean_outputs_are_those_of_the_linear_layer(shape):
    layer, x = nn.Linear(5, 7, bias=False), drawn(*shape)
    made = layer(x).detach().double().flatten(0, -2).mean(dim=0)
    torch.testing.assert_close(weighted(layer, averages.start(layer, x)), made, rtol=1e-5, atol=1e-5)


def test_a_few_rows_are_the_values_of_all_channels_at_one_place():
    layer, x = nn.Conv2d(3, 3, 1), torch.arange(2 * 3 * 40 * 30.0).reshape(2, 3, 40, 30)
    rows = averages.some_rows(layer, x, 50)
    assert rows.shape == (100, 3)
    assert torch.equal(rows[:, 1], rows[:, 0] + 1200) and torch.equal(rows[:, 2], rows[:, 0] + 2400)
    assert torch.equal(rows[50:, 0], rows[:50, 0] + 3600)
    by_token = averages.some_rows(nn.Linear(3, 3), x.flatten(2).movedim(1, 2), 50)
    assert torch.equal(by_token, rows)
    assert not torch.equal(averages.some_rows(layer, x, 50, turn=1), rows)


def test_small_maps_and_single_vectors_are_kept_whole():
    x = drawn(2, 3, 4, 5)
    assert torch.equal(averages.some_rows(nn.Conv2d(3, 3, 1), x, 20), x.movedim(1, 3).reshape(-1, 3))
    assert torch.equal(averages.some_rows(nn.Linear(5, 5), x[0, 0], 9), x[0, 0])


@pytest.mark.parametrize("turn", [0, 1, 5])
@pytest.mark.parametrize("side", [16, 30, 64])
def test_places_are_spread_over_rows_and_columns(side, turn):
    """Of 64 places, each quarter of the rows, and each of the columns, has its share: 16, give or take 6."""
    place = torch.arange(float(side * side)).reshape(1, 1, side, side)
    at = averages.some_rows(nn.Conv2d(1, 1, 1), place, 64, turn=turn).flatten().long()
    for coordinate in (at // side, at % side):
        quarters = torch.bincount(coordinate * 4 // side, minlength=4)
        assert len(at) == 64 and quarters.min() >= 10 and quarters.max() <= 22
