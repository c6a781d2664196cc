"""Streaming second moments of what layers multiply: X^T X over all rows, for Linear and Conv2d.

A row is one input vector of a linear layer, or one patch of a convolution (im2col): channels first, kernel positions
last, as the flattened weight has them. A grouped convolution has one matrix per group of channels.

Source: the Hessian of a layer's squared output error (Hassibi and Stork 1993) as GPTQ uses it (Frantar et al. 2022,
arXiv:2210.17323, section 3.1), without the factor 2.
Differs: patches are unfolded strip by strip of output rows, so that memory does not grow with the picture.
Cost: columns^2 MACs per row; 4 * columns^2 bytes per group of channels, whatever the number of batches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from calibration.errors import DataError

STRIP = 1 << 22  # values unfolded at a time

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hessian:
    """The sum of outer products of all rows, in float32, and how many rows there were."""

    matrix: Float[Tensor, "groups columns columns"]
    rows: int


def collect_hessians(module: nn.Module, run: Callable[[], object], names: Sequence[str]) -> dict[str, Hessian]:
    """Call `run`, which runs the module however often it wants, and sum up what the named layers are given.

    The module is left as it was, also when something fails.

    Raises:
        DataError: a name is not a Linear or Conv2d of the module, a layer was never called, or its input holds NaN or
            infinity.
    """
    known = dict(module.named_modules())
    unfit = [name for name in names if not isinstance(known.get(name), nn.Linear | nn.Conv2d)]
    if unfit:
        raise DataError(f"no Linear or Conv2d named {', '.join(map(repr, unfit))} in {type(module).__name__}")
    seen: dict[str, Hessian] = {}
    handles = [known[name].register_forward_pre_hook(_hook(seen, name)) for name in names]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    never = [name for name in names if name not in seen]
    if never:
        raise DataError(f"never called while the inputs ran: {', '.join(map(repr, never))}; leave them out")
    return seen


def hessian(layer: Layer, x: Tensor, *, name: str = "the layer") -> Hessian:
    """The second moments of one input of one layer.

    Raises:
        DataError: the input holds NaN or infinity; the message has `name`.
    """
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    columns = layer.weight[0].numel()
    matrix, rows = torch.zeros(groups, columns, columns, device=x.device), 0
    for strip in _patches(layer, x.detach().float()):
        matrix.baddbmm_(strip, strip.transpose(1, 2))
        rows += strip.shape[2]
    if not matrix.isfinite().all():
        raise DataError(f"the input of '{name}' holds NaN or infinity; check the weights and the inputs of the module")
    return Hessian(matrix=matrix, rows=rows)


def merge(a: Hessian, b: Hessian) -> Hessian:
    """The moments of both together."""
    return Hessian(matrix=a.matrix + b.matrix, rows=a.rows + b.rows)


def _hook(seen: dict[str, Hessian], name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
    def hook(layer: nn.Module, args: tuple[object, ...]) -> None:
        if not args or not isinstance(args[0], Tensor):
            raise DataError(f"the input of '{name}' is not one tensor; leave '{name}' out")
        new = hessian(cast("Layer", layer), args[0], name=name)
        seen[name] = merge(seen[name], new) if name in seen else new

    return hook


def _patches(layer: Layer, x: Float[Tensor, "..."]) -> Iterator[Float[Tensor, "groups columns rows"]]:
    """What each group of the layer multiplies, a strip of output rows of one sample at a time."""
    if isinstance(layer, nn.Linear):
        for part in x.reshape(-1, x.shape[-1]).split(max(1, STRIP // x.shape[-1])):
            yield part.T[None]
        return
    (kernel, _), (stride, _), (spread, _) = ((a[0], a[1]) for a in (layer.kernel_size, layer.stride, layer.dilation))
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)  # also of padding="same"
    reach = spread * (kernel - 1) + 1
    height = (padded.shape[2] - reach) // stride + 1
    lines = max(1, STRIP // (padded.shape[1] * kernel * layer.kernel_size[1] * padded.shape[3]))
    for sample in padded.split(1):
        for top in range(0, height, lines):
            bottom = min(top + lines, height)
            strip = sample[:, :, top * stride : (bottom - 1) * stride + reach]
            unfolded = functional.unfold(strip, layer.kernel_size, layer.dilation, 0, layer.stride)
            yield unfolded.reshape(layer.groups, -1, unfolded.shape[2])
