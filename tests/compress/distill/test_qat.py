"""Training through the rounding keeps the representation and comes nearer to the float teacher."""

from dataclasses import replace

import pytest
import tiny
import torch

from compress.distill import qat
from compress.errors import UserError
from compress.nn import affine
from compress.nn.qmodules import QuantizedLayer, quantization_map, quantized
from compress.quantize import half, palette, rtn, static
from compress.records import Prediction

SHORT = {"batch": 2, "pixels": 32, "precision": "float32", "lr": 1e-3}


def quantize(folder, method=rtn, **config):
    folder.mkdir(exist_ok=True)
    result = method.apply(tiny.stage_input(folder), method.Config(**config))
    return replace(tiny.decoder(), arch=result.arch, module=result.module)


def train(folder, variant, **config):
    folder.mkdir(exist_ok=True)
    return qat.apply(tiny.stage_input(folder, variant), qat.Config(**SHORT | config))


def error_db(module):
    x = tiny.latents(seed=5)
    with torch.no_grad():
        return float(-10 * torch.log10((module(x) - tiny.decoder().module(x)).square().mean()))


@pytest.mark.parametrize(
    ("method", "config", "gain_db"),
    [
        (rtn, {"bits": 4}, 1.0),
        (rtn, {"bits": 4, "granularity": "per_group", "group_size": 4}, 0.3),  # so many scales leave less to regain
        (static, {"weight_bits": 4, "observer": "min_max"}, 0.5),
    ],
)
def test_it_comes_nearer_to_the_float_teacher_in_the_same_form(tmp_path, method, config, gain_db):
    before = quantize(tmp_path / "ptq", method, **config)
    result = train(tmp_path / "qat", before, steps=40)
    assert error_db(result.module) > error_db(before.module) + gain_db
    assert quantization_map(result.module) == quantization_map(before.module)
    for layer in quantized(result.module).values():
        qmax = affine.signed_qmax(layer.layer.bits)
        assert layer.qdata.dtype == torch.int8 and int(layer.qdata.abs().max()) <= qmax
    assert "integers" in result.notes[-1]


def test_no_step_leaves_every_integer_where_it_was(tmp_path):
    before = quantize(tmp_path / "ptq", bits=4)
    for name, layer in quantized(before.module).items():
        back = qat.Trainee(layer, learn_scale=True).integers()
        assert torch.equal(back.qdata, layer.qdata), name
        assert torch.allclose(back.scale, layer.scale, rtol=1e-6)


def test_a_trainee_computes_what_its_integers_compute(tmp_path):
    before = quantize(tmp_path / "ptq", static, observer="min_max")
    layer = next(iter(quantized(before.module).values()))
    trainee = qat.Trainee(layer, learn_scale=True)
    x = torch.randn(1, layer.qdata.shape[1], 6, 6, generator=torch.Generator().manual_seed(0))
    step = layer.layer.output.scale if layer.layer.output else 1e-6
    assert float((trainee(x) - layer(x)).detach().abs().max()) <= 1.001 * step  # an output may round to the next code


def test_the_scale_has_lsqs_gradient():
    """d(value)/d(scale): the bound outside of the range, round(w/s) - w/s inside; from eq. (3) of the paper."""
    weight, spec = torch.tensor([[0.26, -0.9, 5.0]]), QuantizedLayer(bits=3, granularity=affine.PerTensor())
    scale = torch.tensor([0.5], requires_grad=True)
    qat.through_rounding(weight, scale, spec).sum().backward()
    expected = (1 - 0.52) + (-2 + 1.8) + 3
    assert float(scale.grad.detach()) == pytest.approx(expected, rel=1e-5)


def test_gradients_stop_where_an_activation_is_clipped():
    grid = affine.activation_range(-1.0, 1.0)
    x = torch.tensor([-3.0, 0.3, 0.9, 2.0], requires_grad=True)
    y = qat.through_grid(x, grid)
    y.sum().backward()
    assert torch.equal(y.detach(), affine.fake_quantize(x.detach(), grid))
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_a_float_variant_is_refused(tmp_path):
    with pytest.raises(UserError, match="put it after a quantize stage"):
        train(tmp_path, tiny.decoder())
    with pytest.raises(UserError, match="out_of_order"):
        qat.predict(Prediction(ends=(tiny.decoder().arch,)), qat.Config())


@pytest.mark.parametrize("method", [half, palette])
def test_weights_without_a_grid_are_refused_before_and_after_planning(tmp_path, method):
    quantizer = method.Config()
    arch = tiny.decoder().arch
    with pytest.raises(UserError, match="palettes and half precision have none"):
        qat.predict(method.predict(Prediction(ends=(arch,)), quantizer), qat.Config(steps=1))
    module = method.apply(tiny.stage_input(tmp_path), quantizer).module
    with pytest.raises(UserError, match="palettes and half precision have none"):
        qat.apply(tiny.stage_input(tmp_path, replace(tiny.decoder(), module=module)), qat.Config(steps=1))
