"""The layers of a variant: their bytes are its bytes, and how each is stored is said in words."""

import pytest
import torch
from torch import nn

from compress.layer_rows import layer_rows, removed, stored
from compress.nn import cost
from compress.nn.affine import Half, Palette, PerChannel, PerGroup, PerTensor, absmax_scale, round_to_scale
from compress.nn.qmodules import QuantizedLayer, quantize_layer
from compress.nn.surgery import replaced


@pytest.mark.parametrize(
    ("bits", "granularity", "words"),
    [
        (8, PerTensor(), "8 bits, per tensor"),
        (8, PerChannel(), "8 bits, per channel"),
        (4, PerGroup(72), "4 bits, groups of 72"),
        (6, Palette(), "6 bits, one palette"),
        (3, Palette(16), "3 bits, a palette per 16 channels"),
        (16, Half("bfloat16"), "bfloat16"),
    ],
)
def test_every_way_to_store_has_words(bits, granularity, words):
    assert stored(bits, granularity) == words


def test_rows_add_up_to_the_whole_and_name_what_is_gone():
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 1))
    x = torch.zeros(1, 3, 8, 8)
    before = cost.measure(whole, (x,))
    layer = whole[0]
    grid = {"bits": 8, "granularity": PerChannel()}
    weight = round_to_scale(layer.weight.detach(), absmax_scale(layer.weight.detach(), **grid), **grid)
    variant = replaced(whole, {"0": quantize_layer(layer, QuantizedLayer(**grid), weight), "1": nn.Identity()})
    after = cost.measure(variant, (x,))
    rows = layer_rows(variant, after, before)
    assert sum(row.bytes for row in rows) == after.weight_bytes
    assert {row.name: (row.weights, row.reference_bytes) for row in rows} == {
        "0": ("8 bits, per channel", 4 * (3 * 8 * 9 + 8)),
        "2": ("float32", 4 * (8 * 3 + 3)),
    }
    assert removed(after, before) == ("1",)
