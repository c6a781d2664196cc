"""What torchao decided is what the variant holds."""

import pytest
import tiny
import torch

from compress.errors import UserError
from compress.nn.affine import dequantize
from compress.nn.qmodules import quantized
from compress.quantize import _pt2e, torchao
from compress.records import Prediction

pytest.importorskip("torchao", reason="extra torchao is not installed")


def test_the_variant_loses_no_more_than_the_converted_graph(tmp_path, monkeypatch):
    """Oracle: the graph that the backend converted, run by PyTorch."""
    graphs = []
    read = _pt2e.read
    monkeypatch.setattr(_pt2e, "read", lambda graph, layers: graphs.append(graph) or read(graph, layers))
    result = torchao.apply(tiny.stage_input(tmp_path), torchao.Config(samples=4))
    x = tiny.latents(1, seed=5)
    with torch.no_grad():
        theirs = graphs[0](x)
    exact = tiny.decoder().module(x)
    ours, graphs_own = (float((made - exact).square().mean()) for made in (result.module(x), theirs))
    assert ours < 1.05 * graphs_own  # the graph also rounds sums between layers, which stay in float here
    assert float((result.module(x) - theirs).square().mean()) < 2.5 * graphs_own
    assert all(item.met for item in result.achieved) and len(quantized(result.module)) == 18


def test_excluded_layers_stay_float(tmp_path):
    result = torchao.apply(tiny.stage_input(tmp_path), torchao.Config(samples=2, exclude=("linear",)))
    assert "linear" not in quantized(result.module) and len(quantized(result.module)) == 17


def test_weight_only_integers_of_a_linear_are_torchaos_own(tmp_path):
    """Oracle: torchao's own dequantized weight."""
    from torchao.quantization import IntxWeightOnlyConfig, PerAxis, quantize_
    from torchao.quantization.quant_primitives import MappingType

    layer = torch.nn.Linear(32, 8).requires_grad_(False)
    config = torchao.Config(mode="weight_only", weight_bits=4)
    found = torchao._weight_only({"fc": layer}, config)["fc"]
    holder = torch.nn.Sequential(torch.nn.Linear(32, 8))
    holder[0].load_state_dict(layer.state_dict())
    mapping = MappingType.SYMMETRIC_NO_CLIPPING_ERR
    quantize_(holder, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerAxis(0), mapping_type=mapping))
    difference = (dequantize(found.weight) - holder[0].weight.dequantize()).abs()
    moved = difference > 1e-6
    assert int(moved.sum()) == found.clipped  # only those at the lowest code, by one step
    assert bool((difference <= found.weight.scale.reshape(-1, 1) * 1.001).all())


def test_weight_only_refuses_convolutions_when_it_is_planned():
    prediction = Prediction(ends=(tiny.decoder().arch,))
    with pytest.raises(UserError, match=r"leaves convolutions in float without a word.*quantize\.rtn"):
        torchao.predict(prediction, torchao.Config(mode="weight_only"))


def test_static_has_eight_bits():
    with pytest.raises(ValueError, match="use mode: weight_only"):
        torchao.Config(weight_bits=4)
