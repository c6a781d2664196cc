"""The blocks of a diffusion UNet against their formulas, in float64 and by loops."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from compress.nn.unet_blocks import (
    DoublingConv,
    HalvingConv,
    PassThrough,
    ResnetShape,
    SeparableConv,
    TimedResnetBlock,
    TimeEmbedding,
)


def swish(x):
    return x / (1 + torch.exp(-x))


def norm(x, layer):
    """GroupNorm without its affine part, then with it."""
    grouped = x.reshape(x.shape[0], layer.num_groups, -1)
    mean = grouped.mean(dim=2, keepdim=True)
    variance = (grouped - mean).square().mean(dim=2, keepdim=True)
    flat = ((grouped - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    return flat * layer.weight.reshape(1, -1, 1, 1) + layer.bias.reshape(1, -1, 1, 1)


@torch.no_grad()
def test_the_time_embedding_by_its_formula():
    embedding = TimeEmbedding(6, 10).double()
    waves = []
    for step in (0.0, 999.0):
        angles = [step / 10_000 ** (k / 3) for k in range(3)]
        waves.append([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    first = torch.tensor(waves).double() @ embedding.linear_1.weight.T + embedding.linear_1.bias
    expected = swish(first) @ embedding.linear_2.weight.T + embedding.linear_2.bias
    torch.testing.assert_close(embedding(torch.tensor([0.0, 999.0])), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("time", ["add", "scale_shift"])
@pytest.mark.parametrize("out_channels", [8, 12])
def test_a_resnet_block_by_its_formula(time, out_channels):
    shape = ResnetShape(
        in_channels=8, hidden=4, out_channels=out_channels, time_width=6, time=time, norm_groups=4, multiplier=None
    )
    block = TimedResnetBlock(shape).double()
    for layer in (block.norm1, block.norm2):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    x, step = torch.randn(2, 8, 5, 3).double(), torch.randn(2, 6).double()
    hidden = functional.conv2d(swish(norm(x, block.norm1)), block.conv1.weight, block.conv1.bias, padding=1)
    moved = (swish(step) @ block.time_emb_proj.weight.T + block.time_emb_proj.bias)[:, :, None, None]
    if time == "add":
        hidden = norm(hidden + moved, block.norm2)
    else:
        hidden = norm(hidden, block.norm2) * (1 + moved[:, :4]) + moved[:, 4:]
    branch = functional.conv2d(swish(hidden), block.conv2.weight, block.conv2.bias, padding=1)
    assert ("conv_shortcut.weight" in block.state_dict()) == (out_channels != 8)
    torch.testing.assert_close(block(x, step), block.conv_shortcut(x) + branch)


@torch.no_grad()
def test_a_separable_convolution_by_loops():
    layer = SeparableConv(3, 5, 2).double()
    x = torch.randn(1, 3, 4, 4).double()
    padded = functional.pad(x, (1, 1, 1, 1))
    maps = torch.zeros(6, 4, 4).double()
    for channel in range(3):
        for copy in range(2):
            kernel, bias = layer.depthwise.weight[2 * channel + copy, 0], layer.depthwise.bias[2 * channel + copy]
            for i in range(4):
                for j in range(4):
                    maps[2 * channel + copy, i, j] = (kernel * padded[0, channel, i : i + 3, j : j + 3]).sum() + bias
    expected = torch.einsum("om,mhw->ohw", layer.pointwise.weight[:, :, 0, 0], maps)
    torch.testing.assert_close(layer(x)[0], expected + layer.pointwise.bias[:, None, None])
    assert sum(p.numel() for p in layer.parameters()) == (9 + 1) * 6 + (6 + 1) * 5


@torch.no_grad()
def test_resampling_by_the_pixel():
    x = torch.randn(1, 4, 6, 4)
    halve, double = HalvingConv(4), DoublingConv(4)
    assert halve(x).shape == (1, 4, 3, 2) and double(x).shape == (1, 4, 12, 8)
    by_hand = (halve.conv.weight * x[0, :, 1:4, 1:4]).sum(dim=(1, 2, 3)) + halve.conv.bias
    torch.testing.assert_close(halve(x)[0, :, 1, 1], by_hand)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(double(x), double.conv(repeated))


def test_what_stands_for_a_block_that_is_gone():
    x = torch.randn(1, 2, 3, 3)
    assert PassThrough()(x, torch.zeros(1)) is x and not list(PassThrough().parameters())
