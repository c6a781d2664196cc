"""Our autoencoders against diffusers' own, where it is installed: same weights, same images."""

import importlib.util
import re

import pytest
import torch

from compress.components import build, taesd, vae
from compress.records import Arch

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="needs diffusers, a test oracle"),
    pytest.mark.filterwarnings("ignore"),
]

WIDTHS = (8, 16, 32, 32)
RULES = (
    (r"mid_block\.resnets\.0\.", "mid.before.0."),
    (r"mid_block\.resnets\.1\.", "mid.after.0."),
    (r"mid_block\.attentions\.0\.", "mid.attention."),
    (r"group_norm\.", "norm."),
    (r"to_(q|k|v)\.", r"\1."),
    (r"to_out\.0\.", "out."),
    (r"(up|down)_blocks\.(\d)\.", r"levels.\2."),
    (r"(up|down)samplers\.0\.", "step."),
    (r"conv_shortcut\.", "shortcut."),
    (r"conv_norm_out\.", "norm_out."),
)


def translated(state):
    found = {}
    for theirs, tensor in state.items():
        name = theirs
        for pattern, ours in RULES:
            name = re.sub(pattern, ours, name)
        found[name] = tensor[:, :, None, None] if name.startswith("mid.attention") and tensor.dim() == 2 else tensor
    return found


def levels(widths, depth):
    arriving = (widths[0], *widths[:3])
    return tuple(
        vae.Level(width=w, hidden=(w,) * depth, step=None if i == 3 else w, entry=a if a != w else None)
        for i, (w, a) in enumerate(zip(widths, arriving, strict=True))
    )


@pytest.fixture(scope="module", params=[True, False], ids=["attention", "no attention"])
def pair(request):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    theirs = AutoencoderKL(
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=request.param,
        use_quant_conv=request.param,
        use_post_quant_conv=request.param,
    ).eval()
    attention = vae.Attention(keys=32, values=32, scale_width=32) if request.param else None
    common = {
        "latent_channels": 4,
        "norm_groups": 4,
        "linear_path": False,
        "quant_conv": request.param,
        "image_range": (-1.0, 1.0),
        "mid": vae.Mid(before=(32,), attention=attention, after=(32,)),
    }
    return theirs, common


@torch.no_grad()
def test_a_decoder_gives_their_images(pair):
    theirs, common = pair
    config = vae.DecoderConfig(levels=levels(WIDTHS[::-1], 3), **common)
    ours = build(Arch(kind="vae.decoder", config=config))
    state = translated(theirs.decoder.state_dict())
    if common["quant_conv"]:
        state |= {f"post_quant_conv.{n}": t for n, t in theirs.post_quant_conv.state_dict().items()}
    ours.load_state_dict(state)
    latents = torch.randn(2, 4, 6, 4)
    expected = (theirs.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert expected.std() > 0.01
    torch.testing.assert_close(ours(latents), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_an_encoder_gives_their_moments(pair):
    theirs, common = pair
    ours = build(Arch(kind="vae.encoder", config=vae.EncoderConfig(levels=levels(WIDTHS, 2), **common)))
    state = translated(theirs.encoder.state_dict())
    if common["quant_conv"]:
        state |= {f"quant_conv.{n}": t for n, t in theirs.quant_conv.state_dict().items()}
    ours.load_state_dict(state)
    images = torch.rand(2, 3, 32, 48)
    expected = theirs.encode(2 * images - 1).latent_dist
    mean, log_variance = ours.moments(images)
    torch.testing.assert_close(mean, expected.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_variance, expected.logvar, rtol=0, atol=1e-5)


def tiny_state(theirs, depths, *, first):
    """AutoencoderTiny's flat list of layers under our names; `first` is where the first level begins."""
    names, place = {"0": "conv_in"}, first
    for i, depth in enumerate(depths):
        for j in range(depth):
            names |= {f"{place}.conv.{2 * k}": f"levels.{i}.blocks.{j}.conv{k + 1}" for k in range(3)}
            place += 1
        if first == 2:  # the decoder upsamples behind its blocks, then convolves
            place += i < 3
            names[f"{place}"] = "conv_out" if i == 3 else f"levels.{i}.step.conv"
        else:  # the encoder convolves in front of the next level
            names[f"{place}"] = "conv_out" if i == 3 else f"levels.{i}.step.conv"
        place += 1
    found = {}
    for name, tensor in theirs.layers.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        found[f"{names[layer]}.{leaf}"] = tensor
    return found


@torch.no_grad()
def test_the_tiny_autoencoder_gives_their_images_and_latents():
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    torch.manual_seed(0)
    theirs = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, latent_channels=4
    ).eval()
    for part, config_type, depths, first in (
        ("decoder", taesd.DecoderConfig, (3, 3, 3, 1), 2),
        ("encoder", taesd.EncoderConfig, (1, 3, 3, 3), 1),
    ):
        levels = tuple(
            taesd.Level(width=8, hidden=((8, 8),) * depth, step=None if i == 3 else 8) for i, depth in enumerate(depths)
        )
        ours = build(Arch(kind=f"taesd.{part}", config=config_type(latent_channels=4, levels=levels)))
        ours.load_state_dict(tiny_state(getattr(theirs, part), depths, first=first))
        if part == "decoder":
            latents = 4 * torch.randn(2, 4, 6, 4)
            expected = (theirs.decode(latents).sample / 2 + 0.5).clamp(0, 1)
            torch.testing.assert_close(ours(latents), expected, rtol=0, atol=1e-5)
        else:
            images = torch.rand(2, 3, 32, 48)
            torch.testing.assert_close(ours(images), theirs.encode(2 * images - 1).latents, rtol=0, atol=1e-5)
