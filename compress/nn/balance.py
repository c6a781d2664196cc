"""Scales moved between layers without a change of what the network computes.

Where the output of a norm, a convolution or a linear layer goes into convolutions or linear layers and nowhere else,
directly or through a ReLU or nearest-neighbour upsampling, its channels can be divided by any positive numbers if the
columns of those layers are multiplied by them.

Source: SmoothQuant (Xiao et al. 2022, arXiv:2211.10438), section 4; cross-layer equalisation (Nagel et al. 2019,
arXiv:1906.04721), section 4.1, which is the same move between two convolutions.
Differs: where the move is possible is found by watching one forward pass, not by a table of architectures, and proved
by making it: with powers of two the output must stay the same number for number. What is left alone is named.
Cost: two forward passes on one input, and one more for each place where something else reads the same output.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.nn.surgery import replaced
from compress.records import Inputs

Norm = nn.GroupNorm | nn.LayerNorm
Reader = nn.Conv2d | nn.Linear
aten = torch.ops.aten
THROUGH = {  # f(s * x) = s * f(x) for positive s, each channel by itself
    aten.relu,
    aten.relu_,
    aten.leaky_relu,
    aten.clone,
    aten.constant_pad_nd,
    aten.upsample_nearest2d,
    aten.avg_pool2d,
}
SAME = 1e-6  # of the largest output: powers of two change no digit, but a kernel may be chosen by alignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Seam:
    """A layer that makes channels, and the layers that alone read them."""

    producer: str
    readers: tuple[str, ...]


def seams(module: nn.Module, inputs: Inputs) -> tuple[tuple[Seam, ...], dict[str, str]]:
    """Where scales can be moved, and for every other convolution and linear layer why not.

    Args:
        module: A float network in eval mode.
        inputs: One call's, e.g. a single sample.
    """
    parts = dict(module.named_modules())
    found = [seam for seam in _adjacent(module, inputs) if _fits(parts, seam)]
    if found and not _keeps(module, inputs, found):
        found = [seam for seam in found if _keeps(module, inputs, [seam])]
    balanced = {name for seam in found for name in seam.readers}
    left = {
        name: "its input does not come straight from a norm, convolution or linear layer that nothing else reads"
        for name, part in parts.items()
        if isinstance(part, Reader) and name not in balanced
    }
    return tuple(found), left


def moved(module: nn.Module, scales: Mapping[Seam, Float[torch.Tensor, " c"]]) -> nn.Module:
    """A twin in which producers' channels are divided by their scales and readers' columns multiplied by them."""
    parts = dict(module.named_modules())
    swaps: dict[str, nn.Module] = {}
    for seam, scale in scales.items():
        made = _copy((parts | swaps)[seam.producer])
        rows = scale.reshape(-1, *[1] * (made.weight.dim() - 1))
        made.weight = nn.Parameter(made.weight / rows, requires_grad=False)
        if made.bias is not None:
            made.bias = nn.Parameter(made.bias / scale, requires_grad=False)
        swaps[seam.producer] = made
        for name in seam.readers:
            reader = _copy((parts | swaps)[name])
            columns = scale.reshape(1, -1, *[1] * (reader.weight.dim() - 2))
            reader.weight = nn.Parameter(reader.weight * columns, requires_grad=False)
            swaps[name] = reader
    return replaced(module, swaps)


def column_peaks(module: nn.Module, seam: Seam) -> Float[torch.Tensor, " c"]:
    """The largest weight of all readers that each channel is multiplied with."""
    parts = dict(module.named_modules())
    return torch.stack([_copy(parts[n]).weight.abs().transpose(0, 1).flatten(1).amax(1) for n in seam.readers]).amax(0)


def _copy(part: nn.Module) -> nn.Conv2d | nn.Linear | nn.GroupNorm | nn.LayerNorm:
    """A shallow copy whose tensors can be replaced."""
    if not isinstance(part, Reader | Norm):
        raise TypeError(f"{type(part).__name__} has no weight per channel")
    new = copy.copy(part)
    new._parameters = dict(part._parameters)
    return new


class _Watch(TorchDispatchMode):
    """Which producer made each tensor, by its memory: views do not hide it, nor operations in `THROUGH`."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, str] = {}
        self.held: list[torch.Tensor] = []  # so that no memory is used twice

    def mark(self, tensor: torch.Tensor, producer: str | None) -> None:
        """Note where a tensor comes from."""
        if producer is not None:
            self.made[_memory(tensor)] = producer
            self.held.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in THROUGH:
            self.mark(output, self.made.get(_memory(args[0])))
        return output


def _adjacent(module: nn.Module, inputs: Inputs) -> list[Seam]:
    """Producers and the layers that read what they make."""
    watch, handles = _Watch(), []
    readers: dict[str, list[str]] = defaultdict(list)

    def before(name: str, x: torch.Tensor) -> None:
        source = watch.made.get(_memory(x))
        if source is not None and name not in readers[source]:
            readers[source].append(name)

    for name, part in module.named_modules():
        if isinstance(part, Reader):
            handles.append(part.register_forward_pre_hook(lambda _, args, name=name: before(name, args[0])))
        if isinstance(part, Reader | Norm):
            handles.append(part.register_forward_hook(lambda _, args, output, name=name: watch.mark(output, name)))
    try:
        with torch.no_grad(), watch:
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [Seam(producer=name, readers=tuple(found)) for name, found in readers.items()]


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _fits(parts: Mapping[str, nn.Module], seam: Seam) -> bool:
    """Whether there is one scale per channel on both sides."""
    producer = parts[seam.producer]
    if getattr(producer, "weight", None) is None:
        return False
    channels = _copy(producer).weight.shape[0]
    readers = [parts[name] for name in seam.readers]
    return all(
        isinstance(reader, Reader)
        and reader.weight.shape[1] == channels
        and not (isinstance(reader, nn.Conv2d) and reader.groups > 1)
        for reader in readers
    )


def _keeps(module: nn.Module, inputs: Inputs, found: Sequence[Seam]) -> bool:
    """Whether the output stays as it is when every second channel of these seams is halved and the others doubled."""
    scales = {}
    for seam in found:
        channels = _copy(dict(module.named_modules())[seam.producer]).weight.shape[0]
        scales[seam] = torch.full((channels,), 2.0)
        scales[seam][::2] = 0.5
    with torch.no_grad():
        expected, got = module(*inputs), moved(module, scales)(*inputs)
    return float((got - expected).abs().max()) <= SAME * float(expected.abs().max())
