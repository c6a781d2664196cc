"""The Stable Diffusion grammar (1x1 shortcuts, mid block, attention): what may be cut, and what the cut network is."""

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.components import build, vae
from compress.components._kinds import arch_from_json, arch_to_json
from compress.errors import UserError
from compress.nn.structure import take_channels
from compress.prune import depth, width
from compress.records import Arch, Variant

MID = vae.Mid(before=(16,), attention=vae.Attention(keys=12, values=8, scale_width=16), after=(8,))
SIZES = {"latent_channels": 8, "norm_groups": 4, "linear_path": False, "quant_conv": True, "image_range": (-1.0, 1.0)}
LEVELS = (
    vae.Level(width=16, hidden=(16, 12), step=16),
    vae.Level(width=16, hidden=(8,), step=16),
    vae.Level(width=8, hidden=(8, 4), step=8, entry=16),
    vae.Level(width=8, hidden=(8,), step=None, entry=8),  # a shortcut between equal widths
)
UPWARD = (
    vae.Level(width=8, hidden=(8,), step=8),
    vae.Level(width=16, hidden=(8, 8), step=16, entry=8),
    vae.Level(width=12, hidden=(8,), step=12, entry=16),  # no norm sees its stream
    vae.Level(width=16, hidden=(16, 8), step=None, entry=12),
)
DECODER = vae.DecoderConfig(levels=LEVELS, mid=MID, **SIZES)
ENCODER = vae.EncoderConfig(levels=UPWARD, mid=MID, **SIZES)
CONFIGS = pytest.mark.parametrize("config", [DECODER, ENCODER], ids=["decoder", "encoder"])


def variant(config=DECODER):
    kind = "vae.decoder" if isinstance(config, vae.DecoderConfig) else "vae.encoder"
    arch = Arch(kind=kind, config=config)
    return Variant(component="tiny/decoder", arch=arch, module=tiny._seeded(build(arch), 0))


def example(config):
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return tiny.latents(2, 4) if config is DECODER else pictures


def unclamped(module):
    """Small values out of conv_out, so that hardly any pixel is clamped."""
    module.conv_out.weight.mul_(0.1)
    return module


class MaskedNorm(nn.Module):
    """GroupNorm over the kept channels of each group alone; the others come out as 0."""

    def __init__(self, norm, mask):
        super().__init__()
        self.norm, self.mask = norm, mask

    def forward(self, x):
        n, groups = x.shape[0], self.norm.num_groups
        mask = self.mask.reshape(1, groups, -1, 1)
        rows = x.reshape(n, groups, self.mask.numel() // groups, -1)
        count = mask.sum(dim=2, keepdim=True) * rows.shape[3]
        mean = (rows * mask).sum(dim=(2, 3), keepdim=True) / count
        variance = ((rows - mean).square() * mask).sum(dim=(2, 3), keepdim=True) / count
        normed = ((rows - mean) / (variance + self.norm.eps).sqrt()).reshape(x.shape)
        out = normed * self.norm.weight.reshape(1, -1, 1, 1) + self.norm.bias.reshape(1, -1, 1, 1)
        return out * self.mask.reshape(1, -1, 1, 1)


def hide(module, groups, kept):
    """Let no layer of the whole network see the removed channels: norms, readers, and scores of attention."""
    for group in groups:
        mask = torch.zeros(group.width, dtype=torch.float64)
        mask[kept[group.name]] = 1
        column = mask.reshape(1, -1, 1, 1)
        for name in {part.tensor.rpartition(".")[0] for part in group.slices if part.role == "norm"}:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, MaskedNorm(module.get_submodule(name), mask))
        for part in group.slices:
            layer = module.get_submodule(part.tensor.rpartition(".")[0])
            if part.role == "reads":
                layer.register_forward_pre_hook(lambda _, args, column=column: args[0] * column)
            elif group.name.endswith(".keys"):
                layer.register_forward_hook(lambda _, args, out, column=column: out * column)
    return module


@CONFIGS
@pytest.mark.parametrize("seed", [0, 1])
def test_cutting_equals_masking(config, seed):
    generator = torch.Generator().manual_seed(seed)
    groups = vae.channel_groups(config)
    kept = {
        g.name: width.keep_evenly(torch.rand(g.width, generator=generator), g.width // 2, g.norm_groups)
        for g in groups
        if g.width // 2 % g.norm_groups == 0
    }
    kept |= {g.name: torch.arange(g.width) for g in groups if g.name not in kept}
    assert sum(len(kept[g.name]) < g.width for g in groups) > 10
    whole = unclamped(variant(config).module).double()
    small = build(
        Arch(kind=variant(config).arch.kind, config=vae.with_widths(config, {n: len(k) for n, k in kept.items()}))
    )
    small.double().load_state_dict(take_channels(whole.state_dict(), groups, kept))
    x = example(config).double()
    torch.testing.assert_close(small(x), hide(whole, groups, kept)(x))


@CONFIGS
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_channels_cut_by_groups_fit_the_configuration_with_those_widths(config, seed):
    generator = torch.Generator().manual_seed(seed)
    groups = vae.channel_groups(config)
    widths, kept = {}, {}
    for group in groups:
        step = group.norm_groups
        widths[group.name] = step * int(torch.randint(1, group.width // step + 1, (1,), generator=generator))
        kept[group.name] = torch.randperm(group.width, generator=generator)[: widths[group.name]].sort().values
    whole = variant(config)
    cut = build(Arch(kind=whole.arch.kind, config=vae.with_widths(config, widths)))
    cut.load_state_dict(take_channels(whole.module.state_dict(), groups, kept))
    assert {g.name: g.width for g in vae.channel_groups(cut.config)} == widths


@CONFIGS
def test_groups_state_the_true_width_of_every_tensor_and_leave_none_out(config):
    state = variant(config).module.state_dict()
    groups = vae.channel_groups(config)
    touched = [(part.tensor, part.axis) for group in groups for part in group.slices]
    assert len(touched) == len(set(touched))
    for group in groups:
        assert all(state[part.tensor].shape[part.axis] == group.width for part in group.slices), group.name
    latents = "post_quant_conv" if config is DECODER else "quant_conv"
    fixed = {("conv_in.weight", 1), ("conv_out.weight", 0), (f"{latents}.weight", 0), (f"{latents}.weight", 1)}
    axes = {(n, a) for n, t in state.items() for a in range(min(t.dim(), 2))}
    biases = {("conv_out.bias", 0), (f"{latents}.bias", 0)}
    assert axes - set(touched) == fixed | biases


def test_a_level_that_changes_width_has_an_entry_of_its_own():
    groups = {group.name: group for group in vae.channel_groups(DECODER)}
    assert groups["levels.2.entry"].width == 16 and groups["levels.2.stream"].width == 8
    assert {p.tensor for p in groups["levels.2.entry"].slices if p.role == "reads"} == {
        "levels.2.resnets.0.conv1.weight",
        "levels.2.resnets.0.shortcut.weight",
    }
    assert "levels.0.entry" not in groups


def test_a_shortcut_stays_a_shortcut_where_the_widths_have_become_equal():
    config = vae.with_widths(DECODER, {"levels.2.entry": 8})
    level = build(Arch(kind="vae.decoder", config=config)).levels[2]
    assert config.levels[1].step == config.levels[2].entry == config.levels[2].width == 8
    assert isinstance(level.resnets[0].shortcut, nn.Conv2d) and isinstance(level.resnets[1].shortcut, nn.Identity)


def test_attention_keeps_its_scale_when_its_keys_are_cut():
    config = vae.with_widths(DECODER, {"mid.attention.keys": 4})
    assert build(Arch(kind="vae.decoder", config=config)).mid.attention.scale == 16**-0.5


@CONFIGS
def test_blocks_in_the_order_in_which_they_run(config):
    found = [block.name for block in vae.blocks(config)]
    ran = []
    module = variant(config).module
    for name in found:
        module.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    module(example(config))
    assert ran == found and not any(block.fixed for block in vae.blocks(config))


@CONFIGS
def test_what_goes_together_and_the_steps_that_stay(config):
    units = {unit.name: unit for unit in vae.units(config)}
    assert units["mid"].takes == ("mid.before.0", "mid.attention", "mid.after.0")
    twos = [i for i, level in enumerate(config.levels) if len(level.hidden) == 2]
    assert all(units[f"levels.{i}.resnets"].count == 2 for i in twos)
    fixed = {name for name, unit in units.items() if unit.fixed}
    assert fixed == {"levels.0", "levels.1", "levels.2"}
    with pytest.raises(
        ValueError, match="levels.1 cannot be removed: its step takes the stream to the next resolution"
    ):
        vae.without_blocks(config, ["levels.1"])
    for name in set(units) - fixed:
        removal = vae.without_blocks(config, [name])
        assert removal.config == vae.without_blocks(config, units[name].takes).config


@CONFIGS
def test_a_network_without_a_block_is_one_whose_block_adds_nothing(config):
    x = example(config)
    for name in (block.name for block in vae.blocks(config)):
        module = unclamped(variant(config).module)
        removal = vae.without_blocks(config, [name])
        small = build(Arch(kind=variant(config).arch.kind, config=removal.config))
        small.load_state_dict(depth.rename(module.state_dict(), removal, name))
        last = module.get_submodule(name).out if "attention" in name else module.get_submodule(name).conv2
        last.weight.zero_()
        last.bias.zero_()
        torch.testing.assert_close(small(x), module(x))


def test_a_mid_block_that_lost_everything_is_none():
    removal = vae.without_blocks(DECODER, ["mid.before.0", "mid.attention", "mid.after.0"])
    assert removal.config.mid is None
    assert not any("mid" in n for n in build(Arch(kind="vae.decoder", config=removal.config)).state_dict())


def test_the_methods_cut_it_too(tmp_path):
    stage = tiny.stage_input(tmp_path, variant(), teacher=variant().module)
    thin = width.apply(stage, width.Config(ratio=0.5, round_to=4))
    assert thin.achieved[0].met and thin.module(tiny.latents(1, 4)).isfinite().all()
    shallow = depth.apply(stage, depth.Config(blocks=3, samples=1, latent_size=4))
    assert shallow.achieved[0].met
    assert not shallow.skipped
    stages = depth.Config(blocks=2, units=("stages",), samples=1, latent_size=4)
    bare = depth.apply(stage, stages)
    assert bare.achieved[0].met and {s.name for s in bare.skipped} == {"levels.0", "levels.1", "levels.2"}


def with_level(index, **changes):
    return {"levels": tuple(replace(x, **changes) if i == index else x for i, x in enumerate(LEVELS))}


@pytest.mark.parametrize(
    "change, words",
    [
        (with_level(0, entry=16), "levels.0: an entry needs a level before it"),
        (with_level(3, hidden=()), "levels.3: an entry needs a level before it and a ResNet block behind it"),
        (with_level(2, entry=12), "levels.1: step 16, but level 2 is 12 wide at its entry"),
        (with_level(2, entry=6), "levels.2: 6 channels are not a multiple of 4"),
        (with_level(2, entry=None), "levels.1: step 16, but level 2 is 8 wide"),
        ({"mid": replace(MID, before=(6,))}, "mid: 6 channels are not a multiple of 4 norm groups"),
        ({"mid": replace(MID, after=(0,))}, "mid: 0 channels"),
        ({"mid": replace(MID, attention=vae.Attention(keys=0, values=8, scale_width=8))}, "mid.attention: keys"),
        ({"mid": vae.Mid(before=(), attention=None, after=())}, "mid: holds nothing; write mid: null"),
        ({"mid": replace(MID, after=("shortcut",))}, "mid: its blocks have no 1x1 shortcut"),
        (with_level(0, hidden=("shortcut",)), "levels.0: block 0 is 'shortcut', but has no 1x1 shortcut"),
        (with_level(2, hidden=("affine", 4)), "levels.2: block 0 is 'affine', but has a 1x1 shortcut"),
        ({"image_range": (1.0, -1.0)}, "image_range 1.0..-1.0 must rise"),
        ({"image_range": (0.0, float("inf"))}, "must rise"),
        ({"image_range": (float("nan"), 1.0)}, "must rise"),
        ({"scaling_factor": 0.0}, "scaling_factor 0.0 be positive"),
        ({"scaling_factor": float("nan")}, "scaling_factor nan be positive"),
    ],
)
def test_what_could_not_be_built_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(DECODER, **change)


def test_the_mid_blocks_stream_is_normalised_in_a_level_without_blocks():
    levels = (vae.Level(width=10, hidden=(), step=16), *LEVELS[1:])
    assert vae.channel_groups(replace(DECODER, levels=levels, mid=None))[0].norm_groups == 1
    with pytest.raises(ValueError, match="levels.0: 10 channels"):
        replace(DECODER, levels=levels)


@CONFIGS
def test_reads_back_from_json(config):
    arch = variant(config).arch
    assert arch_from_json(arch_to_json(arch), Path("arch.json")) == arch


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c["mid"].update(atention=None), "config has unknown keys: mid.atention"),
        (lambda c: c["mid"]["attention"].update(heads=8), "config has unknown keys: mid.attention.heads"),
        (lambda c: c["mid"]["attention"].pop("scale_width"), "config.mid.attention.*scale_width"),
        (lambda c: c.update(mid=True), "config.mid"),
        (lambda c: c.update(image_range=[0.0]), "config.image_range"),
        (lambda c: c.update(scaling_factor="large"), "config.scaling_factor"),
        (lambda c: c["levels"][2].update(entry="wide"), "config.levels.2.entry"),
    ],
)
def test_an_arch_file_that_is_wrong(change, words):
    data = arch_to_json(Arch(kind="vae.decoder", config=DECODER))
    change(data["config"])
    with pytest.raises(UserError, match=words):
        arch_from_json(data, Path("arch.json"))


def test_an_arch_file_from_before_the_new_keys_reads_as_before():
    data = arch_to_json(Arch(kind="vae.decoder", config=tiny.DECODER))
    for key in ("mid", "quant_conv", "image_range", "scaling_factor"):
        del data["config"][key]
    for level in data["config"]["levels"]:
        del level["entry"]
    assert arch_from_json(data, Path("arch.json")).config == tiny.DECODER
