"""Anybody's module as a component: what is found, what is refused, and that a file alone runs no code."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn

from compress import components
from compress.components import foreign
from compress.errors import UserError
from compress.prune import depth, width
from compress.records import Prediction


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.inside = nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1))

    def forward(self, x):
        return torch.relu(x + self.inside(x))


class Own(nn.Module):
    """With a block, a widening one, one that its author reads from outside, a layer that nothing calls."""

    def __init__(self, c=8):
        super().__init__()
        self.first, self.block, self.again = nn.Conv2d(8, c, 3, padding=1), Block(c), Block(c)
        self.wide = nn.Sequential(nn.Conv2d(c, 2 * c, 3, padding=1), nn.ReLU(), nn.Conv2d(2 * c, 2 * c, 1))
        self.up, self.idle = nn.Upsample(scale_factor=8), nn.Conv2d(3, 3, 1)
        self.read, self.last = Block(2 * c), nn.Conv2d(2 * c, 3, 3, padding=1)

    def forward(self, x):
        x = self.wide(self.again(self.block(self.first(x))))
        x = self.up(self.read(x) + self.read.inside[0].bias.mean())
        return torch.sigmoid(self.last(x))


@pytest.fixture(scope="module")
def variant():
    torch.manual_seed(0)
    return components.adopt(Own(), torch.zeros(1, 8, 4, 4), component="mine/decoder", entry="mine:decoder")


def test_blocks_are_found_by_running_and_each_that_stays_has_a_reason(variant):
    found = {block.name: block.fixed for block in foreign.blocks(variant.arch.config)}
    assert list(found) == ["first", "block", "again", "wide", "read", "last", "idle"]
    assert found["block"] is found["again"] is None
    assert found["first"] is None  # 8 latents, 8 channels
    assert found["wide"] == "it turns [1, 8, 4, 4] into [1, 16, 4, 4]"
    assert "without it the module fails: " in found["read"] and "inside" in found["read"]
    assert found["last"] == "it turns [1, 16, 32, 32] into [1, 3, 32, 32]"
    assert found["idle"] == "it is never called"


def test_depth_and_width_run_on_it_and_the_result_rebuilds(variant, tmp_path):
    stage = tiny.stage_input(tmp_path, variant, teacher=variant.module, inputs=tiny.latents(2, 4))
    thin = depth.apply(stage, depth.Config(blocks=1, samples=2, keep=("first",)))
    assert {s.name for s in thin.skipped} >= {"wide", "read", "last", "idle"}
    (gone,) = thin.arch.config.removed
    assert gone in ("block", "again") and not [n for n in thin.module.state_dict() if n.startswith(f"{gone}.")]
    cut = replace(variant, arch=thin.arch, module=thin.module)
    result = width.apply(tiny.stage_input(tmp_path, cut), width.Config(ratio=0.5, round_to=2))
    assert result.module.first.weight.shape[0] == result.module.first.out_channels == 4
    assert result.module.wide[2].weight.shape == (8, 8, 1, 1)
    assert {s.name: s.reason for s in result.skipped}["last"] == "they are what the module gives out"
    assert result.achieved[0].met
    again = components.build(result.arch)
    again.load_state_dict(result.module.state_dict())
    assert torch.equal(again(tiny.latents(1, 4)), result.module(tiny.latents(1, 4)))
    prediction = Prediction(ends=(thin.arch,))
    assert width.predict(prediction, width.Config(ratio=0.5, round_to=2)).ends == (result.arch,)
    assert variant.module.first.weight.shape[0] == 8


def test_a_file_runs_no_code_until_its_entry_is_named_again(variant, tmp_path):
    components.save_variant(variant, tmp_path)
    written = json.loads((tmp_path / "arch.json").read_text())
    assert written["config"]["entry"] == "mine:decoder" and "origin" not in written["config"]
    with pytest.raises(UserError, match=r"no file may start: add --module mine:decoder"):
        components.load_variant(tmp_path)
    origin = variant.arch.config.origin
    back = components.load_variant(tmp_path, origins=(origin,))
    assert torch.equal(back.module(tiny.latents(1, 4)), variant.module(tiny.latents(1, 4)))
    with pytest.raises(UserError, match="add --module mine:decoder"):
        components.load_variant(tmp_path, origins=(replace(origin, entry="other:decoder"),))


def test_an_origin_in_a_file_is_refused(variant, tmp_path):
    components.save_variant(variant, tmp_path)
    written = json.loads((tmp_path / "arch.json").read_text())
    written["config"]["origin"] = "os:getcwd"
    (tmp_path / "arch.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="unknown keys: origin"):
        components.read_arch(tmp_path)


def test_code_that_computes_something_else_is_refused(variant, tmp_path):
    class Other(Own):
        def forward(self, x):
            return 1 - super().forward(x)

    components.save_variant(variant, tmp_path)
    other = components.adopt(Other(), torch.zeros(1, 8, 4, 4), entry="mine:decoder")
    with pytest.raises(UserError, match="mine:decoder does not build what it built"):
        components.load_variant(tmp_path, origins=(other.arch.config.origin,))


class Fixed(nn.Module):
    """Its author wrote the width into a view."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        y = self.a(x)
        y = torch.relu(y).reshape(x.shape[0], 8, *x.shape[2:])
        return torch.sigmoid(self.c(torch.relu(self.b(y))))


def test_what_does_not_survive_its_trial_is_fixed_with_the_error():
    config = components.adopt(Fixed(), torch.zeros(1, 4, 4, 4)).arch.config
    assert [group.name for group in foreign.channel_groups(config)] == ["b"]
    reasons = {f.name: f.reason for f in foreign.fixed_channels(config)}
    assert reasons["a"].startswith("without some of them the module fails: shape '[1, 8, 4, 4]' is invalid")


def layer(module, **attributes):
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


class Free(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.ones(1)

    def forward(self, x):
        return torch.sigmoid(x[:, :3] * self.table)


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def tied():
    one, other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    other.weight = one.weight
    return nn.Sequential(one, other, nn.Sigmoid())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: "text", r"gives str, not a torch\.nn\.Module"),
        (lambda: Lambda(lambda x: x[:, :3] * 0 + 2), r"values in \[2, 2\].*clamp\(0, 1\)"),
        (lambda: Lambda(lambda x: x), r"images \[n, 3, H, W\] are needed"),
        (lambda: Lambda(lambda x: (x, x)), "gives tuple, not one tensor"),
        (lambda: Lambda(lambda x: x[:, :3] * float("nan")), "NaN or Inf"),
        (lambda: Lambda(lambda x: x[:, :3, :2]), "square example"),
        (lambda: nn.Conv2d(7, 3, 1), r"fails on an input of shape \[1, 4, 8, 8\]"),
        (lambda: nn.Conv2d(4, 3, 1).half(), r"call \.float\(\)"),
        (tied, "share their memory"),
        (Free, "must be registered as parameters or buffers"),
    ],
)
def test_what_cannot_be_compressed_is_refused_with_what_to_change(make, words):
    with pytest.raises(UserError, match=words):
        components.adopt(make(), torch.zeros(1, 4, 8, 8))


def test_a_forward_that_looks_at_values_is_refused():
    def branch(x):
        return torch.sigmoid(x[:, :3]) if x.sum() > 1e9 else x[:, :3] * 0.1 + 0.5

    with pytest.raises(UserError, match=r"its forward may not look at values \(branches"):
        components.adopt(Lambda(branch), torch.zeros(1, 4, 8, 8))


def test_a_module_that_cannot_be_exported_says_so_where_it_matters(monkeypatch):
    def refuse(*_):
        raise foreign.Untraceable("data-dependent")

    monkeypatch.setattr(foreign, "traced", refuse)
    config = components.adopt(nn.Sequential(nn.Conv2d(4, 3, 1), nn.Sigmoid()), torch.zeros(1, 4, 8, 8)).arch.config
    assert [block.name for block in foreign.blocks(config)] == ["0"]
    with pytest.raises(UserError, match="cannot be traced: torch.export says: data-dependent"):
        foreign.channel_groups(config)
