"""The text encoder of a text-to-image model: token ids in, one hidden state per token out.

Source: the text transformer of CLIP ViT-L/14 (Radford et al. 2021, arXiv:2103.00020), 12 layers of 768 channels and 77
tokens, in MobileDiffusion (Zhao et al. 2023, arXiv:2311.16567) and Stable Diffusion 1.x alike; layers and tensor names
are those of transformers' `CLIPTextModel`, without the prefix `text_model.` that its files carry.
Differs: gives the final layer norm's hidden states only, not the pooled state of the end token, which diffusion has no
use for; the inner width and the heads are numbers of each layer.

What may be cut: the inner width of every feed-forward, whole attention heads, whole layers. Not declared in this
version: the residual stream, whose width the diffusion UNet reads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import nn
from torch.nn import functional

from compress.nn.attention import AttentionProduct, join_heads, split_heads
from compress.nn.patches import Patch, token_patch
from compress.nn.structure import Block, ChannelGroup, ChannelSlice, Kind, PatchSite, Removal, expanded

NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLayerConfig:
    """One transformer layer."""

    heads: int
    feed_forward: int  # inner width


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderConfig:
    """Everything needed to rebuild a text encoder."""

    vocabulary: int
    positions: int  # the longest text, in tokens
    width: int
    head_dim: int
    activation: Literal["quick_gelu", "gelu"]
    layers: tuple[TextLayerConfig | Patch, ...]  # a patch stands where a layer was taken out

    def __post_init__(self) -> None:
        sizes = ("vocabulary", "positions", "width", "head_dim")
        problems = [f"{name} must be positive" for name in sizes if getattr(self, name) < 1]
        problems += [
            f"layers.{i}: {layer.heads} heads and {layer.feed_forward} inner channels; at least 1 of each"
            for i, layer in enumerate(self.layers)
            if isinstance(layer, TextLayerConfig) and min(layer.heads, layer.feed_forward) < 1
        ]
        if problems:
            raise ValueError("; ".join(problems))


def quick_gelu(x: Float[torch.Tensor, "..."]) -> Float[torch.Tensor, "..."]:
    """`x * sigmoid(1.702 x)`: the approximation of GELU that CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


def _activation(name: Literal["quick_gelu", "gelu"]) -> Callable[[torch.Tensor], torch.Tensor]:
    return quick_gelu if name == "quick_gelu" else functional.gelu


class Positions(nn.Module):
    """A vector for each position, [positions, width]: sliced, never looked up, so it is no `nn.Embedding`."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(positions, width))


class Embeddings(nn.Module):
    """Token ids [n, t] to [n, t, width]: the token's vector plus the position's."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = Positions(config.positions, config.width)

    def forward(self, ids: Int[torch.Tensor, "n t"]) -> Float[torch.Tensor, "n t c"]:
        # Tokenizers give 32-bit or 64-bit ids; whatever holds whole numbers is welcome.
        return self.token_embedding(ids.long()) + self.position_embedding.weight[: ids.shape[1]]


class SelfAttention(nn.Module):
    """Causal multi-head attention: a token sees itself and those before it; [n, t, width] to the same."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, heads * head_dim)
        self.k_proj = nn.Linear(width, heads * head_dim)
        self.v_proj = nn.Linear(width, heads * head_dim)
        self.product = AttentionProduct("softmax", causal=True)
        self.out_proj = nn.Linear(heads * head_dim, width)

    def forward(self, x: Float[torch.Tensor, "n t c"]) -> Float[torch.Tensor, "n t c"]:
        queries, keys, values = (split_heads(p(x), self.heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(join_heads(self.product(queries, keys, values)))


class Perceptron(nn.Module):
    """Two linear layers with an activation between them; [n, t, width] to the same."""

    def __init__(self, width: int, inner: int, activation: Literal["quick_gelu", "gelu"]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.activation = _activation(activation)

    def forward(self, x: Float[torch.Tensor, "n t c"]) -> Float[torch.Tensor, "n t c"]:
        return self.fc2(self.activation(self.fc1(x)))


class TextLayer(nn.Module):
    """Self-attention, then feed-forward: each normalised before and added after; [n, t, width] to the same."""

    def __init__(self, config: TextEncoderConfig, layer: TextLayerConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.self_attn = SelfAttention(config.width, layer.heads, config.head_dim)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = Perceptron(config.width, layer.feed_forward, config.activation)

    def forward(self, x: Float[torch.Tensor, "n t c"]) -> Float[torch.Tensor, "n t c"]:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Layers(nn.Module):
    """The stack of layers, under the name that transformers gives it."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            token_patch(layer, config.width) if isinstance(layer, str) else TextLayer(config, layer)
            for layer in config.layers
        )

    def forward(self, x: Float[torch.Tensor, "n t c"]) -> Float[torch.Tensor, "n t c"]:
        for layer in self.layers:
            x = layer(x)
        return x


class TextEncoder(nn.Module):
    """Token ids [n, t], at most `positions` of them, to hidden states [n, t, width]."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config)
        self.final_layer_norm = nn.LayerNorm(config.width, eps=NORM_EPS)

    def forward(self, ids: Int[torch.Tensor, "n t"]) -> Float[torch.Tensor, "n t c"]:
        if ids.shape[1] > self.config.positions:
            raise ValueError(
                f"a text of {ids.shape[1]} tokens; this encoder has {self.config.positions} positions: truncate it"
            )
        return self.final_layer_norm(self.encoder(self.embeddings(ids)))


def channel_groups(config: TextEncoderConfig) -> tuple[ChannelGroup, ...]:
    """The heads of every attention and the inside of every feed-forward; the stream is not declared."""
    groups = []
    for i, layer in enumerate(config.layers):
        if isinstance(layer, str):
            continue
        attention, mlp, size = f"encoder.layers.{i}.self_attn", f"encoder.layers.{i}.mlp", config.head_dim
        heads = [
            ChannelSlice(tensor=f"{attention}.{p}.{t}", axis=0, role="writes", span=size)
            for p in ("q_proj", "k_proj", "v_proj")
            for t in ("weight", "bias")
        ]
        heads.append(ChannelSlice(tensor=f"{attention}.out_proj.weight", axis=1, role="reads", span=size))
        inner = [ChannelSlice(tensor=f"{mlp}.fc1.{t}", axis=0, role="writes") for t in ("weight", "bias")]
        inner.append(ChannelSlice(tensor=f"{mlp}.fc2.weight", axis=1, role="reads"))
        groups += [
            _group(f"{attention}.heads", layer.heads, heads, unit=size),
            _group(f"{mlp}.inner", layer.feed_forward, inner, unit=1),
        ]
    return tuple(groups)


def _group(name: str, width: int, slices: Sequence[ChannelSlice], *, unit: int) -> ChannelGroup:
    return ChannelGroup(name=name, kind="inner", width=width, norm_groups=1, slices=tuple(slices), unit=unit)


def with_widths(config: TextEncoderConfig, widths: Mapping[str, int]) -> TextEncoderConfig:
    """The configuration with new widths for some channel groups."""
    layers = [
        layer
        if isinstance(layer, str)
        else TextLayerConfig(
            heads=widths.get(f"encoder.layers.{i}.self_attn.heads", layer.heads),
            feed_forward=widths.get(f"encoder.layers.{i}.mlp.inner", layer.feed_forward),
        )
        for i, layer in enumerate(config.layers)
    ]
    return replace(config, layers=tuple(layers))


def blocks(config: TextEncoderConfig) -> tuple[Block, ...]:
    """Every layer: each only adds to the stream, so each can go."""
    return tuple(
        Block(name=f"encoder.layers.{i}") for i, layer in enumerate(config.layers) if isinstance(layer, TextLayerConfig)
    )


def without_blocks(config: TextEncoderConfig, names: Sequence[str]) -> Removal:
    """The configuration without these layers; those behind a removed one move up."""
    return _removal(config, names, None)


def with_patches(config: TextEncoderConfig, names: Sequence[str], patch: Patch) -> Removal:
    """As `without_blocks`, but a patch stands in each layer's place."""
    return _removal(config, names, patch)


def _removal(config: TextEncoderConfig, names: Sequence[str], patch: Patch | None) -> Removal:
    gone = expanded(names, blocks(config), tuple)
    left: list[TextLayerConfig | Patch] = []
    renamed: dict[str, str] = {}
    sites: list[PatchSite] = []
    for i, layer in enumerate(config.layers):
        old, new = f"encoder.layers.{i}", f"encoder.layers.{len(left)}"
        if old not in gone:
            renamed[f"{old}."] = f"{new}."
            left.append(layer)
        elif patch is not None:
            left.append(patch)
            sites.append(PatchSite(block=old, place=new, patch=patch, width=config.width, tokens=True))
    return Removal(config=replace(config, layers=tuple(left)), renamed=renamed, patches=tuple(sites))


def _ids_shape(config: TextEncoderConfig, _: int) -> tuple[int, ...]:
    return (1, config.positions)


KINDS = {
    "text_encoder": Kind(
        config=TextEncoderConfig,
        build=TextEncoder,
        output="states",
        input_shape=_ids_shape,
        inputs=lambda config, pixels: (torch.zeros(_ids_shape(config, pixels), dtype=torch.int64, device="meta"),),
        channel_groups=channel_groups,
        with_widths=with_widths,
        blocks=blocks,
        without_blocks=without_blocks,
        with_patches=with_patches,
        feed="prompts",
    ),
}
