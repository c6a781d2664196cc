"""A UNet loses what BK-SDM removes, to the published sizes; and its blocks are scored on all of its inputs."""

from dataclasses import replace

import pytest
import tiny
import torch

from compress import components
from compress.components import build, unet
from compress.components._unet_config import BlockConfig, Grammar, StageConfig, TransformerConfig, UNetConfig
from compress.errors import UserError
from compress.prune import depth
from compress.prune._network import measured
from compress.records import Arch, Prediction, Variant

SECOND = "down_blocks.*.resnets.1+up_blocks.*.resnets.1"  # of each stage, ResNet block and transformer
INNERMOST = "down_blocks.3+mid_block+up_blocks.0"
PUBLISHED = [("base", (SECOND,), 579.4), ("small", (SECOND, "mid_block"), 482.3), ("tiny", (SECOND, INNERMOST), 323.4)]
LAYER = TransformerConfig(self_heads=2, cross_heads=1, feed_forward=12)


def stage(width, layers, *, resample=False):
    blocks = tuple(BlockConfig(hidden=width, transformer=(LAYER,) * n) for n in layers)
    return StageConfig(width=width, head_dim=4, separable=False, resample=resample, blocks=blocks)


CONFIG = UNetConfig(
    in_channels=4,
    out_channels=4,
    context_width=6,
    time_width=8,
    norm_groups=4,
    grammar=Grammar(
        time="add", gate="gelu", attention="softmax", shared_kv="none", projection="conv", depth_multiplier=1
    ),
    down=(stage(8, (1, 0), resample=True), stage(12, (0, 0), resample=True), stage(12, (0,))),
    mid=stage(12, (1, 0)),
    up=(stage(12, (0, 0), resample=True), stage(12, (0, 0, 0), resample=True), stage(8, (0, 1, 0))),
)
ARCH = Arch(kind="unet.unet", config=CONFIG)


def inputs(count=2):
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(count, 4, 8, 8, generator=generator)
    return latents, torch.tensor([10.0, 800.0])[:count], torch.randn(count, 5, 6, generator=generator)


def stage_input(tmp_path, given=None):
    module = tiny._seeded(build(ARCH), 0)
    variant = Variant(component="tiny/unet", arch=ARCH, module=module)
    return replace(tiny.stage_input(tmp_path, variant, teacher=module), inputs=given or inputs())


@pytest.mark.parametrize("name, remove, millions", PUBLISHED)
def test_bk_sdm_has_its_published_sizes(name, remove, millions):
    """Kim et al. 2023 (arXiv:2305.15798), table 1: from Stable Diffusion's 859.5 million parameters."""
    arch = components.read_arch(components.find("stable-diffusion-1.5/unet"))
    (end,) = depth.predict(Prediction(ends=(arch,)), depth.Config(remove=remove)).ends
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build(end).parameters())
    assert round(parameters / 1e6, 1) == millions
    config = end.config
    assert [len(s.blocks) for s in (*config.down, *config.up)] == (
        [1] * 4 + [2] * 4 if name != "tiny" else [1] * 3 + [2] * 3
    )
    assert (config.mid is None) == (name != "base")


@pytest.mark.parametrize("remove", [(SECOND,), ("down_blocks.2+mid_block+up_blocks.0", "down_blocks.0.*")])
def test_what_is_left_computes_with_its_own_tensors(remove, tmp_path):
    """Pairs and stages, one after the other, are the same as all at once; every tensor left is one that was there."""
    given = stage_input(tmp_path)
    result = depth.apply(given, depth.Config(remove=remove, samples=1))
    assert result.arch == depth.predict(Prediction(ends=(ARCH,)), depth.Config(remove=remove)).ends[0]
    assert result.module(*inputs()).shape == (2, 4, 8, 8) and result.module(*inputs()).isfinite().all()
    old = {t.data_ptr() for t in given.variant.module.state_dict().values()}
    assert all(t.data_ptr() in old for t in result.module.state_dict().values())
    if remove == (SECOND,):  # the third block on the way up is the second one now
        third = given.variant.module.up_blocks[2].resnets[2].state_dict()
        assert all(torch.equal(result.module.up_blocks[2].resnets[1].state_dict()[n], t) for n, t in third.items())
    assert result.achieved[0].met and result.achieved[0].requested > len(result.notes) - 1


def test_the_first_choice_is_the_best_of_all_by_brute_force(tmp_path):
    """Blocks, pairs and stages alike; every third smaller network is built here again, with all three inputs."""
    given = stage_input(tmp_path)
    state, config = (
        given.variant.module.state_dict(),
        depth.Config(blocks=1, units=("blocks", "pairs", "stages"), pixels=64),
    )
    (step,) = depth.propose(given, config).steps
    target, whole = given.variant.module(*inputs()).double(), measured(ARCH, 64)
    scores = {}
    for number, block in enumerate((*unet.blocks(CONFIG), *unet.units(CONFIG))):
        if block.fixed is None and (block.name == step.name or number % 3 == 0):
            removal = unet.without_blocks(CONFIG, [block.name])
            small = build(Arch(kind="unet.unet", config=removal.config)).requires_grad_(False)
            small.load_state_dict(depth.rename(state, removal, *(block.takes or (block.name,))))
            damage = float((small(*inputs()).double() - target).square().mean())
            saved = whole.macs - measured(Arch(kind="unet.unet", config=removal.config), 64).macs
            scores[block.name] = damage / saved * 1e9
    assert len(scores) >= 10 and step.name == min(scores, key=scores.get)
    assert step.score == pytest.approx(scores[step.name], rel=1e-4)


def test_time_and_text_have_a_say(tmp_path):
    latents, steps, text = inputs()
    config = depth.Config(remove=("mid_block.resnets.0",), pixels=64)
    found = [
        depth.propose(stage_input(tmp_path, given), config).steps[0].damage
        for given in ((latents, steps, text), (latents, steps + 90, text), (latents, steps, 2 * text))
    ]
    assert len(set(found)) == 3


def test_keep_protects_a_block_in_every_unit(tmp_path):
    config = depth.Config(remove=("mid_block",), keep=("mid_block.resnets.0",))
    with pytest.raises(UserError, match="mid_block cannot be removed: keep protects it"):
        depth.predict(Prediction(ends=(ARCH,)), config)
    keep = ("mid_block.*", "down_blocks.0.resnets.1", "down_blocks.2.resnets.0")
    config = depth.Config(blocks=1, units=("pairs", "stages"), keep=keep, samples=1, pixels=64)
    proposal = depth.propose(stage_input(tmp_path), config)
    reasons = {row.name: row.reason for row in proposal.left_alone}
    assert reasons["mid_block"] == reasons["down_blocks.2+mid_block+up_blocks.0"] == "kept by the recipe"
    assert "only the innermost stage can go whole" in reasons["down_blocks.0+up_blocks.2"]
    assert "down_blocks.0.resnets.1" not in proposal.steps[0].name
    assert not proposal.steps[0].name.startswith("down_blocks.2")
