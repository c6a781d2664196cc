"""The presets that come with the project: those that are trained make pictures, the others have the published size."""

import json
from dataclasses import replace

import pytest
import torch

from compress import components
from compress.components import build, find, kind_of, read_arch
from compress.components._kinds import arch_from_json, arch_to_json
from compress.errors import UserError
from compress.files import read_json
from compress.nn.structure import take_channels

TRAINED = [name for name in components.names() if components.has_weights(name)]
# Parameters, and GMACs at 512x512. MobileDiffusion: the blog of January 2024 gives 39.3M and 9.8M, no encoder.
# Stable Diffusion 1.5, TAESD: as diffusers builds them, with the 1x1 convolutions beside the latents.
# SnapFusion: arXiv:2306.00980, the half-width decoder.
PUBLISHED = {
    "mobilediffusion/decoder": (39.3e6, 0.01, None),
    "mobilediffusion-lite/decoder": (9.8e6, 0.01, None),
    "stable-diffusion-1.5/decoder": (49_490_179 + 20, 0, 1257),
    "stable-diffusion-1.5/encoder": (34_163_592 + 72, 0, None),
    "snapfusion/decoder": (12.39e6, 0.001, 319),
    "taesd/decoder": (1_222_531, 0, 70.7),
    "taesd/encoder": (1_222_532, 0, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_architecture_has_the_published_size(name):
    parameters, tolerance, gmacs = PUBLISHED[name]
    cost = components.component_cost(name, 512)
    assert cost.parameters == pytest.approx(parameters, rel=tolerance, abs=0)
    assert gmacs is None or cost.macs / 1e9 == pytest.approx(gmacs, rel=0.001)


def test_the_lite_decoder_is_the_other_one_at_half_width():
    """And an even choice of half of every group's channels of the one loads into the other."""
    full, lite = (read_arch(find(f"{family}/decoder")) for family in ("mobilediffusion", "mobilediffusion-lite"))
    kind = kind_of(full.kind)
    groups = kind.channel_groups(full.config)
    assert kind.with_widths(full.config, {group.name: group.width // 2 for group in groups}) == lite.config
    kept = {g.name: torch.arange(0, g.width, 2) for g in groups}
    with torch.device("meta"):
        cut = take_channels(build(full).state_dict(), groups, kept)
        build(lite).load_state_dict(cut, assign=True)


def test_snapfusions_decoder_is_stable_diffusions_at_half_width():
    """But for the scale of attention's scores, which a cut network keeps."""
    full, half = (read_arch(find(f"{family}/decoder")) for family in ("stable-diffusion-1.5", "snapfusion"))
    kind = kind_of(full.kind)
    cut = kind.with_widths(full.config, {g.name: g.width // 2 for g in kind.channel_groups(full.config)})
    attention = replace(cut.mid.attention, scale_width=256)
    assert replace(cut, mid=replace(cut.mid, attention=attention)) == half.config


@pytest.mark.parametrize("name", [n for n in components.names() if n.split("/")[1] in ("decoder", "encoder")])
def test_images_are_eight_times_the_latents(name):
    arch = read_arch(find(name))
    with torch.device("meta"):
        shape = kind_of(arch.kind).input_shape(arch.config, 64)
        output = build(arch)(torch.zeros(shape)).shape
    latents = (1, arch.config.latent_channels, 8, 8)
    assert (shape, output) == ((latents, (1, 3, 64, 64)) if "decoder" in name else ((1, 3, 64, 64), latents))


@pytest.mark.parametrize("name", TRAINED)
def test_a_preset_states_its_cost_without_its_weights(name):
    variant = components.load_variant(components.find(name), name)
    assert components.component_cost(name, 64).parameters == sum(p.numel() for p in variant.module.parameters())
    assert variant.component == name


@pytest.mark.parametrize("name", [n for n in components.names() if n not in TRAINED])
def test_an_architecture_without_weights_cannot_be_loaded(name):
    with pytest.raises(UserError, match=f"{name} is an architecture that comes without weights.*--checkpoint FOLDER"):
        components.load(name)


def test_the_embedded_decoder_and_encoder():
    assert [f"md-tiny/{leaf}" for leaf in ("decoder", "encoder", "text_encoder", "unet")] == TRAINED
    decoder, encoder = components.load("md-tiny/decoder"), components.load("md-tiny/encoder")
    assert 1_000_000 <= sum(p.numel() for p in decoder.parameters()) <= 4_000_000
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    picture = torch.stack([x, y, 1 - x])[None]
    with torch.no_grad():
        latents = encoder(picture)
        image = decoder(latents)
    assert latents.shape == (1, 8, 8, 8) and latents.isfinite().all()
    assert image.shape == picture.shape and image.min() >= 0 and image.max() <= 1
    # A pair that belongs together gives back a smooth picture; 20 dB is far below what it does, far above chance.
    assert -10 * torch.log10((image - picture).square().mean()) > 20


@pytest.mark.parametrize("name", [n for n in components.names() if "unet" in n or "text_encoder" in n])
def test_an_architecture_is_written_as_it_was_read(name):
    path = components.find(name) / "arch.json"
    written = json.loads(json.dumps(arch_to_json(arch_from_json(read_json(path), path))))
    assert written == read_json(path)
