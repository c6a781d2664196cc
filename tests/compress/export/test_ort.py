"""ORT files hold the variant's integers, load, say what a minimal build needs, and are the same bytes every time."""

import logging
import struct

import every_layer
import pytest
import torch
from torch import nn

from compress.errors import UserError
from compress.nn.affine import Half, Palette, PerChannel, PerGroup

pytest.importorskip("onnx", reason="extra ort is not installed")
pytest.importorskip("onnxruntime", reason="extra ort is not installed")
pytest.importorskip("onnxscript", reason="extra ort is not installed")

from compress.export import _ort_format, _ort_session
from compress.export import onnx as export_onnx
from compress.export import ort as export_ort

FIXED = export_ort.Config(dynamic=False)


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory):
    path, module = tmp_path_factory.mktemp("ort") / "net.ort", every_layer.mixed(8)
    export_ort.export(module, (every_layer.IDS,), path, FIXED, metadata={"recipe": "net"}, output="states")
    return module, path


def test_integers_scales_and_results_are_the_variants(eight_bits):
    module, path = eight_bits
    every_layer.assert_held(export_ort, path, module)
    found = export_ort.load(path, threads=1)(every_layer.IDS)
    expected = module(every_layer.IDS)
    assert expected.std() > 0.1
    assert float((found - expected).abs().max()) < 0.05  # ties of the two layers with ranges, behind a norm
    record = _ort_format.parsed(path.read_bytes())
    assert _ort_format.metadata_of(record)["recipe"] == "net"
    operators = {node[5].decode() for node in record[1][7][2]}
    assert operators & {"MatMulIntegerToFloat", "MatMulNBits"}  # computed on integers, not on weights made float
    assert not [n for n, t in _ort_format.constants(record).items() if t.dtype == torch.float32 and t.numel() > 60]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its tool leaves a file open
def test_the_configuration_names_what_onnx_runtimes_own_tool_finds(eight_bits):
    _, path = eight_bits
    before = logging.root.level, list(logging.root.handlers)
    from onnxruntime.tools.ort_format_model import OrtFormatModelProcessor
    from onnxruntime.tools.reduced_build_config_parser import parse_config

    logging.root.setLevel(before[0])  # importing its tools sets up logging for everybody
    logging.root.handlers[:] = before[1]
    found = {}
    OrtFormatModelProcessor(str(path), found, None).process()
    config = path.with_suffix(".config")
    config.write_text(_ort_format.metadata_of(_ort_format.parsed(path.read_bytes()))["required_operators"])
    required, _ = parse_config(str(config), enable_type_reduction=True)
    assert {domain: dict(versions) for domain, versions in required.items()} == found


def test_what_converts_into_files_that_do_not_load_is_refused_beforehand(tmp_path):
    """With the proof that there is something to refuse; should it ever load, the refusal can go."""
    import onnxruntime

    net = nn.Sequential(nn.Conv2d(2, 3, 3)).eval()
    four = every_layer.replaced(
        net,
        {
            "0": every_layer.quantize_layer(
                net[0],
                every_layer.QuantizedLayer(bits=4, granularity=PerChannel()),
                every_layer.round_to_scale(
                    net[0].weight.detach(),
                    every_layer.absmax_scale(net[0].weight.detach(), bits=4, granularity=PerChannel()),
                    bits=4,
                    granularity=PerChannel(),
                ),
            )
        },
    )
    x, path = torch.randn(1, 2, 6, 6), tmp_path / "four.ort"
    export_onnx.export(four, (x,), tmp_path / "four.onnx", export_onnx.Config(dynamic=False), metadata={})
    options = _ort_session.options_of(onnxruntime, 1)
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    _ort_session.session(onnxruntime, tmp_path / "four.onnx", options, name=path)
    with pytest.raises(UserError, match="Unsupported tensor data type"):
        export_ort.load(path, threads=1)
    with pytest.raises(
        UserError, match=r"0: the ORT format has no 4-bit tensors: choose weight_bits 8, or export onnx"
    ):
        export_ort.export(four, (x,), tmp_path / "refused.ort", FIXED, metadata={})
    assert not (tmp_path / "refused.ort").exists()


@pytest.mark.parametrize(
    ("bits", "granularity", "activations", "words"),
    [
        (4, PerGroup(16), 32, "export onnx"),
        (16, Half("bfloat16"), 32, "export onnx"),
        (6, Palette(), 32, "choose quantize.rtn"),
        (8, PerChannel(), 16, "choose activation_bits 8"),
        (8, PerGroup(1), 32, "choose a size of 2 or more"),
    ],
)
def test_every_refusal_names_an_alternative(bits, granularity, activations, words):
    (reason,) = export_ort.refuse(bits, granularity, activations)
    assert words in reason


def test_an_onnx_file_under_its_name_and_a_flipped_bit_are_the_users_error(eight_bits, tmp_path):
    _, path = eight_bits
    content = path.read_bytes()
    (tmp_path / "other.ort").write_bytes(b"\x08\x0a" + bytes(40))
    with pytest.raises(UserError, match="other.ort: not a readable ORT file"):
        export_ort.load(tmp_path / "other.ort", threads=1)
    (root,) = struct.unpack_from("<I", content)
    damaged = 0
    for place in (0, 1, 4, root, root + 4, root + 5, root + 8, root + 12):
        flipped = bytearray(content)
        flipped[place] ^= 0x40
        (tmp_path / "bit.ort").write_bytes(flipped)
        try:
            export_ort.read_back(tmp_path / "bit.ort")
        except UserError as error:
            damaged += "bit.ort" in str(error)
    assert damaged >= 4


def test_reading_and_writing_changes_nothing_but_the_order(eight_bits):
    record = _ort_format.parsed(eight_bits[1].read_bytes())
    assert _ort_format.written(record) == eight_bits[1].read_bytes()
    turned = {**record, 1: {**record[1], 7: {**record[1][7], 0: record[1][7][0][::-1], 1: record[1][7][1][::-1]}}}
    assert _ort_format.written(turned) == eight_bits[1].read_bytes()
