"""Layers that XNNPACK has no operator for, written in those that it has, so that a graph stays in one piece.

Left to ExecuTorch's portable kernels, every GroupNorm, LayerNorm, attention product and enlargement cuts the graph:
each cut is a partition of its own to prepare, a copy of the activations to another layout and back, and a slow kernel.

Source: the operators that executorch 1.5's XnnpackPartitioner takes (partition/config/generic_node_configs.py); means
of squares of what is already centred, as in the two-pass algorithm of Chan et al. 1983.
Differs: a group's statistics are means over pixels first (a global average pooling, channels last), then over the
group's channels, by a grouped convolution with equal weights; a mean over the last axis is a linear layer with weights
1/c. Nearest enlargement by whole factors is
a depthwise transposed convolution with ones, which is exact.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

LARGE = 4096  # pixels
MASKED = -1.0e30  # XNNPACK's exponential is not defined at minus infinity; exp(-1e30) is 0 all the same
Table = dict[torch._ops.OpOverload, Callable[..., object]]


def table() -> Table:
    """Decompositions for `ExportedProgram.run_decompositions`."""
    aten = torch.ops.aten
    return {
        aten.group_norm.default: group_norm,
        aten.layer_norm.default: layer_norm,
        aten.scaled_dot_product_attention.default: attention,
        aten.upsample_nearest2d.vec: enlarged,
        aten.split.Tensor: split,
        aten.split_with_sizes.default: split_sizes,
    }


def group_norm(
    x: torch.Tensor,
    groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> torch.Tensor:
    """GroupNorm of [n, c, h, w]; everything else, and one group of one channel, as PyTorch decomposes it."""
    if x.dim() != 4:
        return NotImplemented
    centred = x - _group_mean(_pixel_mean(x), groups)
    variance = _group_mean(_pixel_mean(centred * centred), groups)
    normal = centred * (variance + eps).rsqrt()
    if weight is not None:
        normal = normal * weight.reshape(1, -1, 1, 1)
    return normal if bias is None else normal + bias.reshape(1, -1, 1, 1)


def _pixel_mean(x: torch.Tensor) -> torch.Tensor:
    """The mean over height and width, [n, c, 1, 1]; large maps in two steps: one float32 sum of them loses digits."""
    height, width = x.shape[2:]
    side = next((s for s in (32, 16, 8) if height % s == width % s == 0), 1)
    pooled = functional.avg_pool2d(x, side) if side > 1 and height * width > LARGE else x
    return pooled.mean((2, 3), keepdim=True)


def _group_mean(means: torch.Tensor, groups: int) -> torch.Tensor:
    """Means of channels [n, c, 1, 1] to the mean of each one's group, [n, c, 1, 1] again."""
    channels = means.shape[1]
    if groups == channels:
        return means
    shared = channels // groups
    return functional.conv2d(means, torch.full((channels, shared, 1, 1), 1.0 / shared), groups=groups)


def layer_norm(
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> torch.Tensor:
    """LayerNorm over the last axis; over several axes as PyTorch decomposes it."""
    if len(shape) != 1:
        return NotImplemented
    average = torch.full((1, shape[0]), 1.0 / shape[0])
    centred = x - functional.linear(x, average)
    normal = centred * (functional.linear(centred * centred, average) + eps).rsqrt()
    normal = normal if weight is None else normal * weight
    return normal if bias is None else normal + bias


def attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`softmax(q k^T * scale) v` of [n, heads, i, d] in products of matrices of three axes."""
    if queries.dim() != 4 or dropout or enable_gqa:
        return NotImplemented
    count, heads, length, width = queries.shape
    flat = [x.reshape(count * heads, x.shape[2], x.shape[3]) for x in (queries, keys, values)]
    scores = torch.bmm(flat[0] * (width**-0.5 if scale is None else scale), flat[1].transpose(1, 2))
    if is_causal:
        mask = torch.ones(length, keys.shape[2], dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, MASKED)
    if mask is not None:
        scores = (scores.reshape(count, heads, length, -1) + mask).reshape(scores.shape)
    return torch.bmm(scores.softmax(-1), flat[2]).reshape(count, heads, length, -1)


def enlarged(x: torch.Tensor, size: Sequence[int] | None, factors: Sequence[float] | None) -> torch.Tensor:
    """Each pixel of [n, c, h, w] repeated; fractions of a pixel as PyTorch decomposes them."""
    if factors is None or any(factor != int(factor) for factor in factors):
        return NotImplemented
    steps = [int(factor) for factor in factors]
    channels = x.shape[1]
    return functional.conv_transpose2d(x, torch.ones(channels, 1, *steps), stride=steps, groups=channels)


def split(x: torch.Tensor, size: int, dim: int = 0) -> list[torch.Tensor]:
    """Equal parts, as slices."""
    return [x.narrow(dim, start, min(size, x.shape[dim] - start)) for start in range(0, x.shape[dim], size)]


def split_sizes(x: torch.Tensor, sizes: Sequence[int], dim: int = 0) -> list[torch.Tensor]:
    """Parts of given sizes, as slices."""
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [x.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=True)]
