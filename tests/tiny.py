"""A decoder and an encoder of some 20,000 weights, seeded and alive, and what a stage is given with them."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from compress.components import build, text_encoder, vae
from compress.components import unet as unets
from compress.components._unet_config import BlockConfig, Grammar, StageConfig, TransformerConfig
from compress.records import Arch, Diffusion, Inputs, StageInput, Variant
from compress.sampling.schedule import Schedule

WIDTHS = (16, 16, 8, 8)
HIDDEN = ((16, 16), (16,), (8, 8), (8,))


def levels(widths: tuple[int, ...], hidden: tuple[tuple[int, ...], ...]) -> tuple[vae.Level, ...]:
    steps = (*widths[1:], None)
    return tuple(vae.Level(width=w, hidden=h, step=s) for w, h, s in zip(widths, hidden, steps, strict=True))


DECODER = vae.DecoderConfig(latent_channels=8, levels=levels(WIDTHS, HIDDEN), norm_groups=4, linear_path=True)
ENCODER = vae.EncoderConfig(
    latent_channels=8, levels=levels(WIDTHS[::-1], HIDDEN[::-1]), norm_groups=4, linear_path=True
)

_LAYER = TransformerConfig(self_heads=2, cross_heads=2, feed_forward=24)
_BLOCKS = (BlockConfig(hidden=16, transformer=(_LAYER,)),) * 2
_FINE = StageConfig(
    width=8, head_dim=4, separable=False, resample=True, blocks=(BlockConfig(hidden=16, transformer=()),)
)
_COARSE = StageConfig(width=16, head_dim=4, separable=True, resample=False, blocks=_BLOCKS)
UNET = unets.UNetConfig(
    in_channels=8,
    out_channels=8,
    context_width=12,
    time_width=16,
    norm_groups=4,
    grammar=Grammar(
        time="scale_shift", gate="swish", attention="softmax", shared_kv="self", projection="linear", depth_multiplier=2
    ),
    down=(_FINE, _COARSE),
    mid=None,
    up=(
        replace(_COARSE, resample=True, blocks=(*_BLOCKS, _BLOCKS[0])),
        replace(_FINE, resample=False, blocks=_FINE.blocks * 2),
    ),
)
TEXT = text_encoder.TextEncoderConfig(
    vocabulary=40,
    positions=9,
    width=16,
    head_dim=4,
    activation="quick_gelu",
    layers=(text_encoder.TextLayerConfig(heads=4, feed_forward=32),) * 2,
)


def decoder(seed: int = 0, config: vae.DecoderConfig = DECODER) -> Variant:
    """Latents of standard deviation 1 become images around 0.5, hardly any pixel of which is clamped."""
    module = _seeded(build(Arch(kind="vae.decoder", config=config)), seed)
    state = module.state_dict()
    state["conv_out.weight"] *= 0.12
    state["conv_out.bias"] += 0.5
    state["linear.weight"] *= 0.06
    module.load_state_dict(state)
    return Variant(component="tiny/decoder", arch=Arch(kind="vae.decoder", config=config), module=module)


def encoder(seed: int = 0) -> Variant:
    arch = Arch(kind="vae.encoder", config=ENCODER)
    return Variant(component="tiny/encoder", arch=arch, module=_seeded(build(arch), seed))


def unet(seed: int = 0) -> Variant:
    """Skips, GroupNorm, separable convolutions, scale-shift, shared keys and values, gated feed-forwards."""
    arch = Arch(kind="unet.unet", config=UNET)
    return Variant(component="tiny/unet", arch=arch, module=_seeded(build(arch), seed))


def small_unet(seed: int = 0) -> Variant:
    """`unet` with as few blocks as hold one of each kind, for what takes time by the layer."""
    fine, coarse = UNET.down
    down = (fine, replace(coarse, blocks=coarse.blocks[:1]))
    up = (replace(UNET.up[0], blocks=coarse.blocks[:1] * 2), UNET.up[1])
    arch = Arch(kind="unet.unet", config=replace(UNET, down=down, up=up))
    return Variant(component="tiny/unet", arch=arch, module=_seeded(build(arch), seed))


def text(seed: int = 0) -> Variant:
    arch = Arch(kind="text_encoder.text_encoder", config=TEXT)
    return Variant(component="tiny/text_encoder", arch=arch, module=_seeded(build(arch), seed))


def unet_inputs(count: int = 4, size: int = 8, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(2000 + seed)
    steps = torch.linspace(3.0, 900.0, count)
    return torch.randn(count, 8, size, size, generator=generator), steps, torch.randn(count, 5, 12, generator=generator)


def text_inputs(count: int = 4, seed: int = 0) -> Inputs:
    return (torch.randint(0, 40, (count, 9), generator=torch.Generator().manual_seed(3000 + seed)),)


def diffusion(levels: int = 1000, *, guided: bool = True) -> Diffusion:
    """Clean latents 4x4 and text states, by step; the empty text is all zero."""

    def clean(step: int, batch: int, pixels: int) -> Inputs:
        generator = torch.Generator().manual_seed(4000 + step)
        side = pixels // vae.PATCH
        shapes = (batch, 8, side, side), (batch, 5, 12)
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)

    schedule = Schedule(num_train_timesteps=levels)
    return Diffusion(schedule=schedule, clean=clean, empty=(torch.zeros(1, 5, 12),) if guided else None)


def latents(count: int = 4, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 8, size, size, generator=torch.Generator().manual_seed(1000 + seed))


def sample(step: int, batch: int, pixels: int) -> Inputs:
    return (latents(batch, pixels // vae.PATCH, seed=step),)


def stage_input(
    scratch: Path,
    variant: Variant | None = None,
    *,
    teacher: nn.Module | None = None,
    inputs: torch.Tensor | Inputs | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
    diffusion: Diffusion | None = None,
) -> StageInput:
    given = latents() if inputs is None else inputs
    return StageInput(
        variant=variant or decoder(),
        teacher=teacher or decoder().module,
        inputs=(given,) if isinstance(given, torch.Tensor) else given,
        sample=sample,
        seed=seed,
        scratch=scratch,
        progress=progress,
        diffusion=diffusion,
    )


def _seeded(module: nn.Module, seed: int) -> nn.Module:
    """Weights of gain 1, norms near 1, small biases: every layer alive, nothing zero."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in module.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            state[name] = noise / math.sqrt(tensor[0].numel())
        else:
            state[name] = 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    module.load_state_dict(state)
    return module.requires_grad_(False).eval()
