"""Bit packing against a string of bits, and its laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.nn.pack import pack, packed_bytes, unpack

LAW = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def codes_of_a_width(draw):
    bits = draw(st.integers(1, 8))
    half = 2 ** (bits - 1)
    return bits, draw(st.lists(st.integers(-half, half - 1), max_size=35))


def bytes_by_strings(values, bits):
    """Every code as a string of bits, lowest first, cut into strings of eight."""
    line = "".join(format(value & (2**bits - 1), f"0{bits}b")[::-1] for value in values)
    return [int(line[start : start + 8][::-1], 2) for start in range(0, len(line), 8)]


@LAW
@given(codes_of_a_width())
def test_packs_as_a_string_of_bits_would_and_back(case):
    bits, values = case
    codes = torch.tensor(values, dtype=torch.int8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.tolist() == bytes_by_strings(values, bits)
    assert packed.numel() == packed_bytes(len(values), bits) == (len(values) * bits + 7) // 8
    back = unpack(packed, bits, len(values))
    assert back.dtype == torch.int8 and torch.equal(back, codes)


def test_four_bits_lie_as_onnx_wants_them():
    assert pack(torch.tensor([1, -1, 7], dtype=torch.int8), 4).tolist() == [0xF1, 0x07]


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_pair_of_codes_survives(bits):
    half = 2 ** (bits - 1)
    every = torch.arange(-half, half, dtype=torch.int8)
    pairs = torch.cartesian_prod(every, every).reshape(-1)
    assert torch.equal(unpack(pack(pairs, bits), bits, pairs.numel()), pairs)
