"""Scales moved between layers leave the function alone, and only where they may be moved."""

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from compress.nn.balance import Seam, column_peaks, moved, seams

LAW = settings(max_examples=25, deadline=None, derandomize=True)


class Network(nn.Module):
    """One of every case: what may be balanced is in the names."""

    def __init__(self):
        super().__init__()
        self.norm_yes = nn.GroupNorm(2, 4)
        self.reads_norm = nn.Conv2d(4, 6, 1)
        self.reads_relu = nn.Conv2d(6, 5, 3, padding=1)
        self.norm_no = nn.GroupNorm(1, 5)
        self.reads_silu = nn.Conv2d(5, 4, 1, bias=False)
        self.reads_conv = nn.Conv2d(4, 4, 3, padding=1)
        self.layer_norm = nn.LayerNorm(4)
        self.to_a, self.to_b = nn.Linear(4, 3), nn.Linear(4, 3, bias=False)
        self.reads_sum = nn.Linear(3, 3)
        self.shared_norm = nn.LayerNorm(3)
        self.reads_shared = nn.Linear(3, 3)

    def forward(self, x):
        x = functional.relu(self.reads_norm(self.norm_yes(x)))
        x = self.norm_no(self.reads_relu(x))
        x = functional.interpolate(self.reads_silu(functional.silu(x)), scale_factor=2.0)
        x = self.layer_norm(self.reads_conv(x).flatten(2).transpose(1, 2))
        x = self.reads_sum(self.to_a(x) + self.to_b(x))
        x = self.shared_norm(x)
        return x + self.reads_shared(x)


def network(seed=0):
    module, generator = Network().eval().requires_grad_(False), torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.copy_(torch.randn(p.shape, generator=generator))
    return module


def sample(seed=1):
    return (torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(seed)),)


EXPECTED = {
    Seam(producer="norm_yes", readers=("reads_norm",)),
    Seam(producer="reads_norm", readers=("reads_relu",)),
    Seam(producer="reads_silu", readers=("reads_conv",)),
    Seam(producer="layer_norm", readers=("to_a", "to_b")),
}


def test_finds_what_may_be_balanced_and_names_the_rest():
    found, left = seams(network(), sample())
    assert set(found) == EXPECTED
    assert set(left) == {"reads_silu", "reads_sum", "reads_shared"}


@LAW
@given(seed=st.integers(0, 2**31))
def test_moving_any_scales_keeps_the_function(seed):
    module, generator = network().double(), torch.Generator().manual_seed(seed)
    channels = {"norm_yes": 4, "reads_norm": 6, "reads_silu": 4, "layer_norm": 4}
    scales = {s: torch.exp(torch.randn(channels[s.producer], generator=generator).double()) for s in EXPECTED}
    before = {name: t.clone() for name, t in module.state_dict().items()}
    other = moved(module, scales)
    x = sample(2)[0].double()
    torch.testing.assert_close(other(x), module(x), rtol=1e-9, atol=1e-9)
    assert not torch.equal(other.reads_relu.weight, module.reads_relu.weight)
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    assert other.reads_sum.weight is module.reads_sum.weight


def test_a_decoder_without_such_places_has_none():
    found, left = seams(tiny.decoder().module, (tiny.latents(1),))
    assert found == () and "conv_in" in left


def test_a_norm_without_weights_is_left_alone():
    module = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2)).eval().requires_grad_(False)
    found, left = seams(module, (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),))
    assert found == () and set(left) == {"1"}


def test_column_peaks_are_over_all_readers():
    module = network()
    both = torch.cat([module.to_a.weight, module.to_b.weight]).abs()
    seam = Seam(producer="layer_norm", readers=("to_a", "to_b"))
    assert torch.equal(column_peaks(module, seam), both.amax(dim=0))
    seam = Seam(producer="norm_yes", readers=("reads_relu",))
    peaks = [float(module.reads_relu.weight[:, c].abs().max()) for c in range(6)]
    assert column_peaks(module, seam).tolist() == pytest.approx(peaks)
