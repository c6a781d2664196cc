"""After a cut: the layers that read cut channels are solved anew, so that they give again what the whole network gave.

Source: channel pruning (He et al. 2017, arXiv:1707.06168): the cut network's own inputs against the whole network's
outputs (section 3.1.2), and the end of a residual branch against the whole sum (section 3.3.2); ThiNet (Luo et al.
2017, arXiv:1707.06342) for solving the layers in order.
Differs: every layer that reads, wherever it is; the bias too; the ridge is chosen on held-out samples.
Cost: for each layer one pass of the cut network up to it, and a linear system of channels * kernel elements.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import nn

from calibration import moments
from calibration.calls import calls
from compress.nn.structure import ChannelGroup, stays
from compress.records import Inputs

TARGET_BYTES = 256 << 20  # of the whole network's outputs that are kept at a time
HOLD_OUT = 4  # every fourth batch chooses the ridge

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """A network, what was cut from it, and on what the two are compared."""

    whole: nn.Module
    cut: nn.Module  # written to
    outputs: Mapping[str, torch.Tensor]  # layer -> which of its output channels were kept
    batches: Sequence[Inputs]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """At how many positions of each layer's output, and which."""

    positions: int  # over all batches
    seed: int


def readers(
    module: nn.Module, groups: Sequence[ChannelGroup], cut: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Layers that read channels of the named groups; those that can be solved, and why others cannot."""
    parts = [part for group in groups if group.name in cut for part in group.slices if part.role == "reads"]
    names = dict.fromkeys(part.tensor.removesuffix(".weight") for part in parts)
    found = {name: _problem(module.get_submodule(name)) for name in names}
    return tuple(n for n, problem in found.items() if not problem), {n: p for n, p in found.items() if p}


def _problem(layer: nn.Module) -> str:
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return f"a {type(layer).__name__} is not solved anew"
    if isinstance(layer, nn.Conv2d) and (layer.groups != 1 or isinstance(layer.padding, str)):
        return "a convolution in groups, or with padding in words, is not solved anew"
    return ""


def kept_outputs(
    state: Mapping[str, torch.Tensor], groups: Sequence[ChannelGroup], kept: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Layer -> indices of the output channels that stay; layers that lose none are left out."""
    masks = stays({name: tensor.shape for name, tensor in state.items()}, groups, kept)
    return {
        name.removesuffix(".weight"): mask.nonzero()[:, 0]
        for (name, axis), mask in masks.items()
        if axis == 0 and name.endswith(".weight")
    }


def reconstruct(pair: Pair, names: Sequence[str], sampling: Sampling, progress: Progress) -> None:
    """Solve the named layers of `pair.cut` anew, in the order in which they run."""
    first = calls(pair.whole, pair.batches[0], names)
    generator = torch.Generator().manual_seed(sampling.seed)
    each = max(1, sampling.positions // sum(batch[0].shape[0] for batch in pair.batches))
    where = {
        name: [moments.positions(layer_of(pair.whole, name), call.output, each, generator) for _ in pair.batches]
        for name, call in first.items()
    }
    sizes = {name: call.output.shape[-3 if call.output.dim() == 4 else -1] for name, call in first.items()}
    del first
    done = 0
    for window in _windows({n: 4 * sizes[n] * sum(map(len, where[n])) for n in where}):
        targets = _targets(pair, window, where)
        for name in window:
            progress(done, len(where), f"solving {name}")
            _solve(pair, name, where[name], targets.pop(name))
            done += 1


def layer_of(module: nn.Module, name: str) -> moments.Layer:
    """The convolution or linear layer of this name."""
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer


def _windows(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """The names in order, as many at a time as fit."""
    window: list[str] = []
    for name in sizes:
        if window and sum(sizes[n] for n in [*window, name]) > TARGET_BYTES:
            yield window
            window = []
        window.append(name)
    yield window


Rows = Float[torch.Tensor, "rows o"]


def _targets(
    pair: Pair, names: Sequence[str], where: Mapping[str, Sequence[torch.Tensor]]
) -> dict[str, list[torch.Tensor]]:
    """What the whole network has behind each layer, residual sum included, in the channels that were kept."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for index, batch in enumerate(pair.batches):
        for name, call in calls(pair.whole, batch, names).items():
            layer, at = layer_of(pair.whole, name), where[name][index]
            rows = moments.output_rows(layer, call.output, at)
            if call.added is not None:
                rows = rows + moments.output_rows(layer, call.added, at)
            found[name].append(rows[:, pair.outputs[name]] if name in pair.outputs else rows)
    return found


def _solve(pair: Pair, name: str, where: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    """Write the layer of the cut network that comes nearest to the targets on what it reads now."""
    layer = layer_of(pair.cut, name)
    weight = moments.matrix(layer)
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    sides = [moments.start(weight.shape[1], weight.shape[0]) for _ in range(2)]
    for index, (batch, target) in enumerate(zip(pair.batches, targets, strict=True)):
        call, at = calls(pair.cut, batch, [name])[name], where[index]
        wanted = target if call.added is None else target - moments.output_rows(layer, call.added, at)
        side = int(index % HOLD_OUT == HOLD_OUT - 1)
        sides[side] = moments.update(sides[side], moments.input_rows(layer, call.input, at), wanted)
    weight, bias = moments.solve(sides[0], sides[1], weight, bias, free_bias=layer.bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(bias)
