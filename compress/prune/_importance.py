"""How much each channel of a group matters: from the weights, from what flows, from gradients, or from what is missed.

Source: `magnitude` Li et al. 2017 (arXiv:1608.08710), summed over a group; `activation` Wanda (Sun et al. 2023,
arXiv:2306.11695); `taylor` Molchanov et al. 2019 (arXiv:1906.10771); `reconstruction` is in `_elimination`.
Differs: whole channels, in all the tensors of their group. The first-order term of `taylor` is that of random
projections of the component's output: its expected square is the squared change of that output when the channel goes,
to first order; the loss of a trained teacher against itself would have no first-order term at all.
Cost: nothing; one pass; a forward and a backward pass per calibration input; the same, and one matrix per layer.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import nn

from calibration import moments
from calibration.watching import Call, watch
from compress.nn.structure import ChannelGroup, ChannelSlice
from compress.prune._elimination import Consumer, eliminate
from compress.prune._reconstruct import layer_of, readers
from compress.records import Inputs

GRAM_BYTES = 1 << 30  # of input moments that are held at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Watched:
    """A network and what to watch it on."""

    module: nn.Module
    batches: Sequence[Inputs]
    positions: int  # rows per layer, over all batches
    seed: int
    progress: Callable[[int, int, str], None]


def magnitude(state: Mapping[str, torch.Tensor], group: ChannelGroup) -> Float[torch.Tensor, " width"]:
    """Sum over the group's weight tensors of each channel's L2 norm, relative to the tensor's mean norm."""
    total = torch.zeros(group.width)
    for part in group.slices:
        if state[part.tensor].dim() < 2 and part.role != "norm":
            continue  # biases say nothing about a channel's size
        total += _relative(_channels(state[part.tensor], part, group).float().norm(dim=1))
    return total


def _channels(tensor: torch.Tensor, part: ChannelSlice, group: ChannelGroup) -> Float[torch.Tensor, "width rest"]:
    """A group's part of a tensor, a row for each channel."""
    own = tensor.narrow(part.axis, part.offset, group.width * part.span)
    return own.movedim(part.axis, 0).reshape(group.width, -1)


def _relative(norms: Float[torch.Tensor, " width"]) -> Float[torch.Tensor, " width"]:
    return norms / norms.mean().clamp_min(torch.finfo(torch.float32).tiny)


def activation(watched: Watched, groups: Sequence[ChannelGroup]) -> dict[str, torch.Tensor]:
    """As `magnitude`, of the reading layers alone, each input channel's weights times its root mean square."""
    state = watched.module.state_dict()
    names, _ = readers(watched.module, groups, [g.name for g in groups])
    squares: dict[str, torch.Tensor] = {}

    def told(name: str, call: Call) -> None:
        x = call.input.movedim(1, -1) if call.input.dim() == 4 else call.input
        squares[name] = squares.get(name, 0.0) + x.flatten(0, -2).square().sum(0, dtype=torch.float64)

    for index, batch in enumerate(watched.batches):
        watched.progress(index, len(watched.batches), "measuring activations")
        watch(watched.module, batch, names, told)
    scores = {}
    for group in groups:
        total = torch.zeros(group.width)
        parts = [p for p in group.slices if p.role == "reads" and p.tensor.removesuffix(".weight") in squares]
        for part in parts:
            weight, energy = state[part.tensor].double(), squares[part.tensor.removesuffix(".weight")]
            flowing = weight * energy.sqrt().reshape(1, -1, *[1] * (weight.dim() - 2))
            total += _relative(_channels(flowing, part, group).norm(dim=1).float())
        scores[group.name] = total if parts else magnitude(state, group)
    return scores


def taylor(watched: Watched, groups: Sequence[ChannelGroup]) -> dict[str, torch.Tensor]:
    """Squared change of the output, summed over an input's output elements, when a channel goes: to first order."""
    state = watched.module.state_dict()
    parts = {g.name: _carriers(g) for g in groups}
    leaves = {p.tensor: state[p.tensor].detach().requires_grad_() for group in parts.values() for p in group if group}
    scores = {g.name: torch.zeros(g.width, dtype=torch.float64) for g in groups}
    count = 0
    for sample, probe in _probes(watched):
        output = torch.func.functional_call(watched.module, leaves, sample)
        found = torch.autograd.grad((output * probe(output)).sum(), list(leaves.values()))
        slopes = dict(zip(leaves, found, strict=True))
        count += 1
        for group in groups:
            change = sum(
                _channels(leaves[p.tensor].detach() * slopes[p.tensor], p, group).sum(1, dtype=torch.float64)
                for p in parts[group.name]
            )
            scores[group.name] += torch.as_tensor(change).square()
    return {name: (total / count).float() for name, total in scores.items()}


def _carriers(group: ChannelGroup) -> tuple[ChannelSlice, ...]:
    """Weights that, set to zero, take each channel out: those that read it, or, where none does, one writer's."""
    reading = tuple(p for p in group.slices if p.role == "reads")
    return reading or tuple(p for p in group.slices if p.role == "writes" and p.tensor.endswith(".weight"))[:1]


def _probes(watched: Watched) -> Iterator[tuple[Inputs, Callable[[torch.Tensor], torch.Tensor]]]:
    """Sample by sample, with a random direction of the output."""
    generator = torch.Generator().manual_seed(watched.seed)
    samples = [s for batch in watched.batches for s in zip(*(x.split(1) for x in batch), strict=True)]
    for index, sample in enumerate(samples):
        watched.progress(index, len(samples), "taking gradients")
        yield sample, lambda output: torch.randn(output.shape, generator=generator).to(output)


def reconstruction(
    watched: Watched, groups: Sequence[ChannelGroup], *, compensated: bool
) -> dict[str, Float[torch.Tensor, " width"]]:
    """Squared error that each channel's removal adds to the output, in the order in which a greedy search removes them.

    The error is that of the layers that read the channel, each output channel weighted by what the component's output
    makes of an error there; `compensated`: after these layers have been solved anew. Groups that no layer reads
    (attention keys) are scored by `taylor`, which is in the same unit.
    """
    names, _ = readers(watched.module, groups, [g.name for g in groups])
    read = {
        g.name: [n for p in g.slices if p.role == "reads" and (n := p.tensor.removesuffix(".weight")) in names]
        for g in groups
    }
    scores = taylor(watched, [g for g in groups if not read[g.name]]) if not all(read.values()) else {}
    weights = sensitivities(watched, names) if names else {}
    for window in _windows([g for g in groups if read[g.name]], watched.module, read):
        found = _input_moments(watched, [n for g in window for n in read[g.name]])
        for group in window:
            consumers = [
                _consumer(watched.module, group, name, found[name], weights[name]) for name in read[group.name]
            ]
            scores[group.name] = eliminate(consumers, group.width, group.norm_groups, compensated=compensated).float()
    return {g.name: scores[g.name] for g in groups}


def sensitivities(watched: Watched, names: Sequence[str]) -> dict[str, Float[torch.Tensor, " o"]]:
    """Squared change of the output for a change of 1 at one place of a layer's output, by output channel."""
    shifts: dict[str, torch.Tensor] = {}
    totals: dict[str, torch.Tensor] = {}
    handles = []

    def hook(name: str) -> Callable[..., torch.Tensor]:
        def shifted(part: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            shifts[name] = torch.zeros_like(output, requires_grad=True)
            return output + shifts[name]

        return shifted

    count = 0
    try:
        handles = [watched.module.get_submodule(n).register_forward_hook(hook(n)) for n in names]
        for sample, probe in _probes(watched):
            output = watched.module(*sample)
            found = torch.autograd.grad((output * probe(output)).sum(), [shifts[n] for n in names])
            count += 1
            for name, slope in zip(names, found, strict=True):
                channels = slope.movedim(1, -1) if slope.dim() == 4 else slope
                totals[name] = totals.get(name, 0.0) + channels.flatten(0, -2).double().square().sum(0)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / count for name, total in totals.items()}


def _input_moments(watched: Watched, names: Sequence[str]) -> dict[str, moments.Moments]:
    """Second moments of what each layer reads."""
    generator = torch.Generator().manual_seed(watched.seed)
    each = max(1, watched.positions // sum(batch[0].shape[0] for batch in watched.batches))
    found: dict[str, moments.Moments] = {}

    def told(name: str, call: Call) -> None:
        layer = layer_of(watched.module, name)
        rows = moments.input_rows(layer, call.input, moments.positions(layer, call.output, each, generator))
        before = found.get(name) or moments.start(rows.shape[1], 0)
        found[name] = moments.update(before, rows, rows.new_zeros(len(rows), 0))

    for index, batch in enumerate(watched.batches):
        watched.progress(index, len(watched.batches), "measuring activations")
        watch(watched.module, batch, names, told)
    return found


def _consumer(
    module: nn.Module, group: ChannelGroup, name: str, seen: moments.Moments, weights: torch.Tensor
) -> Consumer:
    """One reading layer, its rows scaled so that its squared error is the output's."""
    layer = layer_of(module, name)
    part = next(p for p in group.slices if p.tensor == f"{name}.weight" and p.role == "reads")
    elements = layer.weight[0, 0].numel()
    first, size = part.offset * elements, group.width * part.span * elements
    return Consumer(
        weight=moments.matrix(layer) * weights.sqrt()[:, None],
        gram=moments.covariance(seen, centred=layer.bias is not None),
        first=first,
        size=size,
    )


def _windows(
    groups: Sequence[ChannelGroup], module: nn.Module, read: Mapping[str, Sequence[str]]
) -> Iterator[list[ChannelGroup]]:
    """The groups in order, as many at a time as their layers' moments fit."""
    window: list[ChannelGroup] = []
    sizes: dict[str, int] = defaultdict(int)
    for group in groups:
        more = {name: 8 * layer_of(module, name).weight[0].numel() ** 2 for name in read[group.name]}
        if window and sum({**sizes, **more}.values()) > GRAM_BYTES:
            yield window
            window, sizes = [], defaultdict(int)
        window.append(group)
        sizes.update(more)
    if window:
        yield window


def keep_evenly(scores: Float[torch.Tensor, " width"], keep: int, norm_groups: int) -> Int[torch.Tensor, " keep"]:
    """Sorted indices of the best channels, equally many from each of `norm_groups` runs of neighbours."""
    rows = scores.reshape(norm_groups, -1)
    best = rows.topk(keep // norm_groups, dim=1).indices.sort(dim=1).values
    return (best + torch.arange(norm_groups)[:, None] * rows.shape[1]).reshape(-1)
