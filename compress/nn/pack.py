"""Codes of 1 to 8 bits in bytes without a gap: code i is bits i * bits to (i + 1) * bits, lowest bit first.

Source: the little-endian bit order of ONNX's INT4 (ONNX IR, TensorProto: two elements per byte, the first in the low
half), carried on to widths that do not divide a byte.
Cost: 8 bytes of memory per code while it works.
"""

import torch
from jaxtyping import Int8, UInt8


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes take."""
    return -(-count * bits // 8)


def pack(codes: Int8[torch.Tensor, " n"], bits: int) -> UInt8[torch.Tensor, " bytes"]:
    """Signed codes in [-2^(bits-1), 2^(bits-1)) to bytes; eight codes fill `bits` bytes."""
    padded = torch.nn.functional.pad(codes, (0, -codes.numel() % 8)).reshape(-1, 8)
    words = torch.zeros(len(padded), dtype=torch.int64)
    for place in range(8):
        words |= (padded[:, place].long() & (2**bits - 1)) << (place * bits)
    octets = torch.stack([(words >> (8 * k)) & 0xFF for k in range(bits)], dim=1)
    return octets.to(torch.uint8).reshape(-1)[: packed_bytes(codes.numel(), bits)]


def unpack(packed: UInt8[torch.Tensor, " bytes"], bits: int, count: int) -> Int8[torch.Tensor, " n"]:
    """The first `count` codes of `pack`'s bytes."""
    octets = torch.nn.functional.pad(packed, (0, -packed.numel() % bits)).reshape(-1, bits)
    words = torch.zeros(len(octets), dtype=torch.int64)
    for k in range(bits):
        words |= octets[:, k].long() << (8 * k)
    codes = torch.stack([(words >> (place * bits)) & (2**bits - 1) for place in range(8)], dim=1).reshape(-1)[:count]
    return torch.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes).to(torch.int8)
