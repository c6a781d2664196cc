"""The VAE's own statements about itself: shapes, what may be cut, and what an architecture without it looks like."""

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from compress.components import build, vae
from compress.nn.structure import take_channels
from compress.records import Arch


def test_latents_become_images_and_images_latents():
    decoder, encoder = tiny.decoder().module, tiny.encoder().module
    images = decoder(tiny.latents(2, 4))
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.float32
    assert 0 <= images.min() < 0.3 and 0.7 < images.max() <= 1
    assert encoder(images).shape == (2, 8, 4, 4)
    mean, log_variance = encoder.moments(images)
    assert torch.equal(mean, encoder(images)) and log_variance.shape == mean.shape


def test_the_linear_path_is_a_matrix_per_patch():
    decoder = tiny.decoder().module
    latents = 0.1 * tiny.latents(1, 2)
    without = build(Arch(kind="vae.decoder", config=replace(tiny.DECODER, linear_path=False)))
    without.load_state_dict({n: t for n, t in decoder.state_dict().items() if not n.startswith("linear.")})
    patches = torch.einsum("oi,nihw->nohw", decoder.linear.weight[:, :, 0, 0], latents)
    patches = (patches + decoder.linear.bias.reshape(1, -1, 1, 1)).reshape(1, 3, 8, 8, 2, 2)
    expected = without(latents) + patches.permute(0, 1, 4, 2, 5, 3).reshape(1, 3, 16, 16)
    inside = (expected > 0.01) & (expected < 0.99) & (without(latents) > 0) & (without(latents) < 1)
    assert inside.float().mean() > 0.9
    torch.testing.assert_close(decoder(latents)[inside], expected[inside])


def test_a_pixel_out_of_range_is_clamped_but_keeps_its_gradient_in_training():
    decoder = tiny.decoder().module
    decoder.conv_out.bias.fill_(3.0)
    latents = tiny.latents(1, 2).requires_grad_(True)
    evaluated = decoder(latents)
    trained = decoder.train()(latents)
    assert torch.equal(evaluated, trained) and evaluated.min() == 1.0
    assert torch.autograd.grad(evaluated.sum(), latents)[0].abs().max() == 0
    assert torch.autograd.grad(trained.sum(), latents)[0].abs().max() > 0


@pytest.mark.parametrize(
    "change, words",
    [
        ({"norm_groups": 3}, "levels.0: 16 channels are not a multiple of 3 norm groups"),
        ({"levels": tiny.levels((16, 10, 8, 8), tiny.HIDDEN)}, "levels.1: 10 channels are not a multiple of 4"),
        ({"levels": tiny.levels(tiny.WIDTHS, ((16, 6), (16,), (8,), (8,)))}, "levels.0: 6 channels"),
        ({"levels": tiny.levels(tiny.WIDTHS, ((16, 0), (16,), (8,), (8,)))}, "levels.0: 0 channels"),
        ({"levels": tiny.DECODER.levels[1:]}, "3 levels; an f8 autoencoder has 4"),
        ({"levels": (replace(tiny.DECODER.levels[0], step=8), *tiny.DECODER.levels[1:])}, "step 8, but level 1 is 16"),
        ({"latent_channels": 0}, "must be positive"),
        ({"norm_groups": 0}, "must be positive"),
    ],
)
def test_what_could_not_be_built_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(tiny.DECODER, **change)


@pytest.mark.parametrize("config", [tiny.DECODER, tiny.ENCODER], ids=["decoder", "encoder"])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_channels_cut_by_groups_fit_the_configuration_with_those_widths(config, seed):
    """Any widths, any channels: the cut tensors load into the network built from the new configuration."""
    kind = "decoder" if config is tiny.DECODER else "encoder"
    variant = getattr(tiny, kind)()
    generator = torch.Generator().manual_seed(seed)
    groups = vae.channel_groups(config)
    widths, kept = {}, {}
    for group in groups:
        widths[group.name] = 4 * int(torch.randint(1, group.width // 4 + 1, (1,), generator=generator))
        kept[group.name] = torch.randperm(group.width, generator=generator)[: widths[group.name]].sort().values
    cut = build(Arch(kind=f"vae.{kind}", config=vae.with_widths(config, widths)))
    cut.load_state_dict(take_channels(variant.module.state_dict(), groups, kept))
    assert {g.name: g.width for g in vae.channel_groups(cut.config)} == widths


@pytest.mark.parametrize("config", [tiny.DECODER, tiny.ENCODER], ids=["decoder", "encoder"])
def test_groups_state_the_true_width_of_every_tensor(config):
    state = build(Arch(kind="vae.decoder" if config is tiny.DECODER else "vae.encoder", config=config)).state_dict()
    groups = vae.channel_groups(config)
    touched = [(part.tensor, part.axis) for group in groups for part in group.slices]
    for group in groups:
        assert all(state[part.tensor].shape[part.axis] == group.width for part in group.slices)
    streams = [pair for pair in touched if pair[0].endswith("conv2.weight")]
    assert len(touched) == len(set(touched)) and streams
    # both axes of every 3x3 convolution belong to a group, but for what is fixed: latents in, colours out
    fixed = {("conv_in.weight", 1), ("conv_out.weight", 0)}
    axes = {(n, a) for n, t in state.items() if t.dim() == 4 and not n.startswith("linear") for a in (0, 1)}
    assert axes - set(touched) == fixed


def test_blocks_behind_a_removed_one_move_up():
    removal = vae.without_blocks(tiny.DECODER, ["levels.0.resnets.0", "levels.3.resnets.0"])
    assert [level.hidden for level in removal.config.levels] == [(16,), (16,), (8, 8), ()]
    assert removal.renamed["levels.0.resnets.1."] == "levels.0.resnets.0."
    assert "levels.0.resnets.0." not in removal.renamed
    assert removal.config.levels[3].width == tiny.DECODER.levels[3].width


def test_a_level_without_blocks_needs_no_norm_groups():
    """Nothing normalises its stream, so its width is free; the last level still has the output's norm."""
    hidden = ((), (16,), (8,), (8,))
    free = replace(tiny.DECODER, levels=tiny.levels((10, 16, 8, 8), hidden))
    assert build(Arch(kind="vae.decoder", config=free))(torch.zeros(1, 8, 2, 2)).shape == (1, 3, 16, 16)
    assert vae.channel_groups(free)[0].norm_groups == 1
    with pytest.raises(ValueError, match="levels.3: 10 channels"):
        replace(tiny.DECODER, levels=tiny.levels((16, 16, 8, 10), (*tiny.HIDDEN[:3], ())))
    with pytest.raises(ValueError, match="levels.0: 0 channels"):
        replace(tiny.DECODER, levels=tiny.levels((0, 16, 8, 8), hidden))


def test_a_resnet_block_by_its_formula():
    block, x = tiny.decoder().module.levels[0].resnets[0], torch.randn(1, 16, 5, 5)

    def norm(x, layer):
        grouped = x.double().reshape(1, 4, -1)
        mean = grouped.mean(dim=2, keepdim=True)
        variance = (grouped - mean).square().mean(dim=2, keepdim=True)
        flat = ((grouped - mean) / (variance + 1e-6).sqrt()).reshape(x.shape)
        return flat * layer.weight.double().reshape(1, -1, 1, 1) + layer.bias.double().reshape(1, -1, 1, 1)

    def swish(x):
        return x / (1 + torch.exp(-x))

    h = functional.conv2d(
        swish(norm(x, block.norm1)), block.conv1.weight.double(), block.conv1.bias.double(), padding=1
    )
    h = functional.conv2d(
        swish(norm(h, block.norm2)), block.conv2.weight.double(), block.conv2.bias.double(), padding=1
    )
    torch.testing.assert_close(block(x).double(), x + h, rtol=1e-4, atol=1e-5)
