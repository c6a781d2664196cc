"""What ONNX Runtime decided is what the variant holds."""

from pathlib import Path

import pytest
import tiny
import torch

from compress.errors import UserError
from compress.nn.affine import dequantize
from compress.nn.qmodules import quantized
from compress.quantize import onnxruntime

onnx = pytest.importorskip("onnx", reason="extra onnx is not installed")
runtime = pytest.importorskip("onnxruntime", reason="extra onnx is not installed")
pytest.importorskip("onnxscript", reason="extra onnx is not installed")


def test_the_variant_computes_what_its_own_graph_computes(tmp_path, monkeypatch):
    """Oracle: the QDQ file that ONNX Runtime wrote, run by ONNX Runtime."""
    files = []
    load = onnx.load

    def kept(path, *args, **kwargs):
        files.append(Path(path).read_bytes())
        return load(path, *args, **kwargs)

    monkeypatch.setattr(onnx, "load", kept)
    result = onnxruntime.apply(tiny.stage_input(tmp_path), onnxruntime.Config())
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(files[-1], options)
    x = tiny.latents(1, seed=5)
    theirs = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    error_to_graph = float((result.module(x) - theirs).square().mean())
    error_to_float = float((result.module(x) - tiny.decoder().module(x)).square().mean())
    assert error_to_graph < 0.25 * error_to_float  # ties round apart, nothing else


def test_every_layer_has_its_integers_and_weights_come_back(tmp_path):
    result = onnxruntime.apply(tiny.stage_input(tmp_path), onnxruntime.Config())
    own = dict(tiny.decoder().module.named_modules())
    layers = quantized(result.module)
    assert len(layers) == 18 and all(layer.layer.input for layer in layers.values())
    for name, layer in layers.items():
        step = layer.scale.reshape(-1, 1, 1, 1)
        assert bool(((dequantize(layer.quantized_weight) - own[name].weight).abs() <= 0.51 * step).all()), name


def test_excluded_layers_stay_float_and_are_named(tmp_path):
    result = onnxruntime.apply(tiny.stage_input(tmp_path), onnxruntime.Config(exclude=("linear", "conv_*")))
    assert not {"linear", "conv_in", "conv_out"} & set(quantized(result.module))
    assert {"linear", "conv_in", "conv_out"} <= {row.name for row in result.skipped if "excluded" in row.reason}
    assert all(item.met for item in result.achieved)


@pytest.mark.parametrize("calibrate", ["percentile", "entropy"])
def test_calibration_that_would_hold_everything_in_memory_is_refused(tmp_path, calibrate):
    config = onnxruntime.Config(calibrate=calibrate, samples=9)
    with pytest.raises(UserError, match=r"holds every activation of all 9 inputs.*quantize\.static"):
        onnxruntime.apply(tiny.stage_input(tmp_path), config)


def test_a_weight_zero_point_is_refused(tmp_path):
    """A graph whose weights are not symmetric cannot be held; it is not rounded to something else."""
    from compress.quantize import _qdq

    helper = onnx.helper
    weight = onnx.numpy_helper.from_array(torch.zeros(1, 1, 1, 1, dtype=torch.int8).numpy(), "w")
    scale = onnx.numpy_helper.from_array(torch.ones(1).numpy(), "s")
    zero = onnx.numpy_helper.from_array(torch.tensor([3], dtype=torch.int8).numpy(), "z")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["dq"], axis=0),
        helper.make_node("Conv", ["x", "dq"], ["y"], name="conv"),
    ]
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, 1, 1])
    out = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1, 1, 1])
    model = helper.make_model(helper.make_graph(nodes, "g", [value], [out], [weight, scale, zero]))
    with pytest.raises(UserError, match="conv: the backend chose a weight zero point"):
        _qdq.read(onnx, model, {"conv": torch.nn.Conv2d(1, 1, 1)})
