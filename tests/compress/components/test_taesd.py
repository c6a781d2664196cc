"""The tiny autoencoder: as diffusers computes it, and its statements about what may be cut."""

from dataclasses import replace

import pytest
import tiny
import torch
from torch.nn import functional

from compress.components import build, taesd
from compress.nn.structure import take_channels
from compress.prune import depth
from compress.records import Arch

LEVELS = (
    taesd.Level(width=8, hidden=((8, 6), (5, 8)), step=6),
    taesd.Level(width=6, hidden=((7, 3),), step=4),
    taesd.Level(width=4, hidden=(), step=5),
    taesd.Level(width=5, hidden=((5, 5),), step=None),
)
DECODER = taesd.DecoderConfig(latent_channels=4, levels=LEVELS)
ENCODER = taesd.EncoderConfig(latent_channels=4, levels=LEVELS)
CONFIGS = pytest.mark.parametrize("config", [DECODER, ENCODER], ids=["decoder", "encoder"])


def network(config):
    kind = "decoder" if isinstance(config, taesd.DecoderConfig) else "encoder"
    return tiny._seeded(build(Arch(kind=f"taesd.{kind}", config=config)), 0)


def example(config):
    generator = torch.Generator().manual_seed(3)
    shape = (1, 4, 4, 4) if config is DECODER else (1, 3, 32, 32)
    return torch.rand(shape, generator=generator)


def decode_by_formula(state, latents):
    def conv(name, x):
        return functional.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=1)

    x = conv("conv_in", 3 * torch.tanh(latents / 3)).clamp_min(0)
    for i, level in enumerate(LEVELS):
        for j in range(len(level.hidden)):
            block = f"levels.{i}.blocks.{j}"
            inner = conv(f"{block}.conv2", conv(f"{block}.conv1", x).clamp_min(0)).clamp_min(0)
            x = (x + conv(f"{block}.conv3", inner)).clamp_min(0)
        if level.step is not None:
            x = conv(f"levels.{i}.step.conv", x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    return conv("conv_out", x).clamp(0, 1)


def test_a_decoder_by_its_formula():
    module = network(DECODER).double()
    latents = 5 * tiny.latents(2, 4)[:, :4].double()
    image = module(latents)
    assert image.shape == (2, 3, 32, 32) and ((image > 0) & (image < 1)).double().mean() > 0.1
    torch.testing.assert_close(image, decode_by_formula(module.state_dict(), latents))


def test_a_pixel_out_of_range_keeps_its_gradient_in_training():
    module = network(DECODER)
    module.conv_out.bias.fill_(9.0)
    latents = example(DECODER).requires_grad_(True)
    assert torch.autograd.grad(module(latents).sum(), latents)[0].abs().max() == 0
    assert torch.autograd.grad(module.train()(latents).sum(), latents)[0].abs().max() > 0


@CONFIGS
@pytest.mark.parametrize("seed", range(3))
def test_cutting_equals_channels_that_nobody_reads(config, seed):
    """Nothing normalises, so zero in what reads a channel is the same as no channel."""
    generator = torch.Generator().manual_seed(seed)
    module, groups = network(config).double(), taesd.channel_groups(config)
    kept = {}
    for group in groups:
        count = int(torch.randint(1, group.width + 1, (1,), generator=generator))
        kept[group.name] = torch.randperm(group.width, generator=generator)[:count].sort().values
    state = module.state_dict()
    small = build(
        Arch(
            kind=f"taesd.{'decoder' if config is DECODER else 'encoder'}",
            config=taesd.with_widths(config, {n: len(k) for n, k in kept.items()}),
        )
    ).double()
    small.load_state_dict(take_channels(state, groups, kept))
    for group in groups:
        gone = torch.tensor([c for c in range(group.width) if c not in kept[group.name]], dtype=torch.long)
        for part in group.slices:
            assert state[part.tensor].shape[part.axis] == group.width
            if part.role == "reads":
                state[part.tensor].index_fill_(part.axis, gone, 0.0)
    x = example(config).double()
    torch.testing.assert_close(small(x), module(x))


@CONFIGS
def test_every_axis_but_latents_and_colours_is_in_one_group(config):
    touched = [(p.tensor, p.axis) for g in taesd.channel_groups(config) for p in g.slices]
    axes = {(n, a) for n, t in network(config).state_dict().items() for a in range(min(t.dim(), 2))}
    assert len(touched) == len(set(touched))
    assert axes - set(touched) == {("conv_in.weight", 1), ("conv_out.weight", 0), ("conv_out.bias", 0)}


@CONFIGS
def test_blocks_can_go_and_those_behind_move_up(config):
    names = [block.name for block in taesd.blocks(config)]
    assert names == ["levels.0.blocks.0", "levels.0.blocks.1", "levels.1.blocks.0", "levels.3.blocks.0"]
    module = network(config)
    removal = taesd.without_blocks(config, ["levels.0.blocks.0"])
    assert removal.config.levels[0].hidden == ((5, 8),)
    small = build(Arch(kind=f"taesd.{'decoder' if config is DECODER else 'encoder'}", config=removal.config))
    small.load_state_dict(depth.rename(module.state_dict(), removal, "levels.0.blocks.0"))
    assert torch.equal(small.levels[0].blocks[0].conv2.weight, module.levels[0].blocks[1].conv2.weight)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"latent_channels": 0}, "latent_channels must be positive"),
        ({"levels": LEVELS[1:]}, "3 levels; an f8 autoencoder has 4"),
        ({"levels": (replace(LEVELS[0], step=7), *LEVELS[1:])}, "levels.0: step 7, but level 1 is 6 wide"),
        ({"levels": (replace(LEVELS[0], hidden=((8, 0),)), *LEVELS[1:])}, "levels.0: every width must be positive"),
    ],
)
def test_what_could_not_be_built_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(DECODER, **change)
