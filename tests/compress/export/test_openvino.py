"""OpenVINO models hold the variant's integers, are two files that belong together, and tell nobody."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import every_layer
import pytest
import torch

from compress.errors import UserError
from compress.nn.affine import Palette, PerChannel, PerGroup, PerTensor

pytest.importorskip("onnx", reason="extra openvino is not installed")
pytest.importorskip("onnxscript", reason="extra openvino is not installed")
if not any((Path(folder) / "openvino").is_dir() for folder in sys.path):
    pytest.skip("extra openvino is not installed", allow_module_level=True)

from compress.export import openvino as export_openvino

FIXED = export_openvino.Config(dynamic=False)
HALF = export_openvino.Config(dynamic=False, precision="float16")
MODULES = {"8": lambda: every_layer.mixed(8), "4": lambda: every_layer.mixed(4), "16": every_layer.halved}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("openvino")


@pytest.fixture(scope="module")
def eight_bits(folder):
    path, module = folder / "8.openvino", MODULES["8"]()
    export_openvino.export(module, (every_layer.IDS,), path, FIXED, metadata={"recipe": "net"}, output="states")
    return module, path


def on_integers(path):
    """Kinds of layers that the CPU plugin gives 8-bit activations."""
    ov = export_openvino._runtime("test")
    network = ov.Core().compile_model(path / "openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    fed = [node for node in network.get_runtime_model().get_ops() if node.get_input_size()]
    precision = {node: node.input_value(0).get_node().get_rt_info()["outputPrecisions"].astype(str) for node in fed}
    return {node.get_rt_info()["layerType"].astype(str) for node in fed if precision[node] in ("i8", "u8")}


def test_integers_scales_and_results_are_the_variants(eight_bits):
    module, path = eight_bits
    every_layer.assert_held(export_openvino, path, module)
    found, expected = export_openvino.load(path, threads=1)(every_layer.IDS), module(every_layer.IDS)
    assert expected.std() > 0.1
    assert float((found - expected).abs().max()) < 0.05  # ties of the two layers with ranges, behind a norm
    assert {"Convolution", "FullyConnected"} <= on_integers(path)
    assert 'recipe value="net"' in (path / "openvino_model.xml").read_text(encoding="utf-8")


def test_nothing_is_subtracted_that_is_zero(eight_bits):
    _, path = eight_bits
    text = (path / "openvino_model.xml").read_text(encoding="utf-8")
    assert 'type="FakeQuantize"' in text
    assert 'type="Subtract"' not in text
    assert "zero_point" not in text


@pytest.mark.parametrize(("bits", "config", "worst"), [("4", HALF, 5e-3), ("16", FIXED, 1e-5)])
def test_few_bits_and_half_precision(bits, config, worst, folder):
    module, path = MODULES[bits](), folder / f"{bits}.openvino"
    export_openvino.export(module, (every_layer.IDS,), path, config, metadata={}, output="states")
    every_layer.assert_held(export_openvino, path, module)
    found, expected = export_openvino.load(path, threads=1)(every_layer.IDS), module(every_layer.IDS)
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max() / expected.abs().max()) < worst


def test_the_two_files_belong_together(eight_bits, tmp_path):
    copy = tmp_path / "net.openvino"
    shutil.copytree(eight_bits[1], copy)
    weights = bytearray((copy / "openvino_model.bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    (copy / "openvino_model.bin").write_bytes(weights)
    for read in (lambda: export_openvino.load(copy, threads=1), lambda: export_openvino.read_back(copy)):
        with pytest.raises(UserError, match=r"net.openvino: openvino_model.bin is not the one that belongs to"):
            read()


class Twins(torch.nn.Module):
    """Two layers of the same weights, one of which is called as OpenVINO calls what it counts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.Block_1_x, self.twin = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        self.twin.load_state_dict(self.Block_1_x.state_dict())

    def forward(self, x):
        return self.twin(torch.tanh(self.Block_1_x(x)))


@pytest.mark.parametrize("granularity", [PerChannel(), PerTensor()])
def test_layers_that_are_alike_or_called_like_counted_ones_keep_their_names(granularity, tmp_path):
    net, layers = Twins().eval(), {}
    for name, layer in net.named_children():
        weight = layer.weight.detach()
        scale = every_layer.absmax_scale(weight, bits=8, granularity=granularity)
        stored = every_layer.round_to_scale(weight, scale, bits=8, granularity=granularity)
        spec = every_layer.QuantizedLayer(bits=8, granularity=granularity)
        layers[name] = every_layer.quantize_layer(layer, spec, stored)
    module, x = every_layer.replaced(net, layers), torch.randn(1, 4, 6)
    path = tmp_path / "twins.openvino"
    export_openvino.export(module, (x,), path, FIXED, metadata={}, output="states")
    every_layer.assert_held(export_openvino, path, module)
    assert float((export_openvino.load(path, threads=1)(x) - module(x)).abs().max()) < 1e-6


def test_nothing_is_sent_and_nothing_is_left_in_the_home(tmp_path):
    script = (
        "import sys\nfrom compress.export import openvino\n"
        "openvino._runtime('test').Core()\n"
        "assert 'openvino_telemetry' not in sys.modules, 'telemetry'\n"
    )
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "intel").exists()


@pytest.mark.parametrize(
    ("bits", "granularity", "activations", "config", "words"),
    [
        (3, PerChannel(), 32, None, "choose weight_bits 4 or 8"),
        (6, Palette(), 32, None, "choose quantize.rtn"),
        (8, PerChannel(), 16, None, "choose activation_bits 8"),
        (4, PerGroup(1), 32, None, "choose a size of 2 or more"),
        (4, PerGroup(5), 32, None, "choose an even size"),
        (8, PerChannel(), 8, HALF, "choose precision: float32"),
    ],
)
def test_every_refusal_names_an_alternative(bits, granularity, activations, config, words):
    (reason,) = export_openvino.refuse(bits, granularity, activations, config)
    assert words in reason


def test_groups_that_leave_a_rest_are_refused_with_those_that_do_not(tmp_path):
    net = every_layer.net()
    weight = net.plain.weight.detach()
    scale = every_layer.absmax_scale(weight, bits=4, granularity=PerGroup(4))
    stored = every_layer.round_to_scale(weight, scale, bits=4, granularity=PerGroup(4))
    spec = every_layer.QuantizedLayer(bits=4, granularity=PerGroup(4))
    module = every_layer.replaced(net, {"plain": every_layer.quantize_layer(net.plain, spec, stored)})
    with pytest.raises(UserError, match="plain: groups of 4 do not divide its 10 inputs: choose of 2, 5, 10"):
        export_openvino.export(module, (every_layer.IDS,), tmp_path / "n.openvino", FIXED, metadata={})
    assert not any(tmp_path.iterdir())
