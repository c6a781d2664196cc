"""The patch that stands in for a block, in closed form: the block's branch as a linear function of its input.

Source: ordinary least squares with a ridge (Hoerl and Kennard 1970), from centred second moments.
Differs: moments are summed in float64 as the inputs stream by, so memory does not grow with their number; the bias is
not penalised; the ridge is relative to the input's mean variance.
Cost: one pass over the inputs; c * c float64 numbers for a pointwise patch of c channels, and its solution.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import nn

from compress.nn.batches import split
from compress.nn.structure import PatchSite
from compress.records import Inputs

BATCH = 2  # inputs that run at once


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearFit:
    """`residual ~ weight x + bias`; the weight is [c] where each channel has its own, else [out, in]."""

    weight: torch.Tensor
    bias: torch.Tensor


class Moments:
    """Sums of inputs, residuals and their products over all positions, in float64."""

    def __init__(self, *, full: bool) -> None:
        self.full = full  # products of every input with every residual, or of each channel with itself
        self.count = 0
        self.sums: list[torch.Tensor] = []

    def add(self, x: Float64[torch.Tensor, "p c_in"], residual: Float64[torch.Tensor, "p c_out"]) -> None:
        """Count some positions in."""
        squares = x.T @ x if self.full else x.square().sum(dim=0)
        products = x.T @ residual if self.full else (x * residual).sum(dim=0)
        new = [x.sum(dim=0), residual.sum(dim=0), squares, products]
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += x.shape[0]

    def fit(self, ridge: float) -> LinearFit:
        """The least-squares solution; `ridge` times the mean variance of the inputs is added to each variance."""
        mean_x, mean_r = self.sums[0] / self.count, self.sums[1] / self.count
        if not self.full:
            variance = self.sums[2] / self.count - mean_x.square()
            covariance = self.sums[3] / self.count - mean_x * mean_r
            weight = covariance / (variance + ridge * variance.mean()).clamp_min(torch.finfo(torch.float64).tiny)
            return LinearFit(weight=weight, bias=mean_r - weight * mean_x)
        variances = self.sums[2] / self.count - mean_x[:, None] * mean_x
        covariances = self.sums[3] / self.count - mean_x[:, None] * mean_r
        penalty = ridge * variances.diagonal().mean()
        # lstsq, not a plain solution: a channel that never changes leaves the matrix singular where the ridge is 0.
        damped = variances + penalty * torch.eye(variances.shape[0], dtype=torch.float64)
        weight = torch.linalg.lstsq(damped, covariances, driver="gelsd").solution.T
        return LinearFit(weight=weight, bias=mean_r - weight @ mean_x)


def fit_patches(module: nn.Module, inputs: Inputs, sites: Sequence[PatchSite], ridge: float) -> dict[str, LinearFit]:
    """For each site, by its block's name: the block's branch on its input, while `module` runs on all inputs."""
    moments = {site.block: Moments(full=site.patch == "pointwise") for site in sites}
    with ExitStack() as hooks, torch.no_grad():
        for site in sites:
            hook = module.get_submodule(site.block).register_forward_hook(_listener(module, site, moments[site.block]))
            hooks.callback(hook.remove)
        for part in split(inputs, BATCH):
            module(*part)
    return {name: sums.fit(ridge) for name, sums in moments.items()}


def _listener(module: nn.Module, site: PatchSite, moments: Moments) -> Callable[..., None]:
    """A hook that counts what one block adds to its stream."""
    shortcut = None if site.shortcut is None else module.get_submodule(site.shortcut)

    def listen(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = args[0]
        passed = x if shortcut is None else shortcut(x)
        moments.add(_positions(x, site), _positions(output - passed, site))

    return listen


def _positions(x: torch.Tensor, site: PatchSite) -> torch.Tensor:
    """[n, c, h, w] or [n, t, c] -> [positions, c]."""
    rows = x if site.tokens else x.movedim(1, -1)
    return rows.reshape(-1, rows.shape[-1]).double()


def patch_tensors(
    sites: Sequence[PatchSite], fits: Mapping[str, LinearFit], state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of the patches by their new names, in float32; `state` is that of the network with the blocks."""
    made = {}
    for site in sites:
        weight, bias = fits[site.block].weight, fits[site.block].bias
        if site.shortcut is not None:
            leaf = f"{site.place}.{site.shortcut.rpartition('.')[2]}"
            made[f"{leaf}.weight"] = state[f"{site.shortcut}.weight"].double() + weight[:, :, None, None]
            made[f"{leaf}.bias"] = state[f"{site.shortcut}.bias"].double() + bias
        elif site.patch == "affine":
            axes = (...,) if site.tokens else (..., None, None)
            made[f"{site.place}.weight"], made[f"{site.place}.bias"] = (1 + weight)[axes], bias[axes]
        else:
            made[f"{site.place}.mix.weight"] = weight if site.tokens else weight[:, :, None, None]
            made[f"{site.place}.mix.bias"] = bias
    return {name: tensor.float() for name, tensor in made.items()}
