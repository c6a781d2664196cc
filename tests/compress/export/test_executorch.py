"""The ExecuTorch file holds the variant's integers, computes what the variant computes, and is one piece for XNNPACK."""

import pytest
import tiny
import torch
from every_layer import ranges
from torch import nn
from torch.nn import functional

from compress.errors import UserError
from compress.nn.affine import (
    Half,
    Palette,
    PerChannel,
    PerGroup,
    PerTensor,
    absmax_scale,
    round_to_scale,
)
from compress.nn.qmodules import QuantizedLayer, quantizable, quantize_layer, quantized
from compress.nn.surgery import replaced

pytest.importorskip("executorch", reason="extra executorch is not installed")

from compress.export import _xnnpack_ops as ops
from compress.export import executorch
from compress.export.executorch import load

CONFIG = executorch.Config()


@pytest.mark.parametrize(("channels", "groups"), [(12, 3), (8, 8), (8, 1)])
def test_group_norm_is_that_of_torch(channels, groups):
    x = 3 * torch.randn(2, channels, 5, 7, generator=torch.Generator().manual_seed(0)) + 20
    weight, bias = torch.linspace(0.5, 2, channels), torch.linspace(-1, 1, channels)
    found = ops.group_norm(x, groups, weight, bias, 1e-3)
    expected = functional.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-3)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)


def test_layer_norm_is_that_of_torch():
    x = 3 * torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0)) + 20
    weight, bias = torch.linspace(0.5, 2, 12), torch.linspace(-1, 1, 12)
    expected = functional.layer_norm(x.double(), (12,), weight.double(), bias.double(), 1e-3)
    torch.testing.assert_close(ops.layer_norm(x, (12,), weight, bias, 1e-3).double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["plain", "causal", "truths", "added", "scaled"])
def test_attention_is_that_of_torch(kind):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, generator=generator) for length in (5, 5, 5))
    truths = torch.rand(5, 5, generator=generator) > 0.3
    truths.fill_diagonal_(True)
    given = {
        "plain": {},
        "causal": {"is_causal": True},
        "truths": {"attn_mask": truths},
        "added": {"attn_mask": torch.randn(5, 5, generator=generator)},
        "scaled": {"scale": 0.5},
    }[kind]
    ours = {"mask" if key == "attn_mask" else key: value for key, value in given.items()}
    expected = functional.scaled_dot_product_attention(q, k, v, **given)
    torch.testing.assert_close(ops.attention(q, k, v, **ours), expected, atol=2e-6, rtol=0)


def test_enlargement_and_parts_are_exact():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(ops.enlarged(x, None, [2.0, 3.0]), functional.interpolate(x, scale_factor=(2.0, 3.0)))
    assert ops.enlarged(x, None, [1.5, 1.5]) is NotImplemented
    assert all(torch.equal(a, b) for a, b in zip(ops.split(x, 2, 3), x.split(2, 3), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ops.split_sizes(x, [1, 4], 3), x.split([1, 4], 3), strict=True))


class Parts(nn.Module):
    """A static convolution, a depthwise one, one with float activations, a static layer without an output range."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.kept = nn.Conv2d(8, 6, 1)
        self.loud = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = functional.interpolate(self.depthwise(self.first(x)), scale_factor=2.0)
        return self.head(functional.silu(self.norm(self.loud(self.kept(x)))).mean((2, 3)))


def static(module, x, *, kept=(), one_scale=()):
    """8 bits; convolutions have both ranges, linear layers that of the input, `kept` neither."""
    grids, swaps = ranges(module, x), {}
    for name, layer in quantizable(module).items():
        granularity = PerTensor() if name in one_scale else PerChannel()
        scale = absmax_scale(layer.weight.detach(), bits=8, granularity=granularity)
        weight = round_to_scale(layer.weight.detach(), scale, bits=8, granularity=granularity)
        before, after = (None, None) if name in kept else grids.get(name, (None, None))
        after = after if isinstance(layer, nn.Conv2d) else None
        spec = QuantizedLayer(bits=8, granularity=granularity, input=before, output=after)
        swaps[name] = quantize_layer(layer, spec, weight)
    return replaced(module, swaps)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    torch.manual_seed(2)
    module = Parts().eval()
    x = (torch.randn(1, 4, 8, 8) + 0.3,)
    variant = static(module, x, kept=("kept", "loud"), one_scale=("first", "kept"))
    path = tmp_path_factory.mktemp("parts") / "p.pte"
    executorch.export(variant, x, path, CONFIG, metadata={"recipe": "a/b"}, output="states")
    return module, variant, x, path


def test_every_layers_integers_are_in_the_file_and_used(parts):
    _, variant, _, path = parts
    held, own = executorch.read_back(path), quantized(variant)
    assert held.keys() == own.keys()
    for name, layer in own.items():
        assert torch.equal(held[name].qdata, layer.qdata), name
        assert torch.equal(held[name].scale, layer.scale), name
        assert (held[name].bits, held[name].granularity) == (8, layer.layer.granularity)


def test_the_file_computes_what_the_variant_computes(parts):
    module, variant, x, path = parts
    with torch.no_grad():
        expected, original = variant(*x), module(*x)
    found = load(path, threads=1)(*x)
    # ties round apart, as in every integer runtime: nearer to the variant than the variant is to the float network
    assert float((found - expected).abs().max()) < 0.5 * float((expected - original).abs().max()) + 1e-6
    assert float((expected - original).abs().max()) > 1e-3


class Branches(nn.Module):
    """What a static convolution made, rounded, is read by another and by two with float activations."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1, stride=2), nn.Conv2d(8, 6, 3, padding=1)
        self.loud, self.halving = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(12, 6, (3, 2), padding=(1, 0), stride=2)
        self.grouped = nn.Conv2d(8, 6, 3, padding=1, groups=2)

    def forward(self, x):
        y = self.first(x)
        return self.halving(torch.cat((self.second(y) + self.grouped(y), self.loud(y)), 1))


def test_layers_with_float_activations_beside_others_read_what_those_made(tmp_path):
    torch.manual_seed(2)
    x = (torch.randn(1, 4, 12, 16),)
    module = Branches().eval()
    variant = static(module, x, kept=("loud", "halving", "grouped"))
    executorch.export(variant, x, tmp_path / "p.pte", CONFIG, metadata={}, output="states")
    with torch.no_grad():
        expected = variant(*x)
    found = load(tmp_path / "p.pte", threads=1)(*x)
    # what is not read as it was made is off by tenths; ties of the first rounding by a hundredth
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_same_module_same_bytes_and_nothing_of_this_machine(parts, tmp_path):
    import re

    _, variant, x, path = parts
    executorch.export(variant, x, tmp_path / "again.pte", CONFIG, metadata={"recipe": "a/b"}, output="states")
    content = path.read_bytes()
    assert (tmp_path / "again.pte").read_bytes() == content
    assert not re.search(rb"\.py|/home|/tmp|/usr", content)
    assert b'"recipe": "a/b"' in content


def test_what_cannot_be_run_is_named(parts):
    with pytest.raises(UserError, match=r"p\.pte: ExecuTorch cannot run it"):
        load(parts[3], threads=1)(torch.zeros(1, 4, 9, 9))


def test_what_is_cut_or_foreign_is_named_and_ends_no_process(parts, tmp_path):
    content = parts[3].read_bytes()
    cases = {
        "empty": b"",
        "text": b"not a model",
        "zip": b"PK\3\4" + bytes(200),
        "head": content[:40],
        "half": content[: len(content) // 2],
        "tail": content[:-700],
        "offset": content[:28] + b"\xff\xff\xff\x7f" + content[32:],
        "root": b"\xff\xff\xff\x7f" + content[4:],
        "vtable": content[:64] + b"\x80" * 64 + content[128:],
    }
    for name, octets in cases.items():
        path = tmp_path / f"{name}.pte"
        path.write_bytes(octets)
        for call in (executorch.read_back, lambda p: load(p, threads=1)):
            with pytest.raises(UserError, match=name):
                call(path)
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "missing.pte", threads=1)


def test_what_xnnpack_does_not_compute_is_refused_with_what_does():
    for kind in ((8, PerGroup(8), 8), (4, PerChannel(), 8), (4, Palette(), 32), (16, Half("float16"), 32)):
        assert "choose" in executorch.refuse(*kind)[0]
    assert executorch.refuse(8, PerChannel(), 8) == []
    assert "choose quantize.static" in executorch.refuse(8, PerChannel(), 32)[0]


def test_weights_alone_are_refused_at_the_export_too(tmp_path):
    module, x = Parts().eval(), (torch.randn(1, 4, 8, 8),)
    variant = static(module, x, kept=tuple(quantizable(module)))
    with pytest.raises(UserError, match="choose quantize.static, or another format"):
        executorch.export(variant, x, tmp_path / "p.pte", CONFIG, metadata={})
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_is_one_piece(tmp_path):
    module, x = tiny.decoder().module, (tiny.latents(1),)
    executorch.export(module, x, tmp_path / "d.pte", CONFIG, metadata={})
    assert executorch.partitions(tmp_path / "d.pte") == 1
    with torch.no_grad():
        expected = module(*x)
    torch.testing.assert_close(load(tmp_path / "d.pte", threads=1)(*x), expected, atol=5e-6, rtol=0)


def test_files_on_different_numbers_of_threads_run_in_turn(parts):
    _, _, x, path = parts
    one, two = load(path, threads=1), load(path, threads=2)
    expected = one(*x)
    for run in (one, two, load(path, threads=1), one, two):  # each change frees the pool of the one before
        for _ in range(20):
            torch.testing.assert_close(run(*x), expected, atol=1e-5, rtol=0)
    batch = tuple(torch.cat([given] * 3) for given in x)
    assert torch.equal(one(*batch), expected.expand(3, -1))
