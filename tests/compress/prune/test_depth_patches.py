"""Patches are numpy's least squares, cost what they are said to cost, rebuild, and export."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from compress.components import build, load_variant, save_variant, taesd, text_encoder, unet, vae
from compress.components._unet_config import BlockConfig, Grammar, StageConfig, TransformerConfig, UNetConfig
from compress.nn import cost
from compress.prune import depth
from compress.prune._network import cut, everything, measured, network_of, removal_of, saved_by
from compress.prune._patch_fit import Moments, fit_patches
from compress.records import Arch, Variant

MID = vae.Mid(before=(16,), attention=vae.Attention(keys=12, values=8, scale_width=16), after=(8,))
CLASSIC = vae.DecoderConfig(
    latent_channels=8,
    norm_groups=4,
    linear_path=False,
    mid=MID,
    levels=(
        vae.Level(width=16, hidden=(16, 12), step=16),
        vae.Level(width=16, hidden=(8,), step=16),
        vae.Level(width=8, hidden=(8, 4), step=8, entry=16),
        vae.Level(width=8, hidden=(8,), step=None),
    ),
)
LAYER = TransformerConfig(self_heads=2, cross_heads=2, feed_forward=12)


def stage(width, hidden, layers, *, resample=False):
    blocks = tuple(BlockConfig(hidden=h, transformer=(LAYER,) * n) for h, n in zip(hidden, layers, strict=True))
    return StageConfig(width=width, head_dim=4, separable=False, resample=resample, blocks=blocks)


UNET = UNetConfig(
    in_channels=4,
    out_channels=4,
    context_width=12,
    time_width=16,
    norm_groups=4,
    grammar=Grammar(
        time="add", gate="gelu", attention="softmax", shared_kv="none", projection="conv", depth_multiplier=1
    ),
    down=(stage(8, (8, 8), (1, 0), resample=True), stage(16, (16, 8), (2, 0))),
    mid=stage(16, (16, 16), (1, 0)),
    up=(stage(16, (16, 16, 16), (1, 0, 0), resample=True), stage(8, (8, 8, 8), (0, 0, 0))),
)
TEXT = text_encoder.TextEncoderConfig(
    vocabulary=40,
    positions=9,
    width=12,
    head_dim=4,
    activation="gelu",
    layers=tuple(text_encoder.TextLayerConfig(heads=h, feed_forward=f) for h, f in ((3, 20), (2, 8), (1, 12))),
)
TAESD = taesd.DecoderConfig(
    latent_channels=8,
    levels=tuple(
        taesd.Level(width=w, hidden=((w, w),) * n, step=s)
        for w, n, s in ((8, 3, 6), (6, 1, 6), (6, 2, 4), (4, 1, None))
    ),
)
ARCHS = {
    "vae": Arch(kind="vae.decoder", config=CLASSIC),
    "tiny": Arch(kind="vae.decoder", config=tiny.DECODER),
    "encoder": Arch(kind="vae.encoder", config=tiny.ENCODER),
    "taesd": Arch(kind="taesd.decoder", config=TAESD),
    "unet": Arch(kind="unet.unet", config=UNET),
    "text": Arch(kind="text_encoder.text_encoder", config=TEXT),
}
every_arch = pytest.mark.parametrize("name", ARCHS)
PATCHES = pytest.mark.parametrize("patch", ["affine", "pointwise"])


def inputs(name, count=3):
    generator = torch.Generator().manual_seed(5)
    if name == "text":
        return (torch.randint(0, 40, (count, 9), generator=generator),)
    if name == "encoder":
        return (torch.rand(count, 3, 32, 32, generator=generator),)
    if name != "unet":
        return (torch.randn(count, 8, 4, 4, generator=generator),)
    latents = torch.randn(count, 4, 8, 8, generator=generator)
    return latents, 900 * torch.rand(count, generator=generator), torch.randn(count, 5, 12, generator=generator)


def stage_of(name, tmp_path):
    arch = ARCHS[name]
    module = tiny._seeded(build(arch), 0)
    if name in ("vae", "tiny", "taesd"):
        module.conv_out.weight.mul_(0.1)
        module.conv_out.bias.add_(0.5)
    variant = Variant(component=name, arch=arch, module=module)
    return replace(tiny.stage_input(tmp_path, variant, teacher=module), inputs=inputs(name))


def recorded(module, name, given):
    """Input and output of one submodule, channels last, in float64."""
    kept = []
    hook = module.get_submodule(name).register_forward_hook(lambda _, args, out: kept.append((args[0], out)))
    module(*given)
    hook.remove()
    rows = [
        (x if x.dim() == 3 else x.movedim(1, -1)).double().reshape(-1, x.shape[-1 if x.dim() == 3 else 1])
        for x in kept[0]
    ]
    return [x.numpy() for x in rows]


# ---------------------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_the_fit_is_least_squares_whatever_the_pieces(full, ridge):
    rng = np.random.default_rng(0)
    x, residual = rng.normal(2.0, 3.0, (60, 5)), rng.normal(-1.0, 1.0, (60, 5))
    x[:, 1] += x[:, 0]
    moments = Moments(full=full)
    for start, stop in ((0, 7), (7, 8), (8, 60)):
        moments.add(torch.from_numpy(x[start:stop]), torch.from_numpy(residual[start:stop]))
    fit = moments.fit(ridge)
    penalty = np.sqrt(ridge * x.var(axis=0).mean() * len(x))
    columns = [list(range(5))] * 5 if full else [[i] for i in range(5)]
    for i, used in enumerate(columns):  # the ridge as more rows, the bias as one more column that these rows do not see
        rows = np.hstack([x[:, used], np.ones((60, 1))])
        extra = np.hstack([penalty * np.eye(len(used)), np.zeros((len(used), 1))])
        wanted = np.linalg.lstsq(np.vstack([rows, extra]), np.append(residual[:, i], np.zeros(len(used))), rcond=None)[
            0
        ]
        found = fit.weight[i].numpy() if full else fit.weight[i : i + 1].numpy()
        np.testing.assert_allclose([*found, fit.bias[i]], wanted, rtol=1e-9, atol=1e-11)


def test_a_channel_that_never_changes_stays_finite():
    for full in (False, True):
        moments = Moments(full=full)
        x = torch.ones(8, 3, dtype=torch.float64)
        moments.add(x, 2 * x)
        fit = moments.fit(0.0)
        assert fit.weight.isfinite().all()
        torch.testing.assert_close((x[0] * fit.weight if not full else fit.weight @ x[0]) + fit.bias, 2 * x[0])


@every_arch
@PATCHES
def test_a_patched_block_is_numpys_least_squares_of_the_block_it_replaces(name, patch, tmp_path):
    """Of every block: the patch's output is the best linear function of the block's input, over all inputs."""
    given = stage_of(name, tmp_path)
    network = network_of(given.variant.arch, given.variant.module.state_dict())
    for block in network.kind.blocks(network.arch.config):
        removal = removal_of(network.arch, [block.name], patch)
        (site,) = removal.patches
        fits = fit_patches(given.variant.module, given.inputs, removal.patches, 0.0)
        small = cut(network, block, removal, fits).module()
        x, out = recorded(given.variant.module, site.block, given.inputs)
        _, made = recorded(small, site.place, given.inputs)
        base = x if site.shortcut is None else np.zeros_like(out)
        columns = (
            [[i] for i in range(x.shape[1])] if site.patch == "affine" else [list(range(x.shape[1]))] * out.shape[1]
        )
        for i, used in enumerate(columns):
            rows = np.hstack([x[:, used], np.ones((len(x), 1))])
            best = rows @ np.linalg.lstsq(rows, out[:, i] - base[:, i], rcond=None)[0] + base[:, i]
            np.testing.assert_allclose(made[:, i], best, rtol=1e-4, atol=2e-5)


# ------------------------------------------------------------------------------------------------------------- structure


@every_arch
@pytest.mark.parametrize("patch", [None, "affine", "pointwise"])
def test_what_is_said_to_be_saved_is_what_is_saved(name, patch):
    """The whole network is measured once; each smaller one is counted here again, its MACs for some of the blocks."""
    arch = ARCHS[name]
    whole = measured(arch, 64)
    free = [b for b in everything(network_of(arch, {}).kind, arch) if b.fixed is None]
    for number, block in enumerate(free):
        removal = removal_of(arch, [block.name], patch)
        rest = Arch(kind=arch.kind, config=removal.config)
        saved = saved_by(whole, block, removal)
        with torch.device("meta"):
            assert saved.parameters == whole.parameters - sum(p.numel() for p in build(rest).parameters())
        if number % 5 == 1 or block.unit == "stage":
            assert saved.macs == whole.macs - measured(rest, 64).macs


@every_arch
@PATCHES
def test_everything_can_be_patched_and_the_result_rebuilds_and_computes(name, patch, tmp_path):
    given = stage_of(name, tmp_path)
    result = depth.apply(given, depth.Config(remove=("*",), patch=patch, samples=2, latent_size=32))
    assert all(row.met for row in result.achieved) and not network_of(result.arch, {}).kind.blocks(result.arch.config)
    save_variant(replace(given.variant, arch=result.arch, module=result.module), tmp_path / "saved")
    back = load_variant(tmp_path / "saved")
    made = result.module(*given.inputs)
    assert back.arch == result.arch and torch.equal(back.module(*given.inputs), made)
    assert made.isfinite().all() and made.shape == given.variant.module(*given.inputs).shape
    assert patch in repr(result.arch.config)


@pytest.mark.parametrize("name", ["tiny", "taesd", "unet"])
def test_patches_repair_more_the_more_they_can_say(name, tmp_path):
    """On the inputs that they were fitted on, at the block itself: nothing, affine, pointwise."""
    given = stage_of(name, tmp_path)
    block = network_of(given.variant.arch, {}).kind.blocks(given.variant.arch.config)[1]
    network = network_of(given.variant.arch, given.variant.module.state_dict())
    site = removal_of(network.arch, [block.name], "affine").patches[0].block  # an emptied attention goes with its layer
    x, out = recorded(given.variant.module, site, given.inputs)
    errors = [float(np.square(out - x).mean())]
    for patch in ("affine", "pointwise"):
        removal = removal_of(network.arch, [block.name], patch)
        fits = fit_patches(given.variant.module, given.inputs, removal.patches, 0.0)
        made = recorded(cut(network, block, removal, fits).module(), removal.patches[0].place, given.inputs)[1]
        errors.append(float(np.square(out - made).mean()))
    assert errors[0] > errors[1] > errors[2] > 0


def test_a_patch_behind_a_shortcut_costs_nothing(tmp_path):
    given = stage_of("vae", tmp_path)
    plain, patched = (
        depth.apply(given, depth.Config(remove=("levels.2.resnets.0",), patch=patch, samples=2))
        for patch in ("none", "pointwise")
    )
    assert plain.arch == patched.arch and plain.arch.config.levels[2].hidden == ("shortcut", 4)
    old = given.variant.module.get_submodule("levels.2.resnets.0.shortcut").weight
    assert torch.equal(plain.module.levels[2].resnets[0].shortcut.weight, old)
    assert not torch.allclose(patched.module.levels[2].resnets[0].shortcut.weight, old, atol=1e-3)


def test_patches_are_fitted_on_all_inputs_and_chosen_on_some(tmp_path):
    given = stage_of("tiny", tmp_path)
    config = depth.Config(blocks=1, patch="affine", samples=1, latent_size=4)
    one, three = (
        depth.carry_out(replace(given, inputs=x), depth.propose(given, config))
        for x in (inputs("tiny", 1), inputs("tiny"))
    )
    names = [n for n in one.module.state_dict() if one.module.state_dict()[n].dim() == 3]
    assert one.arch == three.arch and names
    assert not any(torch.equal(one.module.state_dict()[n], three.module.state_dict()[n]) for n in names)


@pytest.mark.parametrize("name", ["tiny", "vae", "taesd"])
@PATCHES
def test_the_streams_are_still_cut_with_their_patches(name, patch, tmp_path):
    """Silence a channel in all its readers: cutting it then changes nothing, patches included."""
    from compress.nn.structure import take_channels

    given = stage_of(name, tmp_path)
    result = depth.apply(given, depth.Config(remove=("*",), patch=patch, samples=1))
    kind = network_of(result.arch, {}).kind
    groups = kind.channel_groups(result.arch.config)
    state = {n: t.clone() for n, t in result.module.state_dict().items()}
    kept = {
        g.name: torch.arange(g.width) if "out" in g.name or g.width % 8 else torch.arange(g.width // 2)
        for g in groups
        if g.norm_groups == 1
    }
    assert kept
    for group in groups:
        for part in group.slices if group.name in kept else ():
            if part.role == "reads":
                state[part.tensor].narrow(part.axis, len(kept[group.name]), group.width - len(kept[group.name])).zero_()
    module = build(result.arch)
    module.load_state_dict(state)
    widths = {n: len(k) for n, k in kept.items()}
    small = build(Arch(kind=result.arch.kind, config=kind.with_widths(result.arch.config, widths)))
    small.load_state_dict(take_channels(state, groups, kept))
    torch.testing.assert_close(small(*given.inputs), module(*given.inputs), rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize(
    "name, affine, pointwise",
    [
        ("vae", ("levels.0.resnets.0", "levels.2.resnets.0"), ("mid.attention", "levels.0.resnets.1")),
        ("unet", ("up_blocks.1.resnets.0", "down_blocks.1.attentions.0.transformer_blocks.0"), ("down_blocks.0.resnets.1", "down_blocks.1.attentions.0.transformer_blocks.1")),
        ("text", ("encoder.layers.1",), ("encoder.layers.0",)),
    ],
)  # fmt: skip
def test_patches_of_both_kinds_export_in_float_and_in_8_bits(name, affine, pointwise, tmp_path):
    """In one file: an affine patch is kept in float, a pointwise one is a layer like any other, here in 8 bits."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="extra onnx is not installed")
    from compress.export import onnx
    from compress.quantize import rtn

    given = stage_of(name, tmp_path)
    variant = given.variant
    for patch, picked in (("affine", affine), ("pointwise", pointwise)):
        config = depth.Config(remove=picked, patch=patch, samples=1)
        pruned = depth.apply(replace(given, variant=variant), config)
        assert patch in repr(pruned.arch.config)
        variant = replace(variant, arch=pruned.arch, module=pruned.module)
    module = rtn.apply(replace(given, variant=variant), rtn.Config(bits=8, clip=False)).module
    assert any(".mix" in n for n, m in module.named_modules() if type(m).__name__ in ("QConv2d", "QLinear"))
    example = tuple(x[:1] for x in given.inputs)
    onnx.export(module, example, tmp_path / "both.onnx", onnx.Config(dynamic=False), metadata={})
    run = onnx.load(tmp_path / "both.onnx", threads=1)
    torch.testing.assert_close(run(*example), module(*example), rtol=1e-3, atol=1e-4)


def test_cost_counts_patches():
    config = replace(TEXT, layers=("pointwise", TEXT.layers[1], "affine"))
    arch = Arch(kind="text_encoder.text_encoder", config=config)
    layers = {layer.name: layer for layer in cost.measure(build(arch), [inputs("text", 1)[0]]).layers}
    assert (layers["encoder.layers.0.mix"].macs, layers["encoder.layers.0.mix"].parameters) == (9 * 144, 156)
    assert (layers["encoder.layers.2"].macs, layers["encoder.layers.2"].parameters) == (0, 24)
    assert unet.blocks(UNET)
