"""Moments of channels against the whole tensor at once, and what streaming may not change."""

import pytest
import torch
from torch import nn

from calibration import channels as moments
from calibration.collect import channels
from calibration.errors import DataError


def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, 5, 4, generator=generator) * 10 for n in (1, 4, 2)]


@pytest.mark.parametrize("axis", [1, -1])
def test_streamed_equals_all_at_once_in_double_precision(axis):
    parts = [moments.start(t, axis) for t in tensors()]
    found = moments.merge(moments.merge(parts[0], parts[1]), parts[2])
    rows = torch.cat([t.movedim(axis, 0).flatten(1) for t in tensors()], dim=1).double()
    assert found.count == rows.shape[1]
    torch.testing.assert_close(found.mean, rows.mean(dim=1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.energy, rows.square().mean(dim=1), rtol=1e-6, atol=0)
    assert torch.equal(found.minimum.double(), rows.amin(dim=1))
    assert torch.equal(found.peak.double(), rows.abs().amax(dim=1))


def test_channels_are_axis_1_of_a_convolution_and_the_last_of_a_linear_layer():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2), nn.Linear(6, 7))
    x = torch.randn(5, 3, 2, 3, generator=torch.Generator().manual_seed(1))
    stats = channels(module, [(x[:2],), (x[2:],)], ["0", "2"])
    assert torch.equal(stats["0"].input.peak, x.abs().amax(dim=(0, 2, 3)))
    assert stats["0"].output.peak.shape == (4,)
    assert stats["2"].input.peak.shape == (6,) and stats["2"].output.peak.shape == (7,)
    assert stats["2"].input.count == 5 * 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_named(value):
    x = torch.zeros(2, 3)
    x[1, 2] = value
    with pytest.raises(DataError, match="the input of 'fc' holds NaN or infinity"):
        moments.start(x, 1, name="the input of 'fc'")
    with pytest.raises(DataError, match="is empty"):
        moments.start(torch.zeros(0, 3), 1)
