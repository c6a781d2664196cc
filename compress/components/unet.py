"""The diffusion UNet of a text-to-image model: noisy latents, time step and text states in, predicted noise out.

Source: `mobilediffusion` after Zhao et al. 2023 (arXiv:2311.16567), section 3.2 and the layer table of the appendix;
`stable-diffusion-1.5` after Rombach et al. 2022 (arXiv:2112.10752), as diffusers' `UNet2DConditionModel` builds it,
whose tensor names these are, layer for layer; SDXL's added conditions after Podell et al. 2023 (arXiv:2307.01952).
Differs: the paper gives MobileDiffusion's table and sizes, not its whole recipe. Ours fits all four published sizes
within 0.5%: values are keys in self-attention only, separable convolutions (depth multiplier 2) in both convolutions of
the 16x16 stages, scale-shift time embedding, linear projections around the transformers, full convolutions between
resolutions. MACs there count convolutions, linear layers and both products of attention.

What may be cut: the inner width of every ResNet block and feed-forward, whole attention heads, and the blocks, pairs
and stages of `_unet_blocks`. Not declared in this version: the residual streams, because each is joined to the others
by the skips, and the time embedding's width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional

from compress.components._unet_blocks import blocks, units, with_patches, without_blocks
from compress.components._unet_config import (
    BlockConfig,
    Place,
    StageConfig,
    TransformerConfig,
    UNetConfig,
    edited,
    layer_shape,
    places,
)
from compress.nn.attention import SpatialTransformer
from compress.nn.patches import map_patch
from compress.nn.structure import ChannelGroup, ChannelSlice, Kind
from compress.nn.unet_blocks import (
    NORM_EPS,
    AddedEmbedding,
    DoublingConv,
    HalvingConv,
    PassThrough,
    ResnetShape,
    TimedResnetBlock,
    TimedShortcut,
    TimeEmbedding,
)

PATCH = 8  # image pixels per latent on each side
TOKENS = 77  # text states that a CLIP text encoder gives


class Stage(nn.Module):
    """Blocks of one resolution: ResNet block, then its transformer; their places are as in diffusers."""

    def __init__(self, config: UNetConfig, stage: StageConfig, blocks: Sequence[Place]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_resnet(config, place) for place in blocks)
        self.attentions = nn.ModuleList(_transformer(config, place) for place in blocks)


class DownStage(Stage):
    """Each block's output, and the halved map, is also a skip."""

    def __init__(self, config: UNetConfig, stage: StageConfig, blocks: Sequence[Place]) -> None:
        super().__init__(config, stage, blocks)
        self.downsamplers = nn.ModuleList([HalvingConv(stage.width)] if stage.resample else [])

    def forward(
        self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        skips = []
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x, time), context)
            skips.append(x)
        for step in self.downsamplers:
            x = step(x)
            skips.append(x)
        return x, skips


class MidStage(Stage):
    """ResNet block, transformer, ResNet block."""

    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x, time), context)
        return x


class UpStage(Stage):
    """Each block takes the last skip that is left, joined to the stream."""

    def __init__(self, config: UNetConfig, stage: StageConfig, blocks: Sequence[Place]) -> None:
        super().__init__(config, stage, blocks)
        self.upsamplers = nn.ModuleList([DoublingConv(stage.width)] if stage.resample else [])

    def forward(
        self, x: torch.Tensor, skips: Sequence[torch.Tensor], time: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        for resnet, attention, skip in zip(self.resnets, self.attentions, reversed(skips), strict=True):
            x = attention(resnet(torch.cat([x, skip], dim=1), time), context)
        for step in self.upsamplers:
            x = step(x)
        return x


class UNet(nn.Module):
    """Latents [n, z, h, w], time steps [n] and text states [n, t, c] to a prediction [n, z_out, h, w].

    Where the configuration has `added` (SDXL), also a pooled text state [n, p] and the picture's sizes [n, 6].
    Height and width are multiples of 2 to the number of halvings.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.down[0].width, config.up[-1].width
        found: dict[str, list[Place]] = {}
        for place in places(config):
            found.setdefault(place.prefix, []).append(place)
        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.time_embedding = TimeEmbedding(first, config.time_width)
        added = config.added
        self.add_embedding = None if added is None else AddedEmbedding(added.width, added.waves, config.time_width)
        self.down_blocks = nn.ModuleList(
            DownStage(config, s, found[f"down_blocks.{i}"]) for i, s in enumerate(config.down)
        )
        self.mid_block = None if config.mid is None else MidStage(config, config.mid, found["mid_block"])
        self.up_blocks = nn.ModuleList(UpStage(config, s, found[f"up_blocks.{i}"]) for i, s in enumerate(config.up))
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, last, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(last, config.out_channels, 3, padding=1)

    def forward(
        self,
        latents: Float[torch.Tensor, "n z h w"],
        timesteps: Float[torch.Tensor, " n"],
        context: Float[torch.Tensor, "n t c"],
        pooled: Float[torch.Tensor, "n pooled"] | None = None,
        sizes: Float[torch.Tensor, "n numbers"] | None = None,
    ) -> Float[torch.Tensor, "n z_out h w"]:
        time = self.time_embedding(timesteps)
        if self.add_embedding is not None:
            if pooled is None or sizes is None:
                raise ValueError("this UNet takes a pooled text state and the picture's sizes too: pooled, sizes")
            time = time + self.add_embedding(pooled, sizes)
        x = self.conv_in(latents)
        skips = [x]
        for stage in self.down_blocks:
            x, made = stage(x, time, context)
            skips += made
        if self.mid_block is not None:
            x = self.mid_block(x, time, context)
        for stage, config in zip(self.up_blocks, self.config.up, strict=True):
            used = len(config.blocks)
            x = stage(x, skips[-used:], time, context)
            del skips[-used:]
        return self.conv_out(functional.silu(self.conv_norm_out(x)))


def _resnet(config: UNetConfig, place: Place) -> nn.Module:
    if isinstance(place.block.hidden, str):
        return map_patch(place.block.hidden, place.stage.width)
    if place.block.hidden is None:
        changes = place.in_channels != place.stage.width
        return TimedShortcut(place.in_channels, place.stage.width) if changes else PassThrough()
    return TimedResnetBlock(
        ResnetShape(
            in_channels=place.in_channels,
            hidden=place.block.hidden,
            out_channels=place.stage.width,
            time_width=config.time_width,
            time=config.grammar.time,
            norm_groups=config.norm_groups,
            multiplier=config.grammar.depth_multiplier if place.stage.separable else None,
        )
    )


def _transformer(config: UNetConfig, place: Place) -> nn.Module:
    if not place.block.transformer:
        return PassThrough()
    if isinstance(place.block.transformer, str):
        return map_patch(place.block.transformer, place.stage.width)
    layers = [
        layer if isinstance(layer, str) else layer_shape(layer, place.stage, config)
        for layer in place.block.transformer
    ]
    return SpatialTransformer(
        place.stage.width, layers, norm_groups=config.norm_groups, projection=config.grammar.projection
    )


def _resnet_group(config: UNetConfig, place: Place) -> Iterator[ChannelGroup]:
    """Between the two convolutions of a ResNet block, where the time step comes in."""
    hidden, block = place.block.hidden, place.resnet
    if not isinstance(hidden, int):
        return
    many = config.grammar.depth_multiplier
    writer = f"{block}.conv1.pointwise" if place.stage.separable else f"{block}.conv1"
    slices = [ChannelSlice(tensor=f"{writer}.{t}", axis=0, role="writes") for t in ("weight", "bias")]
    slices += [ChannelSlice(tensor=f"{block}.norm2.{t}", axis=0, role="norm") for t in ("weight", "bias")]
    for offset in (0, hidden) if config.grammar.time == "scale_shift" else (0,):
        slices += [
            ChannelSlice(tensor=f"{block}.time_emb_proj.{t}", axis=0, role="writes", offset=offset)
            for t in ("weight", "bias")
        ]
    if place.stage.separable:
        slices += [
            ChannelSlice(tensor=f"{block}.conv2.depthwise.{t}", axis=0, role="norm", span=many)
            for t in ("weight", "bias")
        ]
        slices.append(ChannelSlice(tensor=f"{block}.conv2.pointwise.weight", axis=1, role="reads", span=many))
    else:
        slices.append(ChannelSlice(tensor=f"{block}.conv2.weight", axis=1, role="reads"))
    yield ChannelGroup(
        name=f"{block}.hidden", kind="inner", width=hidden, norm_groups=config.norm_groups, slices=tuple(slices)
    )


def _transformer_groups(config: UNetConfig, place: Place) -> Iterator[ChannelGroup]:
    """Heads of each attention, inside of each feed-forward."""
    for k, layer in place.block.layers:
        name, size = f"{place.attention}.transformer_blocks.{k}", place.stage.head_dim
        shared = {"none": (), "self": ("attn1",), "all": ("attn1", "attn2")}[config.grammar.shared_kv]
        for attention, heads in (("attn1", layer.self_heads), ("attn2", layer.cross_heads)):
            writers = ("to_q", "to_k") if attention in shared else ("to_q", "to_k", "to_v")
            slices = [
                ChannelSlice(tensor=f"{name}.{attention}.{w}.weight", axis=0, role="writes", span=size) for w in writers
            ]
            slices.append(ChannelSlice(tensor=f"{name}.{attention}.to_out.0.weight", axis=1, role="reads", span=size))
            if heads:
                yield _plain_group(f"{name}.{attention}.heads", heads, slices, unit=size)
        if layer.feed_forward:
            yield _plain_group(
                f"{name}.ff.inner",
                layer.feed_forward,
                [
                    ChannelSlice(tensor=f"{name}.ff.net.0.proj.{t}", axis=0, role="writes", offset=offset)
                    for t in ("weight", "bias")
                    for offset in (0, layer.feed_forward)
                ]
                + [ChannelSlice(tensor=f"{name}.ff.net.2.weight", axis=1, role="reads")],
            )


def _plain_group(name: str, width: int, slices: Sequence[ChannelSlice], unit: int = 1) -> ChannelGroup:
    return ChannelGroup(name=name, kind="inner", width=width, norm_groups=1, slices=tuple(slices), unit=unit)


def channel_groups(config: UNetConfig) -> tuple[ChannelGroup, ...]:
    """The inside of every ResNet block, attention (whole heads) and feed-forward; no streams."""
    return tuple(
        group
        for place in places(config)
        for group in (*_resnet_group(config, place), *_transformer_groups(config, place))
    )


def with_widths(config: UNetConfig, widths: Mapping[str, int]) -> UNetConfig:
    """The configuration with new widths for some channel groups."""

    def narrowed(name: str, layer: TransformerConfig) -> TransformerConfig:
        return replace(
            layer,
            self_heads=widths.get(f"{name}.attn1.heads", layer.self_heads),
            cross_heads=widths.get(f"{name}.attn2.heads", layer.cross_heads),
            feed_forward=widths.get(f"{name}.ff.inner", layer.feed_forward),
        )

    def change(place: Place) -> BlockConfig:
        hidden, transformer = place.block.hidden, place.block.transformer
        if isinstance(hidden, int):
            hidden = widths.get(f"{place.resnet}.hidden", hidden)
        if not isinstance(transformer, str):
            layers = enumerate(transformer)
            transformer = tuple(
                x if isinstance(x, str) else narrowed(f"{place.attention}.transformer_blocks.{k}", x) for k, x in layers
            )
        return BlockConfig(hidden=hidden, transformer=transformer)

    return edited(config, change)


def _inputs(config: UNetConfig, pixels: int) -> tuple[torch.Tensor, ...]:
    shapes: list[tuple[int, ...]] = [_latent_shape(config, pixels), (1,), (1, TOKENS, config.context_width)]
    if config.added is not None:
        shapes += [(1, config.added.pooled), (1, config.added.numbers)]
    return tuple(torch.zeros(shape, device="meta") for shape in shapes)


def _latent_shape(config: UNetConfig, pixels: int) -> tuple[int, ...]:
    return (1, config.in_channels, pixels // PATCH, pixels // PATCH)


KINDS = {
    "unet": Kind(
        config=UNetConfig,
        build=UNet,
        output="prediction",
        input_shape=_latent_shape,
        inputs=_inputs,
        channel_groups=channel_groups,
        with_widths=with_widths,
        blocks=blocks,
        without_blocks=without_blocks,
        units=units,
        with_patches=with_patches,
        feed="noisy_latents",
    ),
}
