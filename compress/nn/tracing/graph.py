"""What a network does to its channels, read from its exported graph: one rule for each operation.

Source: torch.export's functional graph; the rules are those of DepGraph (Fang et al. 2023, arXiv:2301.12900), for
single channels.
Differs: operations that move data run on the identities themselves, so views, permutations, concatenations and pixel
shuffles are exact; an operation without a rule fixes every channel that reaches it and says where it stands.
Cost: one export (seconds) and one pass of integers through the graph.
"""

import operator
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from compress.nn.tracing.identities import Identities
from compress.nn.tracing.layers import RULES, pointwise
from compress.nn.tracing.moves import MOVES
from compress.nn.tracing.step import Step, Stored, Value, leaves, nobody

FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError, ArithmeticError)


class Untraceable(Exception):
    """The network could not be exported; the message is torch's."""


def trace(module: nn.Module, inputs: tuple[Tensor, ...]) -> Identities:
    """The channels of a module in eval mode.

    Raises:
        Untraceable: torch cannot export it.
    """
    program = _exported(module, inputs)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    persistent = set(module.state_dict())
    channels, values = Identities(), dict[Node, Value]()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            shape = tuple(getattr(node.meta.get("val"), "shape", ()))
            name = names.get(node.name)
            values[node] = _stored(name, shape) if name in persistent else nobody(shape)
        elif node.op == "call_function":
            values[node] = _run(channels, values, node)
        elif node.op == "output":
            for value in leaves(_looked_up(values, node.args)):
                if isinstance(value, Tensor):
                    channels.fix(value, "they are what the module gives out")
    return channels


def _stored(name: str, shape: tuple[int, ...]) -> Stored:
    return Stored(name=name, shape=shape, entries=torch.arange(torch.Size(shape).numel()).reshape(shape))


def _exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(module, inputs, strict=False).run_decompositions({})
    except FAILURES as error:
        raise Untraceable(str(error).strip().partition("\n")[0]) from error


def _looked_up(values: Mapping[Node, Value], value: Any, channels: Identities | None = None) -> Any:
    if isinstance(value, Node):
        found = values[value]
        return _looked_up(values, found, channels) if isinstance(found, list | tuple | Tensor) else found
    if isinstance(value, list | tuple):
        return [_looked_up(values, part, channels) for part in value]
    if isinstance(value, Tensor) and channels is not None:
        return channels.settled(value)
    return value


def _run(channels: Identities, values: Mapping[Node, Value], node: Node) -> Value:
    args = tuple(_looked_up(values, a, channels) for a in node.args)
    if node.target is operator.getitem:
        return args[0][args[1]] if isinstance(args[0], list) and len(args[0]) > args[1] else None
    output = node.meta.get("val")
    step = Step(
        channels=channels,
        node=node,
        args=args,
        kwargs={key: _looked_up(values, a, channels) for key, a in node.kwargs.items()},
        shape=tuple(output.shape) if isinstance(output, Tensor) else (),
    )
    rule = RULES.get(node.target) or MOVES.get(node.target)
    if rule is None and isinstance(output, Tensor) and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        rule = pointwise
    if rule is not None:
        return rule(step)
    step.unknown()
    if isinstance(output, list | tuple):
        return [nobody(getattr(part, "shape", ())) for part in output]
    return nobody(step.shape)
