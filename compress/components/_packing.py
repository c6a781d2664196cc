"""A variant's tensors on disk: codes of fewer than 8 bits packed without a gap.

Differs: torchao keeps a whole byte for each of its sub-byte weights in a file; here four bits take half a byte.
"""

from collections.abc import Mapping

import torch
from torch import nn

from compress.nn.pack import pack, packed_bytes, unpack
from compress.nn.qmodules import quantized


def packed_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with the codes of 2 to 7 bits as flat bytes."""
    state = module.state_dict()
    for name, bits, _ in _narrow(module):
        state[name] = pack(state[name].reshape(-1).cpu(), bits)
    return dict(state)


def unpacked_state(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse for a module of the same shape; what is packed otherwise is left as it is, to be refused."""
    state = dict(tensors)
    for name, bits, shape in _narrow(module):
        stored, count = state.get(name), shape.numel()
        if stored is not None and stored.dtype == torch.uint8 and stored.shape == (packed_bytes(count, bits),):
            state[name] = unpack(stored, bits, count).reshape(shape)
    return state


def _narrow(module: nn.Module) -> list[tuple[str, int, torch.Size]]:
    """Tensor name, bits and shape of every weight whose codes do not fill a byte."""
    layers = quantized(module).items()
    return [(f"{name}.qdata", q.layer.bits, q.qdata.shape) for name, q in layers if q.layer.bits < 8]
