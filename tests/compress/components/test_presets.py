"""The presets that come with the project load and make pictures."""

import json

import pytest
import torch

from compress import components
from compress.components._kinds import arch_from_json, arch_to_json
from compress.files import read_json


@pytest.mark.parametrize(
    "name", [n for n in components.names() if (components.find(n) / "weights.safetensors").exists()]
)
def test_a_preset_states_its_cost_without_its_weights(name):
    variant = components.load_variant(components.find(name), name)
    assert components.component_cost(name, 64).parameters == sum(p.numel() for p in variant.module.parameters())
    assert variant.component == name


def test_the_embedded_decoder_and_encoder():
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
