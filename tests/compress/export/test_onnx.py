"""The ONNX file holds the variant's integers, computes what the variant computes, and is the same bytes every time."""

import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from compress.components import vae
from compress.errors import UserError
from compress.nn.affine import (
    ActivationRange,
    PerChannel,
    PerGroup,
    PerTensor,
    absmax_scale,
    activation_range,
    fake_quantize,
    round_to_scale,
)
from compress.nn.qmodules import QuantizedLayer, quantizable, quantize_layer, quantized
from compress.nn.surgery import replaced

pytest.importorskip("onnx", reason="extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="extra onnx is not installed")
pytest.importorskip("onnxscript", reason="extra onnx is not installed")

from compress.export import onnx as export_onnx

CONFIG = export_onnx.Config()


def tiny_decoder(seed=0):
    torch.manual_seed(seed)
    widths, steps = (16, 16, 8, 8), (16, 8, 8, None)
    hidden = ((16,), (), (), ())  # one block: a trace costs time by the node
    levels = tuple(vae.Level(width=w, hidden=h, step=s) for w, h, s in zip(widths, hidden, steps, strict=True))
    config = vae.DecoderConfig(latent_channels=8, levels=levels, norm_groups=4, linear_path=True)
    decoder = vae.Decoder(config).eval()
    with torch.no_grad():
        decoder.conv_out.bias += 0.5  # mid-grey, so that the final clamp hides nothing
        decoder.linear.weight *= 0.3
        for module in decoder.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
    return decoder


def observed(module, x):
    """Input and output ranges of every quantizable layer."""
    ranges = {}

    def hook(name):
        def note(_, inputs, output):
            ranges[name] = [activation_range(float(t.min()), float(t.max())) for t in (inputs[0], output)]

        return note

    hooks = [layer.register_forward_hook(hook(name)) for name, layer in quantizable(module).items()]
    with torch.no_grad():
        module(x)
    for handle in hooks:
        handle.remove()
    return ranges


def quantize(module, x, *, bits, granularity, static, names=None):
    names = quantizable(module) if names is None else names
    return quantize_each(module, x, dict.fromkeys(names, (bits, granularity, static)))


def quantize_each(module, x, choices):
    """`choices`: layer name -> (bits, granularity, whether activations too)."""
    ranges, swaps = observed(module, x), {}
    for name, layer in quantizable(module).items():
        if name in choices:
            bits, granularity, static = choices[name]
            scale = absmax_scale(layer.weight.detach(), bits=bits, granularity=granularity)
            weight = round_to_scale(layer.weight.detach(), scale, bits=bits, granularity=granularity)
            grids = ranges[name] if static else (None, None)
            spec = QuantizedLayer(bits=bits, granularity=granularity, input=grids[0], output=grids[1])
            swaps[name] = quantize_layer(layer, spec, weight)
    return replaced(module, swaps)


def run(module, x, path, config=CONFIG):
    """(torch, ONNX Runtime), after checking that the file's integers are the module's."""
    export_onnx.export(module, (x,), path, config, metadata={})
    held, own = export_onnx.read_back(path), quantized(module)
    assert held.keys() == own.keys()
    for name, layer in own.items():
        assert torch.equal(held[name].qdata, layer.qdata), name
        assert torch.equal(held[name].scale, layer.scale), name
        assert (held[name].bits, held[name].granularity) == (layer.layer.bits, layer.layer.granularity)
    with torch.no_grad():
        return module(x), export_onnx.load(path, threads=1)(x)


def psnr_db(a, b):
    return float(-10 * (a.double() - b.double()).square().mean().clamp_min(1e-20).log10())


def optimised(path, folder):
    """The operators that ONNX Runtime really runs."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.bin")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.bin").graph.node]


def test_float_decoder_matches_torch_at_any_size_and_batch(tmp_path):
    decoder, path = tiny_decoder(), tmp_path / "d.onnx"
    export_onnx.export(decoder, (torch.randn(2, 8, 6, 4),), path, CONFIG, metadata={})
    runner = export_onnx.load(path, threads=1)
    for shape in ((1, 8, 6, 4), (3, 8, 5, 9), (1, 8, 1, 1)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(runner(x), decoder(x), atol=2e-5, rtol=0)


def test_fixed_size_is_the_examples(tmp_path):
    import onnx

    export_onnx.export(
        tiny_decoder(), (torch.zeros(2, 8, 6, 4),), tmp_path / "d.onnx", export_onnx.Config(dynamic=False), metadata={}
    )
    graph = onnx.load(tmp_path / "d.onnx").graph
    assert graph.input[0].name == "latents"
    assert graph.output[0].name == "image"
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [1, 8, 6, 4]


def test_weight_only_decoder_matches_torch(tmp_path):
    x = torch.randn(1, 8, 6, 4)
    module = quantize(tiny_decoder(), x, bits=4, granularity=PerGroup(16), static=False)
    reference, candidate = run(module, x, tmp_path / "d.onnx")
    torch.testing.assert_close(candidate, reference, atol=2e-5, rtol=0)


def test_every_width_and_granularity_of_weights_matches_torch(tmp_path):
    torch.manual_seed(4)  # 20 does not divide the 45 inputs of a channel: a short last group, an odd number of weights
    kinds = [(b, g, False) for b in (4, 8) for g in (PerTensor(), PerChannel(), PerGroup(16), PerGroup(20))]
    net = nn.Sequential(*(nn.Conv2d(5, 5, 3, padding=1) for _ in kinds)).eval()
    x = torch.randn(1, 5, 6, 4)
    module = quantize_each(net, x, {str(number): kind for number, kind in enumerate(kinds)})
    reference, candidate = run(module, x, tmp_path / "c.onnx")
    assert float(reference.std()) > 1e-3
    torch.testing.assert_close(candidate, reference, atol=2e-5, rtol=0)


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """A static int8 decoder as the file that one export wrote, with metadata out of order."""
    decoder, folder = tiny_decoder(), tmp_path_factory.mktemp("static")
    x = torch.randn(1, 8, 12, 10, generator=torch.Generator().manual_seed(0))
    module = quantize(decoder, x, bits=8, granularity=PerChannel(), static=True)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    layers = dict(module.named_modules())
    export_onnx.export(module, (x,), folder / "d.onnx", CONFIG, metadata={"b": "2", "a": "1"})
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(layers[name] is m for name, m in module.named_modules())
    return SimpleNamespace(decoder=decoder, x=x, module=module, path=folder / "d.onnx")


def test_static_decoder_runs_on_integer_kernels_and_loses_no_more_than_the_simulation(static, tmp_path):
    candidate = export_onnx.load(static.path, threads=1)(static.x)
    with torch.no_grad():
        original, simulated = static.decoder(static.x), static.module(static.x)
    # A rounding tie that falls the other way spreads through every later normalisation, so that two correct runtimes
    # may differ by as much as quantization costs: what must agree is the distance to the float network.
    assert abs(psnr_db(original, candidate) - psnr_db(original, simulated)) < 1.0
    operators = optimised(static.path, tmp_path)
    assert operators.count("QLinearConv") == len(quantizable(static.decoder))
    assert "Conv" not in operators
    assert "GroupNormalization" not in operators


def test_same_module_same_bytes_and_nothing_of_this_machine(static, tmp_path, caplog):
    module = quantize(tiny_decoder(), static.x, bits=8, granularity=PerChannel(), static=True)
    example = torch.randn(2, 8, 7, 5)  # neither its values nor its size matter where the size is free
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx.export(module, (example,), tmp_path / "d", CONFIG, metadata={"a": "1", "b": "2"})
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]
    content = static.path.read_bytes()
    assert content == (tmp_path / "d").read_bytes()
    assert not re.search(rb"\.py|torch|/home|/tmp|/usr|File ", content)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_metadata_is_sorted_and_nodes_are_named_after_modules(static):
    import onnx

    model = onnx.load(static.path)
    written = [(p.key, p.value) for p in model.metadata_props]
    assert [pair for pair in written if not pair[0].startswith("input.")] == [("a", "1"), ("b", "2")]
    assert written == sorted(written) and "NCHW" in dict(written)["input.latents"]
    assert {n.name for n in model.graph.node if n.op_type == "Conv"} == set(quantized(static.module))


@pytest.mark.parametrize("groups", [1, 4])
def test_one_static_convolution_is_within_one_step_and_mostly_exact(tmp_path, groups):
    torch.manual_seed(1)
    conv = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=groups)).eval()
    x = torch.randn(1, 8, 24, 32) + 0.3
    module = quantize(conv, x, bits=8, granularity=PerChannel(), static=True)
    reference, candidate = run(module, x, tmp_path / "c.onnx")
    steps = (candidate - reference).abs() / quantized(module)["0"].layer.output.scale
    assert float(steps.max()) < 1.01
    assert float((steps > 0.5).float().mean()) < 1e-3


def test_bias_is_an_integer_on_the_grid_of_input_scale_times_weight_scale(tmp_path):
    import onnx

    conv = nn.Sequential(nn.Conv2d(2, 3, 1)).eval()
    x = torch.randn(1, 2, 4, 4)
    module = quantize(conv, x, bits=8, granularity=PerChannel(), static=True)
    export_onnx.export(module, (x,), tmp_path / "c.onnx", CONFIG, metadata={})
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "c.onnx").graph.initializer}
    layer = quantized(module)["0"]
    grid = layer.scale.double() * layer.layer.input.scale
    assert tensors["0.bias"].dtype == "int32"
    expected = [round(b / g) for b, g in zip(conv[0].bias.tolist(), grid.tolist(), strict=True)]
    assert tensors["0.bias"].tolist() == expected


class Mixed(nn.Module):
    """Padding before a convolution, a shared layer, equal biases, linear layers on 2-d and 4-d values."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.kept = nn.Conv2d(8, 8, 3, padding=1)
        self.wide = nn.Linear(8, 16)
        self.head = nn.Linear(16, 5)
        self.plain = nn.Linear(5, 4, bias=False)
        nn.init.zeros_(self.twice.bias)
        nn.init.zeros_(self.kept.bias)

    def forward(self, x):
        x = self.down(nn.functional.pad(x, (0, 1, 0, 1)))
        x = self.kept(self.twice(self.twice(x)))
        return self.plain(self.head(self.wide(x.permute(0, 2, 3, 1)).mean(dim=(1, 2))))


@pytest.mark.parametrize("linear", [(8, PerChannel()), (8, PerTensor()), (4, PerGroup(16))], ids=str)
def test_every_kind_of_layer_finds_its_place(tmp_path, linear):
    torch.manual_seed(2)
    x = torch.randn(1, 3, 16, 12)
    choices = {"down": (8, PerChannel(), True), "twice": (8, PerTensor(), True)}
    choices |= {"wide": (*linear, True), "head": (*linear, False), "plain": (*linear, True)}
    module = quantize_each(Mixed().eval(), x, choices)
    reference, candidate = run(module, x, tmp_path / "m.onnx")
    step = quantized(module)["plain"].layer.output.scale
    torch.testing.assert_close(candidate, reference, atol=1e-5 + 2 * step, rtol=0)


def test_two_layers_on_one_value_share_a_pair_only_where_the_range_is_the_same(tmp_path):
    import onnx

    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(2, 2, 1) for _ in range(3))

        def forward(self, x):
            return self.a(x) + self.b(x) + self.c(x)

    torch.manual_seed(3)
    wide, narrow = ActivationRange(scale=0.05, zero_point=100), ActivationRange(scale=0.01, zero_point=128)
    fork, swaps = Fork().eval(), {}
    for (name, layer), grid in zip(quantizable(fork).items(), (wide, narrow, wide), strict=True):
        scale = absmax_scale(layer.weight.detach(), bits=8, granularity=PerChannel())
        weight = round_to_scale(layer.weight.detach(), scale, bits=8, granularity=PerChannel())
        spec = QuantizedLayer(bits=8, granularity=PerChannel(), input=grid)
        swaps[name] = quantize_layer(layer, spec, weight)
    module, x = replaced(fork, swaps), torch.randn(1, 2, 5, 5) * 3
    reference, candidate = run(module, x, tmp_path / "f.onnx")
    torch.testing.assert_close(candidate, reference, atol=1e-5, rtol=0)
    nodes = onnx.load(tmp_path / "f.onnx").graph.node
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) == 2


def test_quantize_linear_rounds_like_fake_quantize_ties_and_edges_included(tmp_path):
    """An identity convolution with integer weight 127 and scale 1/127, fed with ties and values out of range."""
    grid = ActivationRange(scale=0.5, zero_point=3)
    conv = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)).eval()
    weight = round_to_scale(torch.ones(1, 1, 1, 1), torch.tensor([1 / 127]), bits=8, granularity=PerTensor())
    spec = QuantizedLayer(bits=8, granularity=PerTensor(), input=grid)
    module = replaced(conv, {"0": quantize_layer(conv[0], spec, weight)})
    x = torch.tensor([-1e9, -2.0, -1.75, -1.25, -0.25, 0.0, 0.25, 0.75, 1.25, 125.75, 126.25, 1e9]).reshape(1, 1, 3, 4)
    _, candidate = run(module, x, tmp_path / "q.onnx")
    expected = [-1.5, -1.5, -1.5, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 126.0, 126.0, 126.0]
    assert candidate.flatten().tolist() == pytest.approx(expected, rel=1e-6)
    assert fake_quantize(x, grid).flatten().tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("bits", "granularity", "activation_bits", "words"),
    [
        (3, PerChannel(), 8, "not 3: choose weight_bits 4 or 8"),
        (2, PerTensor(), 32, "not 2"),
        (8, PerChannel(), 16, "not 16 bits"),
        (4, PerGroup(1), 32, "size of 2 or more"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_with_the_alternatives(bits, granularity, activation_bits, words):
    (reason,) = export_onnx.refuse(bits, granularity, activation_bits)
    assert words in reason


def test_what_the_format_holds_is_not_refused():
    for bits in (4, 8, 32):
        for granularity in (PerTensor(), PerChannel(), PerGroup(16)):
            assert export_onnx.refuse(bits, granularity, 8) == []


def test_a_width_that_onnx_lacks_is_refused_layer_by_layer_and_nothing_is_written(tmp_path):
    x = torch.randn(1, 8, 6, 4)
    module = quantize(tiny_decoder(), x, bits=3, granularity=PerChannel(), static=False, names=("conv_in", "conv_out"))
    with pytest.raises(UserError, match=r"conv_in: .*not 3(?s:.*)conv_out: .*not 3"):
        export_onnx.export(module, (x,), tmp_path / "d.onnx", CONFIG, metadata={})
    assert not any(tmp_path.iterdir())


def test_a_layer_that_the_graph_lost_is_named(tmp_path):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            self.idle(x)
            return self.used(x)

    x = torch.randn(1, 2, 4, 4)
    module = quantize(Unused().eval(), x, bits=8, granularity=PerChannel(), static=True)
    with pytest.raises(UserError, match="without a place in the ONNX graph: idle;"):
        export_onnx.export(module, (x,), tmp_path / "u.onnx", CONFIG, metadata={})
    assert not any(tmp_path.iterdir())


def test_opsets_that_cannot_hold_the_integers_are_refused():
    for opset in (20, 13):
        with pytest.raises(ValueError, match="greater than or equal to 21"):
            export_onnx.Config(opset=opset)


def test_a_truncated_file_is_a_users_error_that_names_it(tmp_path):
    whole, cut = tmp_path / "whole.onnx", tmp_path / "cut.onnx"
    export_onnx.export(nn.Sequential(nn.Conv2d(2, 2, 3)).eval(), (torch.zeros(1, 2, 8, 8),), whole, CONFIG, metadata={})
    content = whole.read_bytes()
    for end in (*range(0, len(content) - 10, 7), len(content) - 1):
        cut.write_bytes(content[:end])
        with pytest.raises(UserError, match=re.escape(str(cut))):
            export_onnx.load(cut, threads=1)


def test_a_missing_or_foreign_file_is_a_users_error(tmp_path):
    (tmp_path / "text.onnx").write_text("not a model")
    for name in ("missing.onnx", "text.onnx"):
        with pytest.raises(UserError, match=name):
            export_onnx.load(tmp_path / name, threads=1)
        with pytest.raises(UserError, match=name):
            export_onnx.read_back(tmp_path / name)


class _Text(nn.Module):
    """Ids to vectors, one projection with a bias and one without."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.biased, self.plain = nn.Linear(8, 5), nn.Linear(5, 4, bias=False)

    def forward(self, ids):
        return self.plain(torch.tanh(self.biased(self.table(ids))))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(), PerGroup(4)], ids=str)
def test_quantized_embeddings_hold_their_integers(tmp_path, bits, granularity):
    torch.manual_seed(0)
    net, ids = _Text().eval().requires_grad_(False), torch.randint(0, 11, (1, 6))
    scale = absmax_scale(net.table.weight, bits=bits, granularity=granularity)
    weight = round_to_scale(net.table.weight, scale, bits=bits, granularity=granularity)
    twin = quantize_layer(net.table, QuantizedLayer(bits=bits, granularity=granularity), weight)
    module = replaced(net, {"table": twin})
    expected, got = run(module, ids, tmp_path / "text.onnx", export_onnx.Config(dynamic=False))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert got.shape == (1, 6, 4)  # `run` compared the integers with what the file holds


def test_a_linear_layer_without_an_output_range_runs_on_an_integer_kernel(tmp_path):
    """What `quantize.static` leaves: input on a grid, output in float, nothing dequantized before the product."""
    torch.manual_seed(1)
    net, ids = _Text().eval().requires_grad_(False), torch.randint(0, 11, (1, 6))
    swaps = {}
    for name in ("biased", "plain"):
        layer = net.get_submodule(name)
        scale = absmax_scale(layer.weight, bits=8, granularity=PerChannel())
        weight = round_to_scale(layer.weight, scale, bits=8, granularity=PerChannel())
        spec = QuantizedLayer(bits=8, granularity=PerChannel(), input=activation_range(-3.0, 3.0))
        swaps[name] = quantize_layer(layer, spec, weight)
    module = replaced(net, swaps)
    expected, got = run(module, ids, tmp_path / "text.onnx", export_onnx.Config(dynamic=False))
    torch.testing.assert_close(got, expected, rtol=0, atol=0.03)  # a tanh on the edge of two codes
    assert not {"MatMul", "Gemm", "FusedGemm"} & set(optimised(tmp_path / "text.onnx", tmp_path))


def test_integers_do_not_saturate(tmp_path):
    """Largest weights on largest activations: pairs of products that do not fit 16 bits."""
    layer = nn.Conv2d(16, 4, 3, padding=1).eval()
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.zero_()
    module = quantize(nn.Sequential(layer), torch.ones(1, 16, 6, 6), bits=8, granularity=PerChannel(), static=True)
    expected, got = run(module, torch.ones(1, 16, 6, 6), tmp_path / "full.onnx")
    assert float(expected.max()) == pytest.approx(144.0, rel=0.01)
    torch.testing.assert_close(got, expected, rtol=0.01, atol=0)
