"""Second moments of a layer's inputs and of its wanted outputs, streamed, and the layer that fits them best.

Source: least squares by the normal equations, as in channel pruning (He et al. 2017, arXiv:1707.06168, section 3.1.2);
a convolution is a linear layer on the patches that it reads.
Differs: only sampled output positions count; the ridge pulls towards the weights at hand, not towards zero, so that an
input channel that says nothing keeps its weights; its size is the one with the least error on held-out moments.
Cost: one d x d float64 matrix, d = input channels * kernel elements; O(rows * d^2) to fill, O(d^3) to solve.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from torch.nn import functional

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean variance of the inputs
DEFAULT_RIDGE = 1e-2  # where no moments are held out
ROWS_AT_ONCE = 4096

Layer = nn.Conv2d | nn.Linear


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Sums over rows: of inputs x, of outputs y, and of their products."""

    count: int
    x: Float64[Tensor, " d"]
    y: Float64[Tensor, " o"]
    xx: Float64[Tensor, "d d"]
    yx: Float64[Tensor, "o d"]
    yy: Float64[Tensor, " o"]


def start(inputs: int, outputs: int) -> Moments:
    """The moments of no rows."""
    x, y = torch.zeros(inputs, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)
    return Moments(count=0, x=x, y=y, xx=x.new_zeros(inputs, inputs), yx=x.new_zeros(outputs, inputs), yy=y)


def update(moments: Moments, x: Float[Tensor, "n d"], y: Float[Tensor, "n o"]) -> Moments:
    """The moments with some more rows; products in the rows' own type, sums in float64."""
    for rows, wanted in zip(x.split(ROWS_AT_ONCE), y.split(ROWS_AT_ONCE), strict=True):
        moments = merged(
            moments,
            Moments(
                count=rows.shape[0],
                x=rows.sum(0, dtype=torch.float64).cpu(),
                y=wanted.sum(0, dtype=torch.float64).cpu(),
                xx=(rows.T @ rows).double().cpu(),
                yx=(wanted.T @ rows).double().cpu(),
                yy=wanted.double().square().sum(0).cpu(),
            ),
        )
    return moments


def merged(one: Moments, other: Moments) -> Moments:
    """The moments of the rows of both."""
    return Moments(
        count=one.count + other.count,
        x=one.x + other.x,
        y=one.y + other.y,
        xx=one.xx + other.xx,
        yx=one.yx + other.yx,
        yy=one.yy + other.yy,
    )


def covariance(moments: Moments, *, centred: bool) -> Float64[Tensor, "d d"]:
    """The inputs' mean products, around their means where a bias can take these up."""
    mean = moments.x / moments.count
    return moments.xx / moments.count - (torch.outer(mean, mean) if centred else 0.0)


def squared_error(moments: Moments, weight: Float64[Tensor, "o d"], bias: Float64[Tensor, " o"]) -> float:
    """Squared error of a linear layer on these rows: summed over outputs, mean over rows."""
    products = weight @ moments.xx
    error = moments.yy - 2 * (weight * moments.yx).sum(1) + (weight * products).sum(1)
    error = error + 2 * bias * (weight @ moments.x - moments.y) + moments.count * bias.square()
    return float(error.sum()) / moments.count


def fit(
    moments: Moments, weight: Float64[Tensor, "o d"], bias: Float64[Tensor, " o"], *, ridge: float, free_bias: bool
) -> tuple[Float64[Tensor, "o d"], Float64[Tensor, " o"]]:
    """The weight and bias of the least squared error plus `ridge * mean variance * |change of weight|^2`.

    Args:
        moments: What to fit.
        weight: Where to start from; what a ridge pulls towards.
        bias: The bias that stays, where it is not free.
        ridge: Relative to the mean variance of the inputs.
        free_bias: Whether the bias is fitted too.
    """
    n = moments.count
    inputs = covariance(moments, centred=free_bias)
    offset = moments.y / n if free_bias else bias
    wanted = moments.yx / n - torch.outer(offset, moments.x / n)
    strength = ridge * float(inputs.diagonal().mean()) + torch.finfo(torch.float64).tiny
    factor, failed = torch.linalg.cholesky_ex(inputs + strength * torch.eye(len(inputs), dtype=torch.float64))
    if int(failed):  # rounding made a matrix without full rank indefinite
        return weight, bias
    found = weight + torch.cholesky_solve((wanted - weight @ inputs).T, factor).T
    return found, (moments.y - found @ moments.x) / n if free_bias else bias


def solve(
    kept: Moments, held_out: Moments, weight: Float64[Tensor, "o d"], bias: Float64[Tensor, " o"], *, free_bias: bool
) -> tuple[Float64[Tensor, "o d"], Float64[Tensor, " o"]]:
    """The best fit of all rows, with the ridge that, fitted to `kept`, errs least on `held_out`.

    Where no ridge errs less there than the layer at hand, that layer stays.
    """
    everything = merged(kept, held_out)
    if not held_out.count or not kept.count:
        return fit(everything, weight, bias, ridge=DEFAULT_RIDGE, free_bias=free_bias)
    errors = {
        ridge: squared_error(held_out, *fit(kept, weight, bias, ridge=ridge, free_bias=free_bias)) for ridge in RIDGES
    }
    best = min(errors, key=lambda ridge: errors[ridge])
    if errors[best] >= squared_error(held_out, weight, bias):
        return weight, bias
    return fit(everything, weight, bias, ridge=best, free_bias=free_bias)


def matrix(layer: Layer) -> Float64[Tensor, "o d"]:
    """The layer's weight on the rows of `input_rows`: channel by channel, in each the kernel's elements."""
    return layer.weight.detach().double().cpu().flatten(1)


def positions(layer: Layer, output: Tensor, most: int, generator: torch.Generator) -> Int64[Tensor, " p"]:
    """At most so many of the positions of a layer's output (pixels or tokens), drawn without repeat, in order."""
    count = output[0].numel() // layer.weight.shape[0]
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:most].sort().values


def output_rows(layer: Layer, output: Tensor, at: Int64[Tensor, " p"]) -> Float[Tensor, "rows o"]:
    """The output (or what it is added to) at some positions: a row for each sample and position."""
    channels_last = output.movedim(1, -1) if output.dim() == 4 else output
    return channels_last.flatten(1, -2)[:, at].flatten(0, 1) if output.dim() > 2 else output


def input_rows(layer: Layer, x: Tensor, at: Int64[Tensor, " p"]) -> Float[Tensor, "rows d"]:
    """What a layer reads for its output at some positions: a row for each sample and position."""
    if isinstance(layer, nn.Linear):
        return output_rows(layer, x, at)
    (down, right), (top, left) = layer.stride, _padding(layer)
    (step_y, step_x), (height, width) = layer.dilation, layer.kernel_size
    padded = functional.pad(x, (left, left, top, top))
    columns = (padded.shape[3] - step_x * (width - 1) - 1) // right + 1
    y, z = at // columns * down, at % columns * right
    parts = [padded[:, :, y + i * step_y, z + j * step_x] for i in range(height) for j in range(width)]
    return torch.stack(parts, dim=2).permute(0, 3, 1, 2).flatten(2).flatten(0, 1)


def _padding(layer: nn.Conv2d) -> Sequence[int]:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros" or layer.groups != 1:
        raise ValueError(f"{layer} has padding or groups that its patches cannot be had with")
    return layer.padding
