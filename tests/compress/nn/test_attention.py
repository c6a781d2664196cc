"""Attention by loops in float64; what each part of a transformer layer is, against its formula."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compress.nn.attention import (
    Attention,
    AttentionProduct,
    AttentionShape,
    FeedForward,
    LayerShape,
    SpatialTransformer,
    TransformerLayer,
    join_heads,
    split_heads,
)

SHAPE = AttentionShape(width=12, source=10, heads=3, head_dim=5, weighting="softmax", shared_kv=False)


def by_loops(queries, keys, values, weighting, causal):
    """Row by row, key by key, in float64."""
    queries, keys, values = queries.double(), keys.double(), values.double()
    result = torch.zeros_like(queries)
    for n in range(queries.shape[0]):
        for head in range(queries.shape[1]):
            for i in range(queries.shape[2]):
                seen = range(i + 1) if causal else range(keys.shape[2])
                scores = [float(queries[n, head, i] @ keys[n, head, j]) / math.sqrt(queries.shape[3]) for j in seen]
                if weighting == "softmax":
                    total = sum(math.exp(s) for s in scores)
                    weights = [math.exp(s) / total for s in scores]
                else:
                    weights = [max(s, 0.0) / keys.shape[2] for s in scores]
                for weight, j in zip(weights, seen, strict=True):
                    result[n, head, i] += weight * values[n, head, j]
    return result


@pytest.mark.parametrize("weighting, causal", [("softmax", False), ("softmax", True), ("relu", False)])
@given(seed=st.integers(0, 2**31), keys=st.integers(1, 7), heads=st.integers(1, 3), size=st.integers(1, 6))
def test_the_product_by_loops(weighting, causal, seed, keys, heads, size):
    generator = torch.Generator().manual_seed(seed)
    queries = keys if causal else 4
    q, k, v = (torch.randn(2, heads, n, size, generator=generator) for n in (queries, keys, keys))
    expected = by_loops(q, k, v, weighting, causal)
    product = AttentionProduct(weighting, causal=causal)
    torch.testing.assert_close(product(q, k, v).double(), expected, rtol=1e-4, atol=1e-5)


def test_relu_attention_has_no_mask():
    with pytest.raises(ValueError, match="relu has no mask"):
        AttentionProduct("relu", causal=True)


def test_a_head_is_a_run_of_neighbouring_channels():
    x = torch.arange(24.0).reshape(1, 2, 12)
    assert split_heads(x, 3)[0, 1, 0].tolist() == [4, 5, 6, 7]
    assert split_heads(x, 3)[0, 2, 1].tolist() == [20, 21, 22, 23]
    assert torch.equal(join_heads(split_heads(x, 3)), x)


@torch.no_grad()
@pytest.mark.parametrize("weighting", ["softmax", "relu"])
def test_attention_is_the_sum_over_its_heads(weighting):
    torch.manual_seed(0)
    attention = Attention(replace(SHAPE, weighting=weighting)).double()
    x, source = torch.randn(2, 4, 12).double(), torch.randn(2, 6, 10).double()
    expected = attention.to_out[0].bias.expand(2, 4, 12).clone()
    for head in range(3):
        rows = slice(5 * head, 5 * head + 5)
        q, k, v = (
            x @ attention.to_q.weight[rows].T,
            *(source @ m.weight[rows].T for m in (attention.to_k, attention.to_v)),
        )
        part = by_loops(q[:, None], k[:, None], v[:, None], weighting, causal=False)[:, 0]
        expected += part @ attention.to_out[0].weight[:, rows].T
    torch.testing.assert_close(attention(x, source), expected)


@torch.no_grad()
def test_shared_keys_are_also_the_values():
    shared, plain = Attention(replace(SHAPE, shared_kv=True)), Attention(SHAPE)
    assert sum(p.numel() for p in plain.parameters()) - sum(p.numel() for p in shared.parameters()) == 10 * 15
    plain.load_state_dict({**shared.state_dict(), "to_v.weight": shared.to_k.weight})
    x, source = torch.randn(2, 4, 12), torch.randn(2, 6, 10)
    torch.testing.assert_close(shared(x, source), plain(x, source))


@pytest.mark.parametrize("weighting", ["softmax", "relu"])
def test_macs_by_hand(weighting):
    attention = Attention(replace(SHAPE, weighting=weighting)).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        attention(torch.zeros(2, 4, 12, device="meta"), torch.zeros(2, 6, 10, device="meta"))
    projections = 4 * 12 * 15 + 2 * 6 * 10 * 15 + 4 * 15 * 12
    assert counter.get_total_flops() == 2 * 2 * (projections + 2 * 3 * 4 * 6 * 5)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "swish"])
def test_the_feed_forward_by_its_formula(activation):
    layer = FeedForward(6, 9, activation).double()
    x = torch.randn(2, 3, 6).double()
    both = x @ layer.net[0].proj.weight.T + layer.net[0].proj.bias
    value, gate = both[..., :9], both[..., 9:]
    gate = gate * 0.5 * (1 + torch.erf(gate / 2**0.5)) if activation == "gelu" else gate / (1 + torch.exp(-gate))
    torch.testing.assert_close(layer(x), (value * gate) @ layer.net[2].weight.T + layer.net[2].bias)


@torch.no_grad()
def test_a_layer_has_only_the_parts_it_is_given():
    to_self = replace(SHAPE, source=12)
    whole = LayerShape(width=12, to_self=to_self, to_text=SHAPE, feed_forward=8, activation="swish")
    x, text = torch.randn(1, 4, 12), torch.randn(1, 3, 10)
    layer = TransformerLayer(whole)
    after_self = x + layer.attn1(layer.norm1(x), layer.norm1(x))
    after_text = after_self + layer.attn2(layer.norm2(after_self), text)
    torch.testing.assert_close(layer(x, text), after_text + layer.ff(layer.norm3(after_text)))
    only_text = TransformerLayer(replace(whole, to_self=None, feed_forward=0))
    assert {name.split(".")[0] for name in only_text.state_dict()} == {"norm2", "attn2"}
    torch.testing.assert_close(only_text(x, text), x + only_text.attn2(only_text.norm2(x), text))
    only_self = TransformerLayer(replace(whole, to_text=None, feed_forward=0))
    assert torch.equal(only_self(x, text), only_self(x, text + 1))


@torch.no_grad()
def test_linear_and_convolutional_projections_are_the_same_arithmetic():
    shape = LayerShape(width=12, to_self=replace(SHAPE, source=12), to_text=SHAPE, feed_forward=8, activation="gelu")
    linear = SpatialTransformer(12, [shape], norm_groups=3, projection="linear")
    conv = SpatialTransformer(12, [shape], norm_groups=3, projection="conv")
    assert isinstance(conv.proj_in, nn.Conv2d) and isinstance(linear.proj_in, nn.Linear)
    conv.load_state_dict({n: t.reshape(conv.state_dict()[n].shape) for n, t in linear.state_dict().items()})
    x, text = torch.randn(2, 12, 3, 5), torch.randn(2, 4, 10)
    torch.testing.assert_close(conv(x, text), linear(x, text), rtol=1e-4, atol=1e-5)
    linear.proj_out.weight.zero_()
    linear.proj_out.bias.zero_()
    assert torch.equal(linear(x, text), x)
