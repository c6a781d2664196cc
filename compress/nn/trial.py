"""Trying out what a trace claims: cut a network in a way that must not change its output, and look.

The law: of every group, channels are made copies of kept neighbours in the same norm group and then hidden from all
that reads them. Means and variances of norms stay what they were, so the whole network and the network without the
copies must agree, whatever the weights. Channels that no layer reads (queries and keys, which meet in a product) are
made zero instead.
Cost: two forward passes; two more for each group where the groups do not all pass together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.nn.structure import ChannelGroup, take_channels

TOLERANCE = 1e-3  # of the largest output; float32 sums taken in another order differ by 1e-5
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError, ArithmeticError)

Build = Callable[[Mapping[str, int]], nn.Module]  # group name -> width; float32, eval mode, any weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network to try cuts on."""

    build: Build
    inputs: tuple[Tensor, ...]
    state: Mapping[str, Tensor]  # seeded weights of the whole network


def failures(case: Case, groups: Sequence[ChannelGroup]) -> dict[str, str]:
    """Group name -> why the network cannot do without some of its channels; empty where all can be cut."""
    if not groups or _problem(case, groups) is None:
        return {}
    found = {group.name: problem for group in groups if (problem := _problem(case, [group])) is not None}
    rest = [group for group in groups if group.name not in found]
    together = _problem(case, rest) if rest else None
    if together is not None:
        found |= {group.name: f"cut together with other groups, {together}" for group in rest}
    return found


def seeded_state(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Weights with which every layer matters: gain 1 (a bit more before a ReLU), norms near 1, small biases."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = tensor.clone()
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            state[name] = noise * (2 / max(1, tensor[0].numel())) ** 0.5
        elif name.endswith(("bias", "mean")):
            state[name] = 0.1 * noise
        else:
            state[name] = 1 + 0.1 * noise.abs()
    return state


def seeded_inputs(inputs: Sequence[Tensor], seed: int = 0) -> tuple[Tensor, ...]:
    """Noise in the shapes of these inputs."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return tuple(torch.randn(x.shape, generator=generator) if x.is_floating_point() else x for x in inputs)


def spare(group: ChannelGroup) -> tuple[Tensor, Tensor]:
    """Channels that can be copies, and the kept neighbour of each; all of a norm group's have equally many."""
    run = group.width // group.norm_groups
    factor = next(f for f in range(2, run + 1) if run % f == 0)
    every = torch.arange(group.width)
    copies = every[every % factor != 0]
    return copies, copies - copies % factor


def _problem(case: Case, groups: Sequence[ChannelGroup]) -> str | None:
    """What goes wrong when the spare channels of these groups are cut; None where nothing does."""
    state = {name: tensor.clone() for name, tensor in case.state.items()}
    kept = {}
    for group in groups:
        copies, _ = spare(group)
        stays = torch.ones(group.width, dtype=torch.bool)
        stays[copies] = False
        kept[group.name] = stays.nonzero()[:, 0]
        _fill(state, group, reads=True)
    for group in groups:
        _fill(state, group, reads=False)
    try:
        small = case.build({name: len(channels) for name, channels in kept.items()})
        small.load_state_dict(take_channels(state, groups, kept))
        with torch.no_grad():
            found = _tensor(small(*case.inputs))
    except FAILURES as error:
        return f"without some of them the module fails: {str(error).strip().partition(chr(10))[0]}"
    whole = case.build({})
    whole.load_state_dict(state)
    with torch.no_grad():
        expected = _tensor(whole(*case.inputs))
    if not float(expected.max()) > float(expected.min()):
        return "with noise for weights the module's output is flat, so that a cut cannot be checked"
    if found.shape != expected.shape:
        return f"without some of them the module gives {list(found.shape)}, not {list(expected.shape)}"
    allowed = TOLERANCE * float(expected.abs().max())
    if not float((found - expected).abs().max()) <= allowed:
        return "without channels that nothing reads the module computes something else"
    return None


def _fill(state: dict[str, Tensor], group: ChannelGroup, *, reads: bool) -> None:
    """Hide the spare channels from their readers, or make them copies of their neighbours (zero, if nothing reads)."""
    copies, neighbours = spare(group)
    silent = not any(part.role == "reads" for part in group.slices)
    for part in group.slices:
        if (part.role == "reads") != reads:
            continue
        tensor = state[part.tensor]
        for k in range(part.span):
            to, source = (part.offset + channels * part.span + k for channels in (copies, neighbours))
            if reads or silent:
                tensor.index_fill_(part.axis, to, 0.0)
            else:
                tensor.index_copy_(part.axis, to, tensor.index_select(part.axis, source))


def _tensor(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(f"the module gives {type(output).__name__}, not one tensor")
    return output
