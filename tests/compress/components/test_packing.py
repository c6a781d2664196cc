"""A quantized variant on disk takes its bits and no more, and comes back as it was."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from compress.components import load_variant, save_variant
from compress.errors import UserError
from compress.quantize import rtn


def saved(folder, bits):
    result = rtn.apply(tiny.stage_input(folder), rtn.Config(bits=bits, clip=False))
    variant = replace(tiny.decoder(), module=result.module)
    save_variant(variant, folder / "saved")
    return variant, folder / "saved"


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_codes_take_their_bits_and_survive(tmp_path, bits):
    variant, folder = saved(tmp_path, bits)
    stored, state = load_file(folder / "weights.safetensors"), variant.module.state_dict()
    codes = [name for name in state if name.endswith(".qdata")]
    assert codes
    for name in codes:
        assert stored[name].numel() * stored[name].element_size() == -(-state[name].numel() * bits // 8)
    back = load_variant(folder)
    assert all(torch.equal(t, back.module.state_dict()[n]) for n, t in state.items())
    x = tiny.latents()
    assert torch.equal(back.module(x), variant.module(x))


def test_a_file_with_other_bits_than_its_map_is_refused(tmp_path):
    _, folder = saved(tmp_path, 4)
    layers = json.loads((folder / "quantization.json").read_text())
    layers["layers"]["conv_in"]["bits"] = 3
    (folder / "quantization.json").write_text(json.dumps(layers))
    with pytest.raises(UserError, match=r"conv_in.qdata is \[\d+\] in the file"):
        load_variant(folder)


def test_codes_that_lost_a_byte_are_refused(tmp_path):
    _, folder = saved(tmp_path, 4)
    path = folder / "weights.safetensors"
    stored = load_file(path)
    save_file(stored | {"conv_in.qdata": stored["conv_in.qdata"][:-1].clone()}, path)
    with pytest.raises(UserError, match=r"conv_in.qdata is \[\d+\] in the file"):
        load_variant(folder)
