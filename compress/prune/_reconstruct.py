"""After a cut: the layers that read cut channels are solved anew, so that they give again what the whole network gave.

Source: channel pruning (He et al. 2017, arXiv:1707.06168): the cut network's own inputs against the whole network's
outputs (section 3.1.2), and the end of a residual branch against the whole sum (section 3.3.2); ThiNet (Luo et al.
2017, arXiv:1707.06342) for solving the layers in order.
Differs: every layer that reads, wherever it is; the bias too; the ridge is chosen on held-out samples. Each layer is
solved in the moment in which it has run, so that one pass is enough and every layer sees those before it solved.
Cost: one pass of the cut network over all samples at once, one of the whole network, and for each layer a linear system
of input channels * kernel elements.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from calibration import moments
from calibration.watching import Call, watch
from compress.nn.batches import split, take
from compress.nn.structure import ChannelGroup, stays
from compress.records import Inputs

TARGET_BYTES = 512 << 20  # of the whole network's outputs that are kept at a time
HOLD_OUT = 4  # every fourth sample chooses the ridge

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """A network, what was cut from it, and on what the two are compared."""

    whole: nn.Module
    cut: nn.Module  # written to
    outputs: Mapping[str, torch.Tensor]  # layer -> which of its output channels were kept
    inputs: Inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """At how many positions of each layer's output, and which."""

    positions: int  # over all samples
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
    where, sizes = _places(pair, names, sampling)
    samples = len(pair.inputs[0])
    windows = _windows({name: 4 * samples * len(where[name]) * sizes[name] for name in where})
    targets: dict[str, list[torch.Tensor]] = {}
    done: list[str] = []

    def told(name: str, call: Call) -> None:
        progress(len(done), len(where), f"solving {name}")
        if name not in targets:
            targets.update(_targets(pair, next(windows), where))
        layer, at = layer_of(pair.cut, name), where[name]
        wanted = torch.cat(targets.pop(name))
        if call.added is not None:
            wanted = wanted - moments.output_rows(layer, call.added, at)
        _solve(layer, moments.input_rows(layer, call.input, at), wanted, samples)
        call.output.copy_(layer(call.input))
        done.append(name)

    watch(pair.cut, pair.inputs, list(where), told)


def layer_of(module: nn.Module, name: str) -> moments.Layer:
    """The convolution or linear layer of this name."""
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return layer


def _places(pair: Pair, names: Sequence[str], sampling: Sampling) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """In the order in which the layers run: at which positions of their outputs, and how many channels these have."""
    generator = torch.Generator().manual_seed(sampling.seed)
    each = max(1, sampling.positions // len(pair.inputs[0]))
    where: dict[str, torch.Tensor] = {}
    sizes: dict[str, int] = {}

    def told(name: str, call: Call) -> None:
        layer = layer_of(pair.whole, name)
        where[name] = moments.positions(layer, call.output, each, generator)
        sizes[name] = len(pair.outputs.get(name, layer.weight))

    watch(pair.whole, take(pair.inputs, 0, 1), names, told)
    return where, sizes


def _windows(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """The names in order, as many at a time as fit."""
    window: list[str] = []
    for name in sizes:
        if window and sum(sizes[n] for n in [*window, name]) > TARGET_BYTES:
            yield window
            window = []
        window.append(name)
    yield window


def _targets(pair: Pair, names: Sequence[str], where: Mapping[str, torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """What the whole network has behind each layer, residual sum included, in the channels that were kept."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def told(name: str, call: Call) -> None:
        layer = layer_of(pair.whole, name)
        rows = moments.output_rows(layer, call.output, where[name])
        if call.added is not None:
            rows = rows + moments.output_rows(layer, call.added, where[name])
        found[name].append(rows[:, pair.outputs[name]] if name in pair.outputs else rows)

    for sample in split(pair.inputs, 1):
        watch(pair.whole, sample, names, told)
    return found


def _solve(layer: moments.Layer, rows: torch.Tensor, wanted: torch.Tensor, samples: int) -> None:
    """Write into a layer the weight and bias that make of these rows what is wanted; equally many rows a sample."""
    weight = moments.matrix(layer)
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    sides = [moments.start(weight.shape[1], weight.shape[0]) for _ in range(2)]
    for index, (x, y) in enumerate(zip(rows.tensor_split(samples), wanted.tensor_split(samples), strict=True)):
        side = int(index % HOLD_OUT == HOLD_OUT - 1)
        sides[side] = moments.update(sides[side], x, y)
    weight, bias = moments.solve(sides[0], sides[1], weight, bias, free_bias=layer.bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(bias)
