"""The .tflite file holds the variant's integers, computes what the variant computes, in one piece, the same bytes always."""

import warnings

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional

from compress.errors import UserError
from compress.nn.affine import (
    ActivationRange,
    Half,
    Palette,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedWeight,
    absmax_scale,
    activation_range,
    fake_quantize,
    round_to_scale,
)
from compress.nn.blocks import PixelAttention
from compress.nn.qmodules import QuantizedLayer, quantizable, quantize_layer, quantized
from compress.nn.surgery import replaced

pytest.importorskip("ai_edge_litert", reason="extra litert is not installed")

from compress.export import litert
from compress.export._litert_reader import Model, Runner, executed

CONFIG = litert.Config()
HALF = Half("float16")


def observed(module, x):
    ranges = {}

    def hook(name):
        def note(_, inputs, output):
            ranges[name] = [activation_range(float(t.min()), float(t.max())) for t in (inputs[0], output)]

        return note

    hooks = [layer.register_forward_hook(hook(name)) for name, layer in quantizable(module).items()]
    with torch.no_grad():
        module(*x)
    for handle in hooks:
        handle.remove()
    return ranges


def stored(weight, bits, granularity):
    if isinstance(granularity, Half):
        return QuantizedWeight(qdata=weight.half(), scale=torch.zeros(0), bits=16, granularity=granularity)
    scale = absmax_scale(weight, bits=bits, granularity=granularity)
    return round_to_scale(weight, scale, bits=bits, granularity=granularity)


def quantize(module, x, bits, granularity, activations=""):
    """`activations`: which of "io" (input, output) are on a grid; embeddings have none."""
    ranges, swaps = observed(module, x), {}
    for name, layer in quantizable(module).items():
        grids = (None, None) if isinstance(layer, nn.Embedding) else ranges[name]
        given, made = (grid if side in activations else None for side, grid in zip("io", grids, strict=True))
        spec = QuantizedLayer(bits=bits, granularity=granularity, input=given, output=made)
        swaps[name] = quantize_layer(layer, spec, stored(layer.weight.detach(), bits, granularity))
    return replaced(module, swaps)


def run(module, x, path, config=CONFIG, output="image"):
    """(torch, LiteRT), after checking that the file's integers are the module's."""
    litert.export(module, x, path, config, metadata={}, output=output)
    held, own = litert.read_back(path), quantized(module)
    assert held.keys() == own.keys()
    for name, q in own.items():
        assert torch.equal(held[name].qdata, q.qdata), name
        assert torch.equal(held[name].scale, q.scale), name
        assert (held[name].bits, held[name].granularity) == (q.layer.bits, q.layer.granularity)
    with torch.no_grad():
        return module(*x), litert.load(path, threads=1)(*x)


def codes(path):
    return [code for code, _, _ in Model(path).operators()]


class Layers(nn.Module):
    """Every kind of layer: full, strided and padded, grouped, depthwise with two maps a channel, linear on 2 and 4 axes."""

    def __init__(self):
        super().__init__()
        self.full = nn.Conv2d(4, 8, 3, padding=1)
        self.strided = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 12, (1, 3), padding=(0, 1), groups=2)
        self.deep = nn.Conv2d(12, 24, 3, padding="same", groups=12, bias=False)
        self.dilated = nn.Conv2d(24, 6, 3, padding=2, dilation=2)
        self.pixels = nn.Linear(6, 10)
        self.head = nn.Linear(10, 5, bias=False)

    def forward(self, x):
        x = self.dilated(self.deep(self.grouped(self.strided(self.full(x)))))
        return self.head(self.pixels(x.permute(0, 2, 3, 1)).mean(dim=(1, 2)))


def layers(seed=0):
    torch.manual_seed(seed)
    return Layers().eval().requires_grad_(False), (torch.randn(1, 4, 7, 8),)


def test_the_decoder_is_one_piece_for_xnnpack_and_speaks_the_layout_of_android(tmp_path):
    module, x = tiny.decoder().module, (tiny.latents(1),)
    expected, found = run(module, x, tmp_path / "d.tflite")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    runner = Runner(tmp_path / "d.tflite", threads=1)
    assert executed(runner.interpreter) == ["DELEGATE"]
    assert litert.partitions(tmp_path / "d.tflite") == 1
    signature = runner.interpreter.get_signature_list()["serving_default"]
    assert signature == {"inputs": ["latents"], "outputs": ["image"]}
    (given,), made = runner.inputs, runner.output
    assert (given["name"], list(given["shape"])) == ("latents", [1, 8, 8, 8])
    assert (made["name"], list(made["shape"])) == ("image", [1, 64, 64, 3])
    assert codes(tmp_path / "d.tflite").count("TRANSPOSE") == 1  # of the linear path's depth, at the latents' size


def test_the_unet_is_one_piece_and_the_text_encoder_behind_its_table_too(tmp_path):
    run(tiny.unet().module, tiny.unet_inputs(1), tmp_path / "u.tflite", output="prediction")
    assert litert.partitions(tmp_path / "u.tflite") == 1
    run(tiny.text().module, tiny.text_inputs(1), tmp_path / "t.tflite", output="states")
    runner = Runner(tmp_path / "t.tflite", threads=1)
    assert executed(runner.interpreter) == ["RESHAPE", "GATHER", "DELEGATE"]
    assert runner.inputs[0]["dtype"].__name__ == "int32"


@pytest.mark.parametrize(
    ("bits", "granularity"),
    [(8, PerChannel()), (8, PerTensor()), (4, PerChannel()), (4, PerTensor()), (16, HALF)],
    ids=str,
)
def test_weights_alone_compute_what_torch_computes_for_every_kind_of_layer(tmp_path, bits, granularity):
    net, x = layers()
    expected, found = run(quantize(net, x, bits, granularity), x, tmp_path / "w.tflite")
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    module = quantize(tiny.text().module, tiny.text_inputs(1), bits, granularity)
    expected, found = run(module, tiny.text_inputs(1), tmp_path / "t.tflite", output="states")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("int4", ["packed", "bytes"])
def test_four_bits_are_packed_or_in_bytes_that_xnnpack_runs_and_four_bits_all_the_same(tmp_path, int4):
    net, x = layers()
    path = tmp_path / "w.tflite"
    expected, found = run(quantize(net, x, 4, PerChannel(), "io"), x, path, litert.Config(int4=int4))
    steps = (found - expected).abs() / quantized(quantize(net, x, 4, PerChannel(), "io"))["head"].layer.output.scale
    assert float(steps.max()) < 2.01
    left = set(executed(Runner(path, threads=1).interpreter))
    assert left == ({"DELEGATE"} if int4 == "bytes" else {"DELEGATE", "CONV_2D", "DEPTHWISE_CONV_2D"})


def test_packed_weights_fill_half_of_the_bytes(tmp_path):
    net = nn.Sequential(nn.Conv2d(16, 33, 3)).eval().requires_grad_(False)
    x = (torch.randn(1, 16, 4, 4),)
    sizes = {}
    for bits in (4, 8):
        run(quantize(net, x, bits, PerChannel()), x, tmp_path / "c.tflite")
        sizes[bits] = (tmp_path / "c.tflite").stat().st_size
    assert abs(sizes[8] - sizes[4] - 16 * 33 * 9 / 2) < 64


@pytest.mark.parametrize("granularity", [PerChannel(), PerTensor()], ids=str)
def test_static_int8_runs_on_integers_and_is_what_the_variant_simulates(tmp_path, granularity):
    net, x = layers()
    module, path = quantize(net, x, 8, granularity, "io"), tmp_path / "s.tflite"
    expected, found = run(module, x, path)
    steps = (found - expected).abs() / quantized(module)["head"].layer.output.scale
    assert float(steps.max()) < 1.01
    assert "PAD" in codes(path)
    assert executed(Runner(path, threads=1).interpreter) == ["DELEGATE"]
    model = Model(path)
    for code, inputs, outputs in model.operators():
        if code in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            kinds = [model.types[model.graph.Tensors(t).Type()] for t in (*inputs, *outputs)]
            assert kinds == ["INT8", "INT8", "INT32", "INT8"]


def test_a_layer_with_one_range_only_rounds_there_and_computes_in_float(tmp_path):
    net, x = layers()
    for side in "io":
        module = quantize(net, x, 8, PerChannel(), side)
        expected, found = run(module, x, tmp_path / "s.tflite")
        torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.std()))
        types = {Model(tmp_path / "s.tflite").types[Model(tmp_path / "s.tflite").graph.Tensors(0).Type()]}
        assert types == {"FLOAT32"}


def test_quantize_rounds_like_fake_quantize_ties_and_edges_included(tmp_path):
    grid = ActivationRange(scale=0.5, zero_point=3)
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)).eval().requires_grad_(False)
    weight = round_to_scale(torch.ones(1, 1, 1, 1), torch.tensor([1 / 127]), bits=8, granularity=PerChannel())
    spec = QuantizedLayer(bits=8, granularity=PerChannel(), input=grid)
    module = replaced(net, {"0": quantize_layer(net[0], spec, weight)})
    values = [-1e9, -2.0, -1.75, -1.25, -0.25, 0.0, 0.25, 0.75, 1.25, 125.75, 126.25, 1e9]
    x = torch.tensor(values).reshape(1, 1, 3, 4)
    _, found = run(module, (x,), tmp_path / "q.tflite")
    torch.testing.assert_close(found, fake_quantize(x, grid), rtol=1e-6, atol=0)


def test_the_bias_is_an_integer_on_the_grid_of_input_scale_times_weight_scale(tmp_path):
    net, x = nn.Sequential(nn.Conv2d(2, 3, 1)).eval().requires_grad_(False), (torch.randn(1, 2, 4, 4),)
    module = quantize(net, x, 8, PerChannel(), "io")
    litert.export(module, x, tmp_path / "c.tflite", CONFIG, metadata={})
    model, q = Model(tmp_path / "c.tflite"), quantized(module)["0"]
    (bias,) = (t for t in map(model.graph.Tensors, range(model.graph.TensorsLength())) if t.Name() == b"0.bias")
    grid = q.scale.double() * q.layer.input.scale
    held = model.model.Buffers(bias.Buffer()).DataAsNumpy().view("int32").tolist()
    assert held == [round(b / g) for b, g in zip(net[0].bias.tolist(), grid.tolist(), strict=True)]
    assert bias.Quantization().ScaleAsNumpy().tolist() == pytest.approx(grid.tolist(), rel=1e-6)


class Views(nn.Module):
    """Maps as tokens and back, heads, slices, joins: memory may move or not, the numbers are torch's."""

    def forward(self, x):
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # free
        mixed = x.reshape(n, c * h, w)  # moves
        heads = tokens.unflatten(2, (2, c // 2)).transpose(1, 2)
        product = heads @ heads.transpose(2, 3)
        back = torch.cat([tokens.transpose(1, 2).unflatten(2, (h, w)), x[:, 1:3]], dim=1)
        first, second = back.chunk(2, dim=1)
        return (
            product.softmax(dim=2).mean(dim=(1, 2, 3), keepdim=True)
            + first.permute(0, 3, 1, 2).reshape(n, c // 2 + 1, h, w)
            - second.unsqueeze(2).squeeze(2) * mixed.mean()
        )


def test_views_of_maps_are_torchs_whatever_lies_where(tmp_path):
    x = (torch.randn(1, 4, 3, 6, generator=torch.Generator().manual_seed(1)),)
    expected, found = run(Views().eval(), x, tmp_path / "v.tflite")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class Calls(nn.Module):
    """One function of a map."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 4)[:, None, None])

    def forward(self, x):
        return self.function(x, self.weight)


FUNCTIONS = {
    "activations": lambda x, w: functional.relu(x) + torch.tanh(x) + functional.gelu(x) + functional.silu(x) * w,
    "more activations": lambda x, w: functional.hardswish(x) - functional.gelu(x, approximate="tanh") / (w + x.abs()),
    "numbers": lambda x, w: (2 - x) / 3 + torch.exp(-x) + torch.sin(x) * torch.cos(x) + x**2 + (x * x + 1) ** -0.5,
    "arithmetic": lambda x, w: torch.sub(x, w, alpha=2) + torch.maximum(x, w) * torch.minimum(x, -w),
    "clamps": lambda x, w: x.clamp(min=-0.5) + x.clamp(-0.1, 0.3) * w,
    "group norm": lambda x, w: functional.group_norm(5 + x, 2, w.flatten(), w.flatten(), 1e-3),
    "instance norm": lambda x, w: functional.group_norm(x, 4) + functional.group_norm(x, 1) * w,
    "layer norm": lambda x, w: functional.layer_norm(x, x.shape[-1:]),
    "zeros around": lambda x, w: functional.pad(x, (0, 1, 2, 3)),
    "doubled": lambda x, w: functional.interpolate(x, scale_factor=2.0, mode="nearest") + 0 * w,
    "four times": lambda x, w: functional.interpolate(x, scale_factor=4.0, mode="nearest"),
    "shuffled": lambda x, w: functional.pixel_shuffle(torch.cat([x, 2 * x], dim=1), 2),
    "picked": lambda x, w: torch.stack([x[:, 0], x[:, 3]], dim=1).expand(1, 2, 6, 4) * 2.0,
    "batch norm": lambda x, w: functional.batch_norm(x, w.flatten(), w.flatten(), w.flatten(), w.flatten()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_operator_is_torchs(tmp_path, name):
    x = torch.randn(1, 4, 6, 4, generator=torch.Generator().manual_seed(2))
    expected, found = run(Calls(FUNCTIONS[name]).eval(), (x,), tmp_path / "f.tflite")
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_written_is_named_with_its_module(tmp_path):
    net = nn.Sequential(nn.Conv2d(4, 4, 1), Calls(lambda x, w: torch.linalg.det(x)[:, :, None, None] * x)).eval()
    with pytest.raises(UserError, match=r"^1 uses aten.*det"):
        litert.export(net, (torch.randn(1, 4, 3, 3),), tmp_path / "f.tflite", CONFIG, metadata={})
    assert not list(tmp_path.iterdir())


class Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x):
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def test_a_convolution_of_a_doubled_map_is_four_small_ones_in_float_and_itself_on_integers(tmp_path):
    torch.manual_seed(3)
    net, x = Doubling().eval().requires_grad_(False), (torch.randn(1, 3, 4, 5),)
    expected, found = run(net, x, tmp_path / "d.tflite")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # borders included
    assert codes(tmp_path / "d.tflite").count("CONV_2D") == 4
    expected, found = run(quantize(net, x, 8, PerChannel()), x, tmp_path / "q.tflite")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert codes(tmp_path / "q.tflite").count("CONV_2D") == 1
    for path in tmp_path.iterdir():
        assert litert.partitions(path) == 1


def test_attention_between_pixels_moves_no_map(tmp_path):
    torch.manual_seed(4)
    net = PixelAttention(8, 8, 6, scale_width=8, norm_groups=2).eval().requires_grad_(False)
    expected, found = run(net, (torch.randn(1, 8, 5, 4),), tmp_path / "a.tflite")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert "TRANSPOSE" not in codes(tmp_path / "a.tflite")


def test_half_precision_halves_the_weights_and_refuses_what_it_cannot_hold(tmp_path):
    module, x = tiny.decoder().module, (tiny.latents(1),)
    paths = {p: tmp_path / f"{p}.tflite" for p in ("float32", "float16")}
    (expected, _), (_, found) = (run(module, x, path, litert.Config(precision=p)) for p, path in paths.items())
    assert 1e-6 < float((found - expected).abs().max()) < 3e-3
    weights = sum(t.numel() for n, t in module.state_dict().items() if t.dim() > 1)
    assert paths["float32"].stat().st_size - paths["float16"].stat().st_size > 1.9 * weights
    assert litert.partitions(paths["float16"]) == 1
    net = nn.Sequential(nn.Conv2d(2, 2, 1)).eval().requires_grad_(False)
    net[0].weight[0, 0] = 7e4
    with pytest.raises(UserError, match=r"0\.weight has values beyond 65504"):
        litert.export(net, (torch.zeros(1, 2, 2, 2),), tmp_path / "x", litert.Config(precision="float16"), metadata={})


def test_pictures_as_bytes_are_rounded_pictures_and_layouts_are_the_callers_choice(tmp_path):
    module, x = tiny.decoder().module, (tiny.latents(1),)
    expected, found = run(module, x, tmp_path / "b.tflite", litert.Config(pixels="uint8", layout="nchw"))
    assert torch.equal((found * 255).round(), found * 255)
    assert float((found - expected).abs().max()) < 0.5 / 255 + 1e-5
    runner = Runner(tmp_path / "b.tflite", threads=1)
    assert (runner.output["dtype"].__name__, list(runner.output["shape"])) == ("uint8", [1, 3, 64, 64])
    assert runner.output["quantization"] == (pytest.approx(1 / 255), 0)
    with pytest.raises(UserError, match="for components that make pictures"):
        litert.export(*(tiny.text().module, tiny.text_inputs(1)), tmp_path / "t", litert.Config(pixels="uint8"), metadata={}, output="states")  # fmt: skip


@pytest.mark.parametrize(
    ("bits", "granularity", "activation_bits", "words"),
    [
        (3, PerChannel(), 8, "not 3: choose weight_bits 4 or 8"),
        (8, PerChannel(), 16, "not 16 bits: choose activation_bits 8"),
        (4, PerGroup(32), 32, "each 32 weights: choose granularity: per_channel"),
        (4, Palette(), 32, "no palettes: choose quantize.rtn"),
        (16, Half("bfloat16"), 32, "no bfloat16 weights: choose"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_with_the_alternatives(
    bits, granularity, activation_bits, words, tmp_path
):
    (reason,) = litert.refuse(bits, granularity, activation_bits)
    assert words in reason


def test_a_layer_that_the_format_cannot_hold_is_named_and_nothing_is_written(tmp_path):
    net, x = layers()
    with pytest.raises(UserError, match=r"LiteRT cannot hold this variant:\nfull: .*per_channel(?s:.*)head: "):
        litert.export(quantize(net, x, 4, PerGroup(4)), x, tmp_path / "g.tflite", CONFIG, metadata={})
    assert not list(tmp_path.iterdir())


def test_a_layer_that_the_graph_lost_is_named(tmp_path):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.used(x) + 0 * self.idle.weight.sum() if x.dim() == 3 else self.used(x)

    net, x = Unused().eval().requires_grad_(False), (torch.randn(1, 2, 4, 4),)
    weight = stored(net.idle.weight, 8, PerChannel())
    spec = QuantizedLayer(bits=8, granularity=PerChannel())
    module = replaced(net, {"idle": quantize_layer(net.idle, spec, weight)})
    with pytest.raises(UserError, match="without a place in the LiteRT graph: idle; exclude"):
        litert.export(module, x, tmp_path / "u.tflite", CONFIG, metadata={})


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    net, x = layers()
    path = tmp_path_factory.mktemp("small") / "small.tflite"
    litert.export(quantize(net, x, 4, PerChannel()), x, path, CONFIG, metadata={"recipe": "a/b", "component": "c"})
    return path


def test_same_module_same_bytes_metadata_inside_and_every_buffer_aligned(small, tmp_path):
    net, x = layers()
    litert.export(
        quantize(net, x, 4, PerChannel()), x, tmp_path / "b", CONFIG, metadata={"component": "c", "recipe": "a/b"}
    )
    assert (tmp_path / "b").read_bytes() == small.read_bytes()
    model = Model(small)
    assert model.note() == {"component": "c", "recipe": "a/b", "layout": "nhwc", "pixels": "float32"}
    buffers = [model.model.Buffers(i) for i in range(model.model.BuffersLength())]
    begins = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if not b.DataIsNone()]
    assert begins
    assert all(begin % 16 == 0 for begin in begins)
    assert b"/home" not in small.read_bytes()
    assert b"/tmp" not in small.read_bytes()


def test_no_flipped_bit_passes(small, tmp_path):
    content = bytearray(small.read_bytes())
    generator = torch.Generator().manual_seed(5)
    places = {0, 3, 4, 8, 40, len(content) - 1, *torch.randint(0, len(content), (60,), generator=generator).tolist()}
    broken = tmp_path / "broken.tflite"
    for place in places:
        content[place] ^= 4
        broken.write_bytes(content)
        content[place] ^= 4
        for call in (litert.read_back, lambda path: litert.load(path, threads=1)):
            with pytest.raises(UserError, match=r"broken\.tflite"):
                call(broken)


def test_a_file_of_another_maker_and_inputs_of_another_size_are_the_users_error(small, tmp_path):
    foreign = tmp_path / "foreign.tflite"
    foreign.write_bytes(small.read_bytes().replace(b"mdcompress sha256", b"somebody elses no"))
    with pytest.raises(UserError, match="not written by mdcompress"):
        litert.load(foreign, threads=1)
    with pytest.raises(UserError, match=r"x is \[1, 7, 8, 4\] in the file, not \[1, 8, 8, 4\]"):
        litert.load(small, threads=1)(torch.zeros(1, 4, 8, 8))


@pytest.mark.slow
def test_tensorflow_reads_the_file_too(tmp_path):
    tf = pytest.importorskip("tensorflow", reason="tensorflow is not installed")
    module = quantize(tiny.decoder().module, (tiny.latents(1),), 8, PerChannel(), "io")
    expected, found = run(module, (tiny.latents(1),), tmp_path / "d.tflite")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that LiteRT's own interpreter is newer
        reader = tf.lite.Interpreter(model_path=str(tmp_path / "d.tflite"))
    step = reader.get_signature_runner("serving_default")
    theirs = step(latents=tiny.latents(1).permute(0, 2, 3, 1).numpy())["image"]
    theirs = torch.from_numpy(theirs).permute(0, 3, 1, 2)
    assert float((theirs - found).abs().mean()) < 1e-3
    assert float((theirs - expected).abs().mean()) < 1e-3
