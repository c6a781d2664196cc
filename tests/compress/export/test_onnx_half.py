"""16-bit numbers in ONNX: as what weights are stored in, and as what the graph computes in."""

import pytest
import tiny
import torch
from torch import nn

from compress.errors import UserError
from compress.nn.affine import Half, PerChannel, PerGroup, QuantizedWeight, absmax_scale, round_to_scale
from compress.nn.qmodules import QuantizedLayer, quantize_layer, quantized
from compress.nn.surgery import replaced

pytest.importorskip("onnx", reason="extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="extra onnx is not installed")
pytest.importorskip("onnxscript", reason="extra onnx is not installed")

from compress.export import onnx as export_onnx

HALF = export_onnx.Config(precision="float16", dynamic=False)


class Net(nn.Module):
    """Ids to vectors, a convolution over them, projections with and without a bias."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 12)
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.biased, self.plain = nn.Linear(12, 10), nn.Linear(10, 7, bias=False)

    def forward(self, ids):
        x = self.norm(self.conv(self.table(ids).reshape(1, 2, -1, 12)))
        return self.plain(torch.tanh(self.biased(x.flatten(1, 2))))


IDS = torch.tensor([[0, 3, 8, 1, 1, 7]])


def with_half_weights(net, dtype):
    swaps = {}
    for name in ("table", "conv", "biased", "plain"):
        layer = net.get_submodule(name)
        weight = QuantizedWeight(
            qdata=layer.weight.detach().to(getattr(torch, dtype)),
            scale=torch.zeros(0),
            bits=16,
            granularity=Half(dtype),
        )
        swaps[name] = quantize_layer(layer, QuantizedLayer(bits=16, granularity=Half(dtype)), weight)
    return replaced(net, swaps)


def elements(path):
    import onnx

    return {onnx.TensorProto.DataType.Name(t.data_type) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_in_half_precision_are_the_variants_and_are_computed_with_in_float32(dtype, tmp_path):
    torch.manual_seed(0)
    module, path = with_half_weights(Net().eval(), dtype), tmp_path / "n.onnx"
    export_onnx.export(module, (IDS,), path, export_onnx.Config(), metadata={}, output="states")
    held = export_onnx.read_back(path)
    assert held.keys() == quantized(module).keys()
    for name, q in quantized(module).items():
        assert held[name].granularity == Half(dtype)
        assert torch.equal(held[name].qdata, q.qdata), name
    with torch.no_grad():
        torch.testing.assert_close(export_onnx.load(path, threads=1)(IDS), module(IDS), rtol=0, atol=2e-6)
    assert dtype.upper() in elements(path)


@pytest.mark.parametrize("weights", ["float", "int4"])
def test_a_graph_in_float16_keeps_its_borders_and_its_integers(weights, tmp_path):
    import onnx

    torch.manual_seed(1)
    net, path = Net().eval(), tmp_path / "n.onnx"
    if weights == "int4":
        swaps = {}
        for name, granularity in (("conv", PerGroup(6)), ("biased", PerChannel())):
            layer = net.get_submodule(name)
            scale = absmax_scale(layer.weight.detach(), bits=4, granularity=granularity)
            stored = round_to_scale(layer.weight.detach(), scale, bits=4, granularity=granularity)
            swaps[name] = quantize_layer(layer, QuantizedLayer(bits=4, granularity=granularity), stored)
        net = replaced(net, swaps)
    export_onnx.export(net, (IDS,), path, HALF, metadata={}, output="states")
    for name, q in quantized(net).items():
        held = export_onnx.read_back(path)[name]
        assert torch.equal(held.qdata, q.qdata) and torch.equal(held.scale, q.scale)
    graph = onnx.load(path).graph
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    typed = {
        v.name: v.type.tensor_type.elem_type
        for v in onnx.shape_inference.infer_shapes(onnx.load(path)).graph.value_info
    }
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul", "Tanh", "InstanceNormalization"):
            assert typed[node.output[0]] == onnx.TensorProto.FLOAT16 or node.output[0].endswith("/float16")
    with torch.no_grad():
        expected = net(IDS)
        found = export_onnx.load(path, threads=1)(IDS)
    assert found.dtype == torch.float32
    worst = float((found - expected).abs().max() / expected.abs().max())
    assert 1e-7 < worst < 5e-3  # 11 bits of precision


def test_the_waves_of_time_steps_stay_in_float32(tmp_path):
    """In float16 a time step of 999 has no fraction and cos(999.4) is another number."""
    unet, inputs = tiny.unet().module, tiny.unet_inputs(2)
    export_onnx.export(unet, inputs, tmp_path / "u.onnx", HALF, metadata={}, output="prediction")
    with torch.no_grad():
        expected = unet(*inputs)
        late = (inputs[0], inputs[1] + 0.4, inputs[2])
        assert float((unet(*late) - expected).abs().max()) > 0.05
        found = export_onnx.load(tmp_path / "u.onnx", threads=1)(*late)
        assert float((found - unet(*late)).abs().max()) < 0.02


class Loud(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.calm, self.loud = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        nn.init.constant_(self.loud.weight, gain)

    def forward(self, x):
        return torch.tanh(self.loud(self.calm(x).abs() + 1))


def test_values_beyond_float16_are_refused_by_module_and_nothing_is_written(tmp_path):
    x = torch.ones(1, 4)
    for gain, message in ((3e4, "larger: loud"), (float("nan"), "larger: .*loud nan")):
        with pytest.raises(UserError, match=rf"float16 ends at 65504.*{message}.*choose precision: float32"):
            export_onnx.export(Loud(gain).eval(), (x,), tmp_path / "l.onnx", HALF, metadata={})
    assert not any(tmp_path.iterdir())


def test_integer_kernels_do_not_compute_in_float16():
    (reason,) = export_onnx.refuse(8, PerChannel(), 8, HALF)
    assert "choose precision: float32" in reason
    assert export_onnx.refuse(8, PerChannel(), 32, HALF) == []
