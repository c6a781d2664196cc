"""A variant's tensors on disk: codes of fewer than 8 bits packed without a gap.

Differs: torchao keeps a whole byte for each of its sub-byte weights in a file; here four bits take half a byte.
"""

import torch
from torch import nn

from compress.nn.pack import pack, packed_bytes, unpack
from compress.nn.qmodules import quantized


def packed_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with the codes of 2 to 7 bits as flat bytes."""
    state = module.state_dict()
    for name, bits in narrow(module).items():
        state[name] = pack(state[name].reshape(-1).cpu(), bits)
    return dict(state)


def stored(module: nn.Module) -> dict[str, torch.Tensor]:
    """The shapes and types that a file has for this module: its state dict, packed codes as flat bytes without data."""
    state = module.state_dict()
    for name, bits in narrow(module).items():
        state[name] = torch.empty(packed_bytes(state[name].numel(), bits), dtype=torch.uint8, device="meta")
    return dict(state)


def unpacked(tensor: torch.Tensor, bits: int, wanted: torch.Tensor) -> torch.Tensor:
    """The codes of a weight from its bytes."""
    return unpack(tensor, bits, wanted.numel()).reshape(wanted.shape)


def narrow(module: nn.Module) -> dict[str, int]:
    """The bits of every weight whose codes do not fill a byte, by the name of its tensor."""
    return {f"{name}.qdata": q.layer.bits for name, q in quantized(module).items() if q.layer.bits < 8}
