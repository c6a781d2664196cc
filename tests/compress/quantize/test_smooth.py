"""SmoothQuant: the balance by its formula, the gain on outlying channels, and what stays unbalanced."""

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.errors import UserError
from compress.nn.qmodules import quantized
from compress.quantize import smooth, static
from compress.records import StageInput

LAW = settings(max_examples=30, deadline=None, derandomize=True)


class Perceptron(nn.Module):
    """A norm with two outlying channels before a linear layer, and one behind GELU."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 8)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5
        self.norm.weight.data = torch.ones(16)
        self.norm.weight.data[[2, 9]] = 60.0
        self.fc1.weight.data[:, [2, 9]] /= 40.0

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


def stage(folder, module=None, inputs=None):
    variant = tiny.decoder()
    module = (module or Perceptron()).eval().requires_grad_(False)
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(4)) if inputs is None else inputs
    return StageInput(
        variant=replace(variant, module=module), teacher=module, inputs=(x,), sample=None, seed=0, scratch=folder
    )


@LAW
@given(seed=st.integers(0, 2**31), alpha=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_the_scale_is_the_papers(seed, alpha):
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.rand(5, generator=generator) + 0.1, torch.rand(5, generator=generator) + 0.1
    got = smooth.smoothing_scale(x, w, alpha)
    for j in range(5):
        assert float(got[j]) == pytest.approx(float(x[j]) ** alpha / float(w[j]) ** (1 - alpha), rel=1e-5)
    if alpha == 0.5:  # then activations and weights have the same peaks
        torch.testing.assert_close(x / got, w * got)


def test_a_dead_channel_is_left_at_one():
    scale = smooth.smoothing_scale(torch.tensor([0.0, 2.0, 0.0, 1e-30]), torch.tensor([1.0, 0.0, 0.0, 1e20]), 0.5)
    assert scale[:3].tolist() == [1, 1, 1] and scale.isfinite().all() and scale[3] > 0


def test_the_float_function_stays(tmp_path):
    given_stage = stage(tmp_path)
    found, _ = smooth.seams(given_stage.variant.module, given_stage.inputs)
    module = smooth.smoothed(given_stage.variant.module, found, given_stage, smooth.Config())
    x = given_stage.inputs[0]
    torch.testing.assert_close(module(x), given_stage.variant.module(x), rtol=1e-5, atol=1e-5)
    peaks = module.norm(x).abs().amax(dim=0)
    before = given_stage.variant.module.norm(x).abs().amax(dim=0)
    assert peaks.max() / peaks.median() < 0.3 * before.max() / before.median()


def test_outlying_channels_cost_less_than_without(tmp_path):
    errors = {}
    for name, method in {"smooth": smooth, "static": static}.items():
        given_stage = stage(tmp_path)
        if name == "static":
            result = static_on(given_stage)
        else:
            result = smooth.apply(given_stage, smooth.Config(protect=0, bias_correction=False)).module
        x = torch.randn(200, 16, generator=torch.Generator().manual_seed(5))
        errors[name] = float((result(x) - given_stage.variant.module(x)).square().mean())
        assert method.NEEDS == "statistics"
    assert errors["smooth"] < 0.4 * errors["static"]


def static_on(given_stage):
    return static.apply(given_stage, static.Config(protect=0, bias_correction=False)).module


def test_weights_alone_have_no_ranges_and_unbalanced_layers_are_named(tmp_path):
    result = smooth.apply(stage(tmp_path), smooth.Config(activation_bits=None, weight_bits=4))
    layers = quantized(result.module)
    assert set(layers) == {"fc1", "fc2"}
    assert all(q.layer.bits == 4 and q.layer.input is None and q.layer.output is None for q in layers.values())
    assert [(a.what, a.met) for a in result.achieved] == [("weights at 4 bits", True)]
    reasons = {s.name: s.reason for s in result.skipped}
    assert "not balanced" in reasons["fc2"] and "fc1" not in reasons
    assert result.notes == ("balanced 1 layers behind 1 others",)


def test_a_pattern_that_matches_nothing(tmp_path):
    with pytest.raises(UserError, match="matches no layer"):
        smooth.apply(stage(tmp_path), smooth.Config(exclude=("nothing",)))
