"""A convolution taken apart computes the same; only what reads a concatenation itself is found."""

import pytest
import tiny
import torch
from torch import nn

from compress.nn.batches import take
from compress.nn.splits import SplitConv2d, concatenations, split, split_conv, splits


class Joined(nn.Module):
    """A skip around a convolution, joined and read by four layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 6, 3, padding=1)
        self.norm = nn.GroupNorm(2, 10)
        self.behind_norm = nn.Conv2d(10, 3, 3, padding=1)
        self.direct = nn.Conv2d(10, 3, 1)
        self.grouped = nn.Conv2d(10, 10, 1, groups=2)
        self.last = nn.Conv2d(10, 3, 3, stride=2, padding=1, bias=False)

    def forward(self, x):
        joined = torch.cat([self.first(x), x], dim=1)
        return self.behind_norm(self.norm(joined)) + self.direct(joined), self.grouped(joined), self.last(joined)


@pytest.fixture
def joined():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Joined().eval().requires_grad_(False)


def test_what_reads_a_concatenation_is_found(joined):
    assert concatenations(joined, (torch.randn(1, 4, 8, 8),)) == {"direct": (6, 4), "last": (6, 4)}
    assert not any(m._forward_pre_hooks for m in joined.modules())


def test_taken_apart_it_computes_the_same(joined):
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    apart = split(joined, concatenations(joined, (x[:1],)))
    assert splits(apart) == {"direct": (6, 4), "last": (6, 4)} and splits(joined) == {}
    assert isinstance(joined.direct, nn.Conv2d) and isinstance(apart.direct, SplitConv2d)
    for one, other in zip(joined(x), apart(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_shortcuts_of_a_unets_way_up_are_found_with_the_stream_first():
    variant, inputs = tiny.unet(), tiny.unet_inputs(1)
    found = concatenations(variant.module, take(inputs, 0, 1))
    shortcuts = {n: m for n, m in variant.module.named_modules() if n.startswith("up_") and n.endswith("conv_shortcut")}
    assert shortcuts.keys() == found.keys() and found
    for name, widths in found.items():
        assert sum(widths) == shortcuts[name].in_channels and len(widths) == 2
    assert found["up_blocks.0.resnets.0.conv_shortcut"][0] == tiny.UNET.down[-1].width  # what the way down ends with
    apart = split(variant.module, found)
    torch.testing.assert_close(apart(*inputs), variant.module(*inputs), rtol=1e-4, atol=1e-5)


def test_a_decoder_has_nothing_to_take_apart():
    assert concatenations(tiny.decoder().module, (tiny.latents(1),)) == {}


@pytest.mark.parametrize(
    ("conv", "widths"), [(nn.Conv2d(4, 4, 1, groups=2), (2, 2)), (nn.Conv2d(4, 4, 1), (2, 3)), (nn.Conv2d(4, 4, 1), ())]
)
def test_what_cannot_be_taken_apart(conv, widths):
    with pytest.raises(ValueError, match="cannot be taken apart"):
        split_conv(conv, widths)


def test_a_name_that_is_no_convolution(joined):
    with pytest.raises(ValueError, match="no convolutions: norm, nothing"):
        split(joined, {"norm": (6, 4), "nothing": (6, 4)})
