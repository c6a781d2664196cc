"""What Neural Compressor decided is what the variant holds."""

import pytest
import tiny
import torch

from compress.nn.qmodules import quantized
from compress.quantize import _pt2e, neural_compressor

pytest.importorskip("neural_compressor", reason="extra neural-compressor is not installed")


def test_the_variant_loses_no_more_than_the_converted_graph(tmp_path, monkeypatch):
    """Oracle: the graph that the backend converted, run by PyTorch."""
    graphs = []
    read = _pt2e.read
    monkeypatch.setattr(_pt2e, "read", lambda graph, layers: graphs.append(graph) or read(graph, layers))
    result = neural_compressor.apply(tiny.stage_input(tmp_path), neural_compressor.Config(samples=4))
    x = tiny.latents(1, seed=5)
    with torch.no_grad():
        theirs = graphs[0](x)
    exact = tiny.decoder().module(x)
    ours, graphs_own = (float((made - exact).square().mean()) for made in (result.module(x), theirs))
    assert ours < 1.05 * graphs_own  # the graph also rounds sums between layers, which stay in float here
    assert float((result.module(x) - theirs).square().mean()) < 2.5 * graphs_own
    assert all(item.met for item in result.achieved) and len(quantized(result.module)) == 18


def test_excluded_layers_stay_float(tmp_path):
    result = neural_compressor.apply(
        tiny.stage_input(tmp_path), neural_compressor.Config(samples=2, exclude=("linear",))
    )
    assert "linear" not in quantized(result.module) and len(quantized(result.module)) == 17
