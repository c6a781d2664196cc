"""The UNet's own statements: published sizes, diffusers' outputs, what may be cut and what is left then."""

import importlib.util
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compress import components
from compress.components import build, unet
from compress.components._unet_config import BlockConfig, Grammar, StageConfig, TransformerConfig, UNetConfig
from compress.nn.structure import example_inputs, take_channels
from compress.prune import depth, width
from compress.records import Arch, Prediction

PUBLISHED = [  # parameters and MACs at a 64x64 latent, as readers of arXiv:2311.16567 give them
    ("mobilediffusion/unet", 386e6, 182e9),
    ("mobilediffusion-lite/unet", 278e6, 153e9),
]


def whole(hidden, self_heads, cross_heads, feed_forward, layers=1):
    layer = TransformerConfig(self_heads=self_heads, cross_heads=cross_heads, feed_forward=feed_forward)
    return BlockConfig(hidden=hidden, transformer=(layer,) * layers)


def bare(hidden):
    return BlockConfig(hidden=hidden, transformer=())


def stage(width, blocks, *, resample=False, separable=False, head_dim=4):
    return StageConfig(width=width, head_dim=head_dim, separable=separable, resample=resample, blocks=blocks)


MOBILE = UNetConfig(
    in_channels=8,
    out_channels=8,
    context_width=12,
    time_width=20,
    norm_groups=4,
    grammar=Grammar(
        time="scale_shift",
        gate="swish",
        attention="softmax",
        shared_kv="self",
        projection="linear",
        depth_multiplier=2,
    ),
    down=(
        stage(8, (bare(8),), resample=True),
        stage(16, (whole(12, 2, 3, 20, layers=2), whole(16, 0, 2, 12)), separable=True),
    ),
    mid=None,
    up=(
        stage(16, (whole(8, 2, 2, 12), bare(16), whole(16, 0, 2, 0)), resample=True, separable=True),
        stage(8, (bare(8), bare(4))),
    ),
)
CLASSIC = UNetConfig(
    in_channels=4,
    out_channels=4,
    context_width=12,
    time_width=32,
    norm_groups=4,
    grammar=Grammar(
        time="add", gate="gelu", attention="softmax", shared_kv="none", projection="conv", depth_multiplier=1
    ),
    down=(stage(8, (whole(8, 2, 2, 32),) * 2, resample=True), stage(16, (bare(16),) * 2)),
    mid=stage(16, (whole(16, 2, 2, 64), bare(16)), head_dim=8),
    up=(stage(16, (bare(16),) * 3, resample=True), stage(8, (whole(8, 2, 2, 32),) * 3)),
)
BOTH = pytest.mark.parametrize("config", [MOBILE, CLASSIC], ids=["mobile", "classic"])


def seeded(config, seed=0):
    """A UNet whose every tensor matters: norms and biases are random too."""
    module = build(Arch(kind="unet.unet", config=config)).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        spread = 0.3 if tensor.dim() == 1 else (tensor[0].numel()) ** -0.5
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread + ("norm" in name and "weight" in name))
    return module


def inputs(config, count=2, size=4):
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(count, config.in_channels, size, size, generator=generator)
    steps = torch.tensor([3.0, 711.0])[:count]
    return latents, steps, torch.randn(count, 5, config.context_width, generator=generator)


# ------------------------------------------------------------------------------------------------------------- counts


def on_meta(name):
    arch = components.read_arch(components.find(name))
    kind = components.kind_of(arch.kind)
    with torch.device("meta"):
        module = kind.build(arch.config).eval()
    return module, example_inputs(kind, arch.config, 512)


def macs(module, arguments):
    """Convolutions, linear layers and both products of attention; torch counts two operations each."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = module(*arguments)
    return counter.get_total_flops() // 2, output


@pytest.mark.parametrize("name, parameters, published_macs", PUBLISHED)
def test_mobilediffusion_has_its_published_size(name, parameters, published_macs):
    module, arguments = on_meta(name)
    counted, output = macs(module, arguments)
    assert sum(p.numel() for p in module.parameters()) == pytest.approx(parameters, rel=0.005)
    assert counted == pytest.approx(published_macs, rel=0.005)
    assert arguments[0].shape == output.shape == (1, 8, 64, 64)


def test_stable_diffusion_has_its_exact_size():
    module, arguments = on_meta("stable-diffusion-1.5/unet")
    assert sum(p.numel() for p in module.parameters()) == 859_520_964
    assert macs(module, arguments)[1].shape == (1, 4, 64, 64)


@pytest.mark.parametrize("name", [name for name, *_ in PUBLISHED])
def test_mobilediffusion_keeps_to_its_layer_table(name):
    """11 ResNet blocks, no mid block, no self-attention above 16x16, none at all at 64x64."""
    module, _ = on_meta(name)
    names = [n for n, m in module.named_modules() if n.rpartition(".")[2] in ("attn1", "attn2", "time_emb_proj")]
    assert sum(n.endswith("time_emb_proj") for n in names) == 11 and module.mid_block is None
    found = {
        (stage, kind): sum(n.startswith(stage) and n.endswith(kind) for n in names)
        for stage in ("down_blocks.0", "down_blocks.1", "down_blocks.2", "up_blocks.0", "up_blocks.1", "up_blocks.2")
        for kind in ("attn1", "attn2")
    }
    deep = 6 if "lite" in name else 9
    assert list(found.values()) == [0, 0, 0, 1, 6, 6, deep, deep, 0, 2, 0, 0]


def test_attention_is_counted_by_hand():
    """Both products of all attentions, by the layer table alone: the rest is what hooks on layers count."""
    module, arguments = on_meta("mobilediffusion/unet")
    self_attention = (6 + 9) * 2 * 256 * 256 * 1024
    cross_attention = (6 + 9) * 2 * 256 * 77 * 1024 + 3 * 2 * 1024 * 77 * 640
    layers = components.component_cost("mobilediffusion/unet", 512).layers
    convolutions_and_linears = sum(x.macs for x in layers if x.kind in ("Conv2d", "Linear"))
    assert macs(module, arguments)[0] == convolutions_and_linears + self_attention + cross_attention


# ------------------------------------------------------------------------------------------------------- what it does


@BOTH
@pytest.mark.parametrize("attention", ["softmax", "relu"])
def test_every_input_reaches_every_picture(config, attention):
    module = seeded(replace(config, grammar=replace(config.grammar, attention=attention)))
    latents, steps, context = inputs(config)
    output = module(latents, steps, context)
    assert output.shape == latents.shape and output.isfinite().all()
    for changed in (
        (latents + 1, steps, context),
        (latents, steps + 9, context),
        (latents, steps, context.flip(1) * 2),
    ):
        assert not torch.allclose(module(*changed), output, atol=1e-4)
    # pictures of one batch do not see each other
    torch.testing.assert_close(module(latents[:1], steps[:1], context[:1]), output[:1], rtol=1e-4, atol=1e-5)


def test_softmax_attention_does_not_care_for_the_order_of_the_text():
    module, (latents, steps, context) = seeded(MOBILE), inputs(MOBILE)
    torch.testing.assert_close(
        module(latents, steps, context.flip(1)), module(latents, steps, context), rtol=1e-4, atol=1e-5
    )


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers, the oracle, is not installed")
@pytest.mark.parametrize("grammar", ["classic", "sd2", "scale_shift", "bk-sdm"])
def test_outputs_and_names_are_those_of_diffusers(grammar):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import UNet2DConditionModel

    linear, shift, blocks = grammar == "sd2", grammar == "scale_shift", 1 if grammar == "bk-sdm" else 2
    torch.manual_seed(0)
    theirs = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=blocks,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type=None if grammar == "bk-sdm" else "UNetMidBlock2DCrossAttn",
        attention_head_dim=2,  # which diffusers uses as the number of heads
        cross_attention_dim=12,
        norm_num_groups=4,
        use_linear_projection=linear,
        resnet_time_scale_shift="scale_shift" if shift else "default",
    ).eval()
    ours_config = replace(
        CLASSIC,
        grammar=replace(
            CLASSIC.grammar, projection="linear" if linear else "conv", time="scale_shift" if shift else "add"
        ),
        mid=None if grammar == "bk-sdm" else CLASSIC.mid,
        down=tuple(replace(s, blocks=s.blocks[:blocks]) for s in CLASSIC.down),
        up=tuple(replace(s, blocks=s.blocks[: blocks + 1]) for s in CLASSIC.up),
    )
    ours = build(Arch(kind="unet.unet", config=ours_config)).requires_grad_(False)
    state = {name: torch.randn_like(tensor) * 0.2 for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict(state)
    ours.load_state_dict(state)
    latents, steps, context = inputs(CLASSIC, size=8)
    with torch.no_grad():
        expected = theirs(latents, steps, context).sample
    torch.testing.assert_close(ours(latents, steps, context), expected, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- what may go


@BOTH
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10)
def test_channels_cut_by_groups_fit_the_configuration_with_those_widths(config, seed):
    """Any widths, any channels: the cut tensors load into the network built from the new configuration."""
    generator = torch.Generator().manual_seed(seed)
    groups, widths, kept = unet.channel_groups(config), {}, {}
    for group in groups:
        many = int(torch.randint(1, group.width // group.norm_groups + 1, (1,), generator=generator))
        widths[group.name] = group.norm_groups * many
        kept[group.name] = torch.randperm(group.width, generator=generator)[: widths[group.name]].sort().values
    cut = build(Arch(kind="unet.unet", config=unet.with_widths(config, widths)))
    cut.load_state_dict(take_channels(build(Arch(kind="unet.unet", config=config)).state_dict(), groups, kept))
    assert {g.name: g.width for g in unet.channel_groups(cut.config)} == widths


@BOTH
def test_cutting_what_nobody_reads_changes_nothing(config):
    """Heads and inner channels whose readers are zero can go, and take exactly the right ones along."""
    module = seeded(config)
    groups = [g for g in unet.channel_groups(config) if g.norm_groups == 1]  # a GroupNorm would see what is missing
    state, kept = module.state_dict(), {}
    for group in groups:
        stays = torch.arange(group.width) % 2 == 1
        kept[group.name] = stays.nonzero()[:, 0]
        for part in group.slices:
            if part.role == "reads":
                axis = state[part.tensor].movedim(part.axis, 0)
                axis[~stays.repeat_interleave(part.span)] = 0
    module.load_state_dict(state)
    cut_config = unet.with_widths(config, {g.name: len(kept[g.name]) for g in groups})
    cut = build(Arch(kind="unet.unet", config=cut_config)).requires_grad_(False)
    cut.load_state_dict(take_channels(state, groups, kept))
    torch.testing.assert_close(cut(*inputs(config)), module(*inputs(config)), rtol=1e-4, atol=1e-5)


@BOTH
def test_cutting_dead_norm_groups_changes_nothing(config):
    """Whole norm groups inside a ResNet block, with as many groups fewer: what is left does not notice."""
    module = seeded(config)
    group = unet.channel_groups(config)[0]
    assert group.name == "down_blocks.0.resnets.0.hidden"
    state = module.state_dict()
    half = group.width // 2
    state["down_blocks.0.resnets.0.conv2.weight"][:, half:] = 0
    module.load_state_dict(state)
    cut = take_channels(state, [group], {group.name: torch.arange(half)})
    block, before = module.down_blocks[0].resnets[0], module.down_blocks[0].resnets[0].state_dict()
    shape = unet.ResnetShape(
        in_channels=8,
        hidden=half,
        out_channels=8,
        time_width=config.time_width,
        time=config.grammar.time,
        norm_groups=4,
        multiplier=None,
    )
    small = unet.TimedResnetBlock(shape)
    small.norm2 = nn.GroupNorm(config.norm_groups // 2, half, eps=1e-5)
    small.load_state_dict({name: cut[f"down_blocks.0.resnets.0.{name}"] for name in before})
    x, time = torch.randn(1, 8, 4, 4), torch.randn(1, config.time_width)
    torch.testing.assert_close(small(x, time), block(x, time), rtol=1e-4, atol=1e-5)


@BOTH
def test_groups_state_the_true_width_and_overlap_nowhere(config):
    state = build(Arch(kind="unet.unet", config=config)).state_dict()
    seen = set()
    for group in unet.channel_groups(config):
        for part in group.slices:
            entries = {(part.tensor, part.axis, part.offset + i) for i in range(group.width * part.span)}
            assert not entries & seen and max(e[2] for e in entries) < state[part.tensor].shape[part.axis]
            seen |= entries
    # the inside of each block is covered from end to end
    for name, tensor in state.items():
        last = name.rpartition(".")[0].rpartition(".")[2]
        written = last in ("time_emb_proj", "to_q", "to_k", "to_v", "norm2") and "transformer_blocks" not in name
        if written or last in ("to_q", "to_k", "to_v", "proj"):
            assert all((name, 0, i) in seen for i in range(tensor.shape[0])), name


@BOTH
def test_a_block_that_adds_nothing_can_be_taken_out(config):
    """For every block: silence it, then remove it; the output is the same, and the tensors fit."""
    for block in unet.blocks(config):
        if block.fixed:
            continue
        module = seeded(config)
        removal = unet.without_blocks(config, [block.name])
        silent = ("conv2.", "conv2.pointwise.", "attn1.to_out.0.", "attn2.to_out.0.", "ff.net.2.")
        prefixes = [f"{block.name}.{part}" for part in silent] + [f"{name}proj_out." for name in removal.dropped]
        state = module.state_dict()
        for name, tensor in state.items():
            if any(name.removesuffix(end) in prefixes for end in ("weight", "bias")):
                tensor.zero_()
        module.load_state_dict(state)
        without = build(Arch(kind="unet.unet", config=removal.config)).requires_grad_(False)
        without.load_state_dict(depth.rename(state, removal, block.name))
        torch.testing.assert_close(without(*inputs(config)), module(*inputs(config)), rtol=1e-4, atol=1e-5)
        assert len(unet.blocks(removal.config)) == len(unet.blocks(config)) - 1


def test_what_cannot_be_taken_out_says_why():
    blocks = {b.name: b.fixed for b in unet.blocks(MOBILE)}
    assert set(blocks.values()) == {None}
    assert {"down_blocks.1.attentions.0.transformer_blocks.1", "up_blocks.0.attentions.2.transformer_blocks.0"} <= set(
        blocks
    )
    assert "up_blocks.0.attentions.1.transformer_blocks.0" not in blocks
    units = {b.name: b.fixed for b in unet.units(MOBILE)}
    narrow, wide = "down_blocks.1.resnets.0+up_blocks.0.resnets.0", "down_blocks.1.resnets.1+up_blocks.0.resnets.1"
    assert units[narrow] == "down_blocks.1.resnets.1 would get 8 channels instead of 16" and units[wide] is None
    assert "only the innermost stage can go" in units["down_blocks.0+up_blocks.1"]
    assert units["down_blocks.1+up_blocks.0"] == "up_blocks.1.resnets.0 would get 16 channels instead of 24"
    with pytest.raises(ValueError, match="cannot be removed: down_blocks.1.resnets.1 would get 8 channels"):
        unet.without_blocks(MOBILE, [narrow])
    with pytest.raises(ValueError, match="down_blocks.7 is no block; blocks are down_blocks.0.resnets.0,"):
        unet.without_blocks(MOBILE, ["down_blocks.7"])


def test_of_a_block_that_changes_the_channels_the_shortcut_stays():
    removal = unet.without_blocks(MOBILE, ["up_blocks.0.resnets.0"])
    state = depth.rename(seeded(MOBILE).state_dict(), removal, "up_blocks.0.resnets.0")
    left = {n for n in state if n.startswith("up_blocks.0.resnets.0.")}
    assert left == {f"up_blocks.0.resnets.0.conv_shortcut.{t}" for t in ("weight", "bias")}


def test_several_blocks_at_once_are_the_same_as_one_by_one():
    names = [f"down_blocks.1.attentions.0.transformer_blocks.{k}" for k in (0, 1)]
    both = unet.without_blocks(MOBILE, names)
    first = unet.without_blocks(MOBILE, names[:1])
    assert first.renamed[f"{names[1]}."] == f"{names[0]}." and not first.dropped
    second = unet.without_blocks(first.config, names[:1])
    assert both.config == second.config and both.dropped == second.dropped == ("down_blocks.1.attentions.0.",)


def test_heads_are_cut_in_steps_that_kernels_like():
    """8 channels are two heads of 4: so many heads go as make the step whole."""
    groups = {g.name: g for g in unet.channel_groups(CLASSIC)}
    heads = groups["down_blocks.0.attentions.0.transformer_blocks.0.attn1.heads"]
    assert (heads.width, heads.unit) == (2, 4)
    for round_to, expected in ((8, 2), (4, 1)):
        widths = width.new_widths((heads,), width.Config(ratio=0.5, round_to=round_to))
        assert widths == {heads.name: expected}
    state = seeded(CLASSIC).state_dict()
    scores = width.magnitude(state, heads)
    state[heads.name.replace("heads", "to_q.weight")][4:] *= 100
    assert scores.shape == (2,) and width.magnitude(state, heads)[1] > scores[1]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"norm_groups": 3}, "down_blocks.0.resnets.0: 8 channels are not a multiple of 3 norm groups"),
        ({"norm_groups": 0}, "norm_groups must be positive"),
        ({"up": MOBILE.up[:1]}, "leaves 5 skips, but the blocks on the way up take 3"),
        ({"down": ()}, "at least one stage each"),
        ({"mid": stage(16, (bare(16),))}, "mid: needs two blocks"),
        ({"mid": stage(8, (bare(8), bare(8)))}, "mid: 8 channels, but the way down ends with 16"),
        (
            {"down": (replace(MOBILE.down[0], resample=False), MOBILE.down[1])},
            "0 halvings on the way down, 1 doublings",
        ),
        (
            {"down": (MOBILE.down[0], stage(16, (whole(12, 0, 0, 0), bare(16))))},
            "down_blocks.1.attentions.0.transformer_blocks.0: self_heads, cross_heads and feed_forward",
        ),
        ({"grammar": replace(MOBILE.grammar, depth_multiplier=0)}, "depth_multiplier must be positive"),
    ],
)
def test_what_could_not_be_built_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(MOBILE, **change)


@BOTH
@pytest.mark.parametrize(
    "method, config_of", [(depth, depth.Config(blocks=3)), (width, width.Config(ratio=0.5, round_to=1, groups="inner"))]
)
def test_methods_can_say_what_they_would_leave(config, method, config_of):
    """Prediction needs all of a UNet's inputs, not only its latents."""
    arch = Arch(kind="unet.unet", config=config)
    prediction = method.predict(Prediction(ends=(arch,)), config_of)
    for end in (prediction.ends[0], prediction.ends[-1]):
        module = build(end)
        assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in build(arch).parameters())
        assert module(*inputs(end.config)).isfinite().all()
