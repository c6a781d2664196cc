"""A component folder reads back as it was written, and every kind of damage is named."""

import json
import struct
from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from compress import components
from compress.errors import UserError
from compress.quantize import rtn
from compress.records import Achieved, Skipped, StageRecord, Table

WEIGHTS = "weights.safetensors"


@pytest.fixture
def folder(tmp_path):
    components.save_variant(tiny.decoder(), tmp_path / "decoder")
    return tmp_path / "decoder"


@pytest.fixture
def quantized_folder(tmp_path):
    result = rtn.apply(tiny.stage_input(tmp_path), rtn.Config(bits=4))
    components.save_variant(replace(tiny.decoder(), module=result.module), tmp_path / "quantized")
    return tmp_path / "quantized"


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def change_arch(folder, change):
    path = folder / "arch.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def change_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def refusal(folder):
    with pytest.raises(UserError) as caught:
        components.load_variant(folder)
    message = str(caught.value)
    assert str(folder) in message
    return message


def test_reads_back_what_was_written(folder):
    back = components.load_variant(folder)
    assert back.arch == tiny.decoder().arch and back.component == "tiny/decoder"
    assert torch.equal(back.module(tiny.latents()), tiny.decoder().module(tiny.latents()))
    assert not back.module.training and not any(p.requires_grad for p in back.module.parameters())


def test_lineage_reads_back(tmp_path):
    record = StageRecord(
        method="prune.depth",
        config={"blocks": 2, "keep": ["a*"]},
        key="0" * 64,
        achieved=(Achieved(what="blocks removed", requested=2, achieved=2, unit="blocks", met=True),),
        skipped=(Skipped(name="a.b", reason="kept"),),
        notes=("removed c",),
        tables=(Table(name="t", title="T", columns=("layer", "bits", "mse"), rows=(("a", 4, 0.5), ("b", 8, None))),),
    )
    components.save_variant(replace(tiny.decoder(), lineage=(record, record)), tmp_path)
    back = components.load_variant(tmp_path).lineage
    assert back == (record, record)
    assert [type(cell) for cell in back[0].tables[0].rows[0]] == [str, int, float]


def test_a_lineage_written_before_there_were_tables(tmp_path):
    record = StageRecord(method="prune.depth", config={}, key="0" * 64)
    components.save_variant(replace(tiny.decoder(), lineage=(record,)), tmp_path)
    path = tmp_path / "lineage.json"
    data = json.loads(path.read_text())
    del data["stages"][0]["tables"]
    path.write_text(json.dumps(data))
    assert components.load_variant(tmp_path).lineage == (record,)


@pytest.mark.parametrize("row", [("a",), ("a", float("nan")), ("a", float("inf"))])
def test_a_table_that_nobody_could_draw(row):
    with pytest.raises(ValueError, match="cells under|no finite number"):
        Table(name="t", title="T", columns=("layer", "mse"), rows=(row,))


@pytest.mark.parametrize("name", ["folder", "quantized_folder"])
def test_the_same_variant_is_the_same_bytes(name, request, tmp_path):
    folder = request.getfixturevalue(name)
    components.save_variant(components.load_variant(folder), tmp_path / "again")
    components.save_variant(components.load_variant(folder), tmp_path / "again")  # over what is there
    assert content(tmp_path / "again") == content(folder)


def test_a_float_variant_written_over_a_quantized_one_is_float(quantized_folder):
    components.save_variant(tiny.decoder(), quantized_folder)
    back = components.load_variant(quantized_folder)
    assert torch.equal(back.module(tiny.latents()), tiny.decoder().module(tiny.latents()))


def test_half_precision_weights_are_read_as_float32(folder):
    change_tensors(folder, lambda tensors: tensors.update({n: t.half() for n, t in tensors.items()}))
    module = components.load_variant(folder).module
    assert {t.dtype for t in module.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(module(tiny.latents()), tiny.decoder().module(tiny.latents()), rtol=0, atol=0.01)


def test_names_missing_and_unexpected_tensors_and_both_shapes(folder):
    def damage(tensors):
        del tensors["conv_in.bias"]
        tensors["extra.weight"] = torch.ones(2, 2)
        tensors["conv_out.bias"] = torch.ones(5)

    change_tensors(folder, damage)
    message = refusal(folder)
    assert "missing tensor conv_in.bias [16]" in message
    assert "unexpected tensor extra.weight [2, 2]" in message
    assert "conv_out.bias is [5] in the file, [3] in arch.json" in message


def test_many_problems_are_counted_not_all_listed(folder):
    change_tensors(folder, lambda tensors: [tensors.pop(n) for n in list(tensors)[1:]])
    message = refusal(folder)
    count = len(tiny.decoder().module.state_dict()) - 1
    assert message.count("missing tensor") == 12 and f"and {count - 12} more" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_weight_that_is_no_number(folder, value):
    def damage(tensors):
        tensors["conv_in.weight"][3, 2, 1, 1] = value

    change_tensors(folder, damage)
    assert "conv_in.weight holds NaN or Inf" in refusal(folder)


@pytest.mark.parametrize("length", [0, 4, 8, 9, 200, 0.5, -1000, -1])
def test_a_truncated_file(folder, length):
    path = folder / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[: int(length * len(data)) if isinstance(length, float) else length])
    message = refusal(folder)
    assert "truncated" in message or "not a complete safetensors file" in message


def test_bytes_too_many(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes() + b"\0" * 16)
    assert "damaged" in refusal(folder)


def with_header(folder, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)


LIES = {
    "length beyond the file": None,
    "not JSON": b"{]",
    "not text": b"\xff\xfe\xfd\xfc",
    "a list": [1, 2],
    "a number": 7,
    "entry is no record": {"conv_in.bias": 3},
    "no offsets": {"conv_in.bias": {"dtype": "F32", "shape": [1]}},
    "one offset": {"conv_in.bias": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
    "offsets are words": {"conv_in.bias": {"dtype": "F32", "shape": [1], "data_offsets": ["a", "b"]}},
    "offsets against shape": {"conv_in.bias": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}},
    "unknown type": {"conv_in.bias": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
    "offsets backwards": {"conv_in.bias": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies(folder, lie):
    if LIES[lie] is None:
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}" * 20)
    else:
        with_header(folder, LIES[lie], b"\0" * 4)
    message = refusal(folder)
    assert "truncated" in message or "not a complete safetensors file" in message


def test_files_that_are_not_there(folder):
    (folder / WEIGHTS).unlink()
    assert "weights.safetensors does not exist" in refusal(folder)
    (folder / "arch.json").unlink()
    assert "arch.json does not exist" in refusal(folder)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d["config"].update(witdh=3), "config has unknown keys: witdh"),
        (lambda d: d["config"]["levels"][2].update(depth=3), "config has unknown keys: levels.2.depth"),
        (lambda d: d["config"].pop("norm_groups"), "config.norm_groups"),
        (lambda d: d["config"].update(norm_groups="many"), "config.norm_groups"),
        (lambda d: d["config"].update(norm_groups=3), "16 channels are not a multiple of 3 norm groups"),
        (lambda d: d["config"]["levels"][1].update(width=20), "step 16, but level 1 is 20 wide"),
        (lambda d: d["config"]["levels"].pop(), "3 levels"),
        (lambda d: d.update(config=None), "config"),
        (lambda d: d.update(kind="vae.painter"), "no component of kind 'vae.painter'; known: "),
        (lambda d: d.update(kind="decoder"), "no component of kind 'decoder'"),
        (lambda d: d.update(kind=None), "it needs schema: 1, kind and config"),
        (lambda d: d.update(schema=2), "it needs schema: 1"),
    ],
)
def test_an_architecture_that_is_wrong(folder, change, words):
    change_arch(folder, change)
    assert words in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "3"])
def test_an_architecture_file_that_is_none(folder, text):
    (folder / "arch.json").write_text(text)
    assert "arch.json" in refusal(folder)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d.pop("layers"), "layers"),
        (lambda d: d["layers"].update({"levels.7.conv": d["layers"]["conv_in"]}), "levels.7.conv"),
        (lambda d: d["layers"]["conv_in"].pop("bits"), "conv_in"),
        (lambda d: d["layers"]["conv_in"].update(granularity="per_colour"), "conv_in"),
        (lambda d: d["layers"]["conv_in"].update(bits="four"), "conv_in"),
        (lambda d: d["layers"]["conv_in"].update(bits=99), "conv_in"),
        (lambda d: d["layers"]["conv_in"].update(input={"scale": 1.0}), "conv_in"),
        (lambda d: d["layers"]["conv_in"].update(granularity={"per_group": 0}), "conv_in"),
    ],
)
def test_a_quantization_map_that_does_not_fit(quantized_folder, change, words):
    path = quantized_folder / "quantization.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    message = refusal(quantized_folder)
    assert "quantization.json" in message and words in message


@pytest.mark.parametrize("text", ["[]", '{"stages": [{}]}', '{"stages": 3}', '{"stages": [{"method": "a"}]}'])
def test_a_lineage_that_is_none(folder, text):
    (folder / "lineage.json").write_text(text)
    assert "lineage.json" in refusal(folder)


def test_a_checkpoint_folder_is_found_by_component_or_itself(folder):
    assert components.find("tiny/decoder", folder.parent) == folder
    assert components.find("tiny/decoder", folder) == folder
    with pytest.raises(UserError, match="no arch.json here or in painter/"):
        components.find("tiny/painter", folder.parent)
    with pytest.raises(UserError, match="did you mean 'md-tiny/decoder'"):
        components.find("md-tiny/decodr")
