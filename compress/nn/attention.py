"""Attention and transformer layers of a text-conditioned diffusion UNet, and of its text encoder.

Source: Vaswani et al. 2017 (arXiv:1706.03762); GLU feed-forward of Shazeer 2020 (arXiv:2002.05202); the arrangement is
diffusers' `Transformer2DModel` and its tensor names; shared keys and values, swish and ReLU attention as in
MobileDiffusion (Zhao et al. 2023, arXiv:2311.16567), section 3.2.
Differs: the product of queries, keys and values is a module of its own, so that cost and quantization can see it; the
number of heads and the inner widths are free numbers, so that each can be cut alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional

from compress.nn.patches import Patch, token_patch

Weighting = Literal["softmax", "relu"]
Size = int | torch.SymInt | torch.Tensor  # of an axis; TorchScript's traces give tensors


class AttentionProduct(nn.Module):
    """`weights(q k^T / sqrt(d)) v` for every head; queries [n, heads, i, d], keys and values [n, heads, j, d].

    Softmax weights sum to 1. ReLU weights are `relu(x) / j`, so that their size does not grow with the number of keys
    (Wortsman et al. 2023, arXiv:2309.08586); they need no exponential and no sum over a row.
    Cost: `2 * n * heads * i * j * d` MACs, masked or not.
    """

    def __init__(self, weighting: Weighting, *, causal: bool = False) -> None:
        super().__init__()
        if causal and weighting != "softmax":
            raise ValueError(f"causal attention is softmax attention; {weighting} has no mask")
        self.weighting = weighting
        self.causal = causal

    def forward(
        self,
        queries: Float[torch.Tensor, "n heads i d"],
        keys: Float[torch.Tensor, "n heads j d"],
        values: Float[torch.Tensor, "n heads j d"],
    ) -> Float[torch.Tensor, "n heads i d"]:
        if self.weighting == "softmax":
            return functional.scaled_dot_product_attention(queries, keys, values, is_causal=self.causal)
        scores = queries @ keys.transpose(-2, -1) * queries.shape[-1] ** -0.5
        return (functional.relu(scores) / keys.shape[-2]) @ values


def split_heads(x: Float[torch.Tensor, "n i c"], heads: int) -> Float[torch.Tensor, "n heads i d"]:
    """Channels to heads; neighbouring channels stay in one head."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def join_heads(x: Float[torch.Tensor, "n heads i d"]) -> Float[torch.Tensor, "n i c"]:
    """The inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """How one attention is built: queries of `width` channels, keys and values of `source` channels."""

    width: int
    source: int
    heads: int
    head_dim: int
    weighting: Weighting
    shared_kv: bool  # values are the keys: one projection fewer


class Attention(nn.Module):
    """Multi-head attention of a stream to a source (itself, where self-attention); [n, i, width] to the same."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        inner = shape.heads * shape.head_dim
        self.heads = shape.heads
        self.to_q = nn.Linear(shape.width, inner, bias=False)
        self.to_k = nn.Linear(shape.source, inner, bias=False)
        self.to_v = None if shape.shared_kv else nn.Linear(shape.source, inner, bias=False)
        self.product = AttentionProduct(shape.weighting)
        self.to_out = nn.ModuleList([nn.Linear(inner, shape.width)])

    def forward(
        self, x: Float[torch.Tensor, "n i c"], source: Float[torch.Tensor, "n j s"]
    ) -> Float[torch.Tensor, "n i c"]:
        queries, keys = split_heads(self.to_q(x), self.heads), split_heads(self.to_k(source), self.heads)
        values = keys if self.to_v is None else split_heads(self.to_v(source), self.heads)
        return self.to_out[0](join_heads(self.product(queries, keys, values)))


class GatedProjection(nn.Module):
    """`a * activation(b)` of one projection to (a, b); [n, i, c] to [n, i, inner]."""

    def __init__(self, width: int, inner: int, activation: Literal["gelu", "swish"]) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)
        self.activation = functional.gelu if activation == "gelu" else functional.silu

    def forward(self, x: Float[torch.Tensor, "n i c"]) -> Float[torch.Tensor, "n i inner"]:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * self.activation(gate)


class FeedForward(nn.Module):
    """Gated projection to `inner` channels and back; the places in `net` are those of diffusers."""

    def __init__(self, width: int, inner: int, activation: Literal["gelu", "swish"]) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [GatedProjection(width, inner, activation), nn.Identity(), nn.Linear(inner, width)]  # 1: dropout, unused
        )

    def forward(self, x: Float[torch.Tensor, "n i c"]) -> Float[torch.Tensor, "n i c"]:
        return self.net[2](self.net[0](x))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """How one transformer layer is built; each part may be absent (None, or 0 for the feed-forward)."""

    width: int
    to_self: AttentionShape | None
    to_text: AttentionShape | None
    feed_forward: int
    activation: Literal["gelu", "swish"]


class TransformerLayer(nn.Module):
    """Self-attention, attention to the text, feed-forward: each normalised before and added after, if it is there."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width) if shape.to_self else None
        self.attn1 = Attention(shape.to_self) if shape.to_self else None
        self.norm2 = nn.LayerNorm(shape.width) if shape.to_text else None
        self.attn2 = Attention(shape.to_text) if shape.to_text else None
        self.norm3 = nn.LayerNorm(shape.width) if shape.feed_forward else None
        self.ff = FeedForward(shape.width, shape.feed_forward, shape.activation) if shape.feed_forward else None

    def forward(
        self, x: Float[torch.Tensor, "n i c"], context: Float[torch.Tensor, "n t s"]
    ) -> Float[torch.Tensor, "n i c"]:
        if self.attn1 is not None and self.norm1 is not None:
            normed = self.norm1(x)
            x = x + self.attn1(normed, normed)
        if self.attn2 is not None and self.norm2 is not None:
            x = x + self.attn2(self.norm2(x), context)
        if self.ff is not None and self.norm3 is not None:
            x = x + self.ff(self.norm3(x))
        return x


class SpatialTransformer(nn.Module):
    """Transformer layers over the pixels of a feature map, between two projections, added to their input.

    The projections are linear layers, or 1x1 convolutions as in SD-1.x: the same arithmetic, other tensor shapes. A
    patch may stand in the place of a layer.
    """

    def __init__(
        self,
        width: int,
        layers: Sequence[LayerShape | Patch],
        *,
        norm_groups: int,
        projection: Literal["linear", "conv"],
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width) if projection == "linear" else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(
            token_patch(layer, width) if isinstance(layer, str) else TransformerLayer(layer) for layer in layers
        )
        self.proj_out = nn.Linear(width, width) if projection == "linear" else nn.Conv2d(width, width, 1)
        self.linear = projection == "linear"

    def forward(
        self, x: Float[torch.Tensor, "n c h w"], context: Float[torch.Tensor, "n t s"]
    ) -> Float[torch.Tensor, "n c h w"]:
        height, width = x.shape[2:]
        hidden = self.norm(x)
        tokens = self.proj_in(_to_tokens(hidden)) if self.linear else _to_tokens(self.proj_in(hidden))
        for layer in self.transformer_blocks:
            tokens = layer(tokens, context)
        if self.linear:
            return x + _to_map(self.proj_out(tokens), height, width)
        return x + self.proj_out(_to_map(tokens, height, width))


def _to_tokens(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2)


def _to_map(tokens: torch.Tensor, height: Size, width: Size) -> torch.Tensor:
    return tokens.transpose(1, 2).unflatten(2, (height, width))
