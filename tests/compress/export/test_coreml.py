"""The Core ML package holds the variant's integers, scales and tables, and computes what the variant computes."""

import json
import shutil
from functools import partial

import pytest
import tiny
import torch
from every_layer import ranges
from torch import nn

from compress.errors import UserError
from compress.nn.affine import (
    Half,
    Palette,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedWeight,
    absmax_scale,
    round_to_scale,
    scale_shape,
)
from compress.nn.qmodules import QuantizedLayer, quantizable, quantize_layer, quantized
from compress.nn.surgery import replaced

pytest.importorskip("coremltools", reason="extra coreml is not installed")

from compress.export import coreml
from compress.export._coreml_package import MANIFEST, MODEL, WEIGHTS

FLOAT32, FLOAT16 = coreml.Config(), coreml.Config(precision="float16")


def stored(weight, bits, granularity):
    if isinstance(granularity, Half):
        return QuantizedWeight(qdata=weight.half(), scale=torch.zeros(0), bits=16, granularity=granularity)
    if isinstance(granularity, Palette):
        generator = torch.Generator().manual_seed(weight.numel())
        shape = scale_shape(weight.shape, bits=bits, granularity=granularity)
        tables = weight.std() * torch.randn(shape, generator=generator).sort(1).values
        codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), weight.shape, generator=generator)
        return QuantizedWeight(qdata=codes.to(torch.int8), scale=tables, bits=bits, granularity=granularity)
    scale = absmax_scale(weight, bits=bits, granularity=granularity)
    return round_to_scale(weight, scale, bits=bits, granularity=granularity)


def swapped(module, kinds, grids=None):
    """`kinds`: (bits, granularity) of each layer in turn."""
    swaps = {}
    for number, (name, layer) in enumerate(quantizable(module).items()):
        bits, granularity = kinds[number % len(kinds)]
        weight = stored(layer.weight.detach(), bits, granularity)
        before, after = (grids or {}).get(name, (None, None))
        spec = QuantizedLayer(bits=weight.bits, granularity=granularity, input=before, output=after)
        swaps[name] = quantize_layer(layer, spec, weight)
    return replaced(module, swaps)


def run(module, x, path, config=FLOAT32, output="image"):
    """(torch, the saved program), after checking that the package holds what the module holds."""
    coreml.export(module, x, path, config, metadata={}, output=output)
    held, own = coreml.read_back(path), quantized(module)
    assert held.keys() == own.keys()
    for name, layer in own.items():
        assert torch.equal(held[name].qdata, layer.qdata), name
        assert held[name].qdata.dtype == layer.qdata.dtype
        scale = layer.scale if config.precision == "float32" else layer.scale.half().float()
        assert torch.equal(held[name].scale, scale), name
        assert (held[name].bits, held[name].granularity) == (layer.layer.bits, layer.layer.granularity)
    with torch.no_grad():
        return module(*x), coreml.load(path, threads=1)(*x)


KINDS = [
    *[(bits, g) for bits in (4, 8) for g in (PerTensor(), PerChannel(), PerGroup(18), PerGroup(27), PerGroup(72))],
    *[(2, Palette()), (3, Palette(4)), (4, Palette(5)), (6, Palette(12)), (8, Palette(1)), (16, Half("float16"))],
]


def test_every_width_granularity_and_table_is_held_and_computed(tmp_path):
    torch.manual_seed(
        3
    )  # 12 channels: a short last run of 5, and groups of 27 that do not divide their 108 inputs evenly
    net = nn.Sequential(*(nn.Conv2d(12, 12, 3, padding=1, groups=1) for _ in KINDS)).eval()
    module = swapped(net, KINDS)
    expected, found = run(module, (torch.randn(1, 12, 5, 4),), tmp_path / "c.mlpackage")
    assert expected.std() > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.std()), rtol=0)


def test_four_bits_take_half_a_byte(tmp_path):
    net = nn.Sequential(nn.Conv2d(64, 64, 3)).eval()
    for bits, granularity, largest in ((4, PerChannel(), 0.52), (8, PerChannel(), 1.02), (3, Palette(), 0.40)):
        path = tmp_path / "c.mlpackage"
        coreml.export(swapped(net, [(bits, granularity)]), (torch.zeros(1, 64, 4, 4),), path, FLOAT32, metadata={})
        assert (path / WEIGHTS).stat().st_size < largest * net[0].weight.numel() + 1000


def test_a_text_encoder_with_an_integer_table(tmp_path):
    module, x = tiny.text().module, tiny.text_inputs(1)
    kinds = [(8, PerChannel()), (4, PerChannel()), (8, PerGroup(4)), (6, Palette(8))]
    expected, found = run(swapped(module, kinds), x, tmp_path / "t.mlpackage", output="states")
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """A static int8 decoder, its package, and what both make of one input."""
    module, x = tiny.decoder().module, (tiny.latents(1),)
    path = tmp_path_factory.mktemp("static") / "d.mlpackage"
    variant = swapped(module, [(8, PerChannel())], ranges(module, x))
    expected, found = run(variant, x, path)
    return variant, x, path, expected, found, module


def psnr_db(a, b):
    return float(-10 * (a - b).double().square().mean().log10())


def test_static_activations_are_rounded_where_the_variant_rounds_them(static):
    variant, x, path, expected, found, module = static
    with torch.no_grad():
        original = module(*x)
    # ties round apart where sums are taken in another order, and every later norm spreads that: as with ONNX Runtime,
    # what must agree is the distance to the float network
    assert abs(psnr_db(original, found) - psnr_db(original, expected)) < 1.0
    operators = [op.op_type for op in coreml.open_package(path).program.functions["main"].operations]
    assert operators.count("quantize") == operators.count("dequantize") == 2 * len(quantized(variant))


def test_one_static_convolution_is_within_one_step_and_mostly_exact(tmp_path):
    torch.manual_seed(1)
    conv = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4)).eval()
    x = (torch.randn(1, 8, 12, 16) + 0.3,)
    for config, apart in ((FLOAT32, 1e-3), (FLOAT16, 0.2)):
        variant = swapped(conv, [(8, PerChannel())], ranges(conv, x))
        expected, found = run(variant, x, tmp_path / "c.mlpackage", config)
        steps = (found - expected).abs() / ranges(conv, x)["0"][1].scale
        assert float((steps > 0.5).float().mean()) < apart
        assert float(steps.max()) < 1.1


def test_same_module_same_bytes(static, tmp_path):
    variant, x, path, *_ = static
    coreml.export(variant, x, tmp_path / "again.mlpackage", FLOAT32, metadata={})
    for part in (MANIFEST, MODEL, WEIGHTS):
        assert (tmp_path / "again.mlpackage" / part).read_bytes() == (path / part).read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["again.mlpackage"]


def test_any_flipped_byte_is_found_before_anything_runs(static, tmp_path):
    *_, path = static[:3]
    for part in (MODEL, WEIGHTS):
        copy = tmp_path / f"{part.name}.mlpackage"
        shutil.copytree(path, copy)
        content = bytearray((copy / part).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / part).write_bytes(content)
        for call in (partial(coreml.load, threads=1), coreml.read_back):
            with pytest.raises(UserError, match="damaged"):
                call(copy)


def test_what_is_missing_or_foreign_is_named(static, tmp_path):
    path = static[2]
    shutil.copytree(path, tmp_path / "no-weights.mlpackage")
    (tmp_path / "no-weights.mlpackage" / WEIGHTS).unlink()
    shutil.copytree(path, tmp_path / "foreign.mlpackage")
    foreign = tmp_path / "foreign.mlpackage"
    manifest = json.loads((foreign / MANIFEST).read_text())
    random = "12345678-1234-4234-8234-123456789ABC"  # as coremltools gives them: nothing to check against
    manifest["itemInfoEntries"][random] = manifest["itemInfoEntries"].pop(manifest["rootModelIdentifier"])
    (foreign / MANIFEST).write_text(json.dumps(manifest | {"rootModelIdentifier": random}))
    (foreign / WEIGHTS).write_bytes(b"\0" * 64)
    for name in ("no-weights", "foreign", "missing"):
        with pytest.raises(UserError, match=name):
            coreml.load(tmp_path / f"{name}.mlpackage", threads=1)


class Loud(nn.Module):
    """A convolution whose outputs reach 1,000, and a norm over them: the squares leave float16."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 1), nn.GroupNorm(2, 8)

    def forward(self, x):
        return torch.sigmoid(self.norm(1000 * self.conv(x)))


def test_float16_keeps_the_statistics_of_norms_and_shows_an_overflow(tmp_path):
    torch.manual_seed(0)
    module, x = Loud().requires_grad_(False).eval(), torch.randn(1, 4, 6, 6)
    expected, found = run(module, (x,), tmp_path / "a.mlpackage", FLOAT16)
    assert float((1000 * module.conv(x)).square().max()) > 65504
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    _, overflown = run(module, (100 * x,), tmp_path / "b.mlpackage", FLOAT16)
    assert not overflown.isfinite().all()


def test_a_scale_too_small_for_float16_is_refused(tmp_path):
    net = nn.Sequential(nn.Conv2d(4, 4, 1)).eval()
    with torch.no_grad():
        net[0].weight *= 1e-7
    module = swapped(net, [(8, PerChannel())])
    with pytest.raises(UserError, match=r"0: its scales do not fit into float16; choose precision: float32"):
        coreml.export(module, (torch.zeros(1, 4, 2, 2),), tmp_path / "c.mlpackage", FLOAT16, metadata={})
    assert list(tmp_path.iterdir()) == []


def test_float16_integers_are_the_variants_and_scales_rounded(tmp_path):
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 1)).eval()
    expected, found = run(
        swapped(net, [(4, PerChannel())]), (torch.randn(1, 8, 5, 5),), tmp_path / "c.mlpackage", FLOAT16
    )
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)


def test_pictures_come_out_as_an_image_on_request(tmp_path):
    module, x = tiny.decoder().module, (tiny.latents(1),)
    kinds = [(8, PerChannel())]
    config = coreml.Config(pixels="uint8")
    expected, found = run(swapped(module, kinds), x, tmp_path / "d.mlpackage", config)
    assert float((found - expected).abs().max()) <= 0.5 / 255 + 1e-5
    assert torch.equal((found * 255).round() / 255, found)
    assert coreml.open_package(tmp_path / "d.mlpackage").image
    with pytest.raises(UserError, match="pixels: uint8 is for components that make pictures"):
        coreml.export(module, x, tmp_path / "e.mlpackage", config, metadata={}, output="states")


def test_what_core_ml_cannot_hold_is_refused_by_layer(tmp_path):
    cases = [
        ((5, Palette()), "choose one of those"),
        ((3, PerChannel()), "choose weight_bits 4 or 8, or quantize.palette"),
        ((8, PerGroup(10)), "0: groups of 10 weights end within a kernel of 9, .* choose a multiple of 9"),
    ]
    net = nn.Sequential(nn.Conv2d(8, 8, 3)).eval()
    for kind, message in cases:
        with pytest.raises(UserError, match=message):
            coreml.export(
                swapped(net, [kind]), (torch.zeros(1, 8, 4, 4),), tmp_path / "c.mlpackage", FLOAT32, metadata={}
            )
    assert "float16" in coreml.refuse(16, Half("bfloat16"))[0]
    assert list(tmp_path.iterdir()) == []


def test_metadata_is_inside(static, tmp_path):
    path = tmp_path / "c.mlpackage"
    net = nn.Sequential(nn.Conv2d(2, 2, 1)).eval()
    coreml.export(net, (torch.zeros(1, 2, 2, 2),), path, FLOAT32, metadata={"recipe": "a/b"})
    assert coreml.open_package(path).metadata["recipe"] == "a/b"
