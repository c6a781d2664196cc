"""Constants of an exported program, worked out once: XNNPACK takes weights and biases as stored tensors only.

Source: executorch 1.5, `create_constant_placeholder` of backends/transforms/utils.py.
Differs: what is folded are values made of nothing (`full`, `arange`, masks); stored parameters stay as they are.
"""

from typing import Any

import torch
from torch.fx import Node

from compress.errors import require

LARGEST = 2**22  # elements; what is larger is worked out at run time


def fold(program: Any) -> None:
    """Replace every value that depends on no input and no parameter by a stored tensor, in place."""
    from torch.export.graph_signature import InputKind

    tools = require("executorch.backends.transforms.utils", extra="executorch", purpose="export.executorch")
    graph = program.graph_module.graph
    known = _known(graph)
    first = next(node for node in graph.nodes if node.op == "placeholder" and _is_input(program, node))
    for number, (node, value) in enumerate(known.items()):
        readers = [user for user in node.users if user not in known and user.op != "output"]
        if not readers or not isinstance(value, torch.Tensor) or value.numel() > LARGEST:
            continue
        with graph.inserting_before(first):
            stored = tools.create_constant_placeholder(
                program, graph, f"folded_{number}", InputKind.BUFFER, value.contiguous(), persistent_buffer=True
            )
        for reader in readers:
            reader.replace_input_with(node, stored)
    for node in graph.nodes:  # where a node came from is copied at every pass, and tells of this machine
        for key in ("from_node", "stack_trace"):
            node.meta.pop(key, None)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _is_input(program: Any, node: Node) -> bool:
    return node.name in program.graph_signature.user_inputs


def _known(graph: torch.fx.Graph) -> dict[Node, Any]:
    """Values that depend on nothing, by their node."""
    known: dict[Node, Any] = {}
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        seeded = torch.Tag.nondeterministic_seeded in node.target.tags
        if seeded or not all(parent in known for parent in node.all_input_nodes):
            continue
        arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda parent: known[parent])
        known[node] = node.target(*arguments[0], **arguments[1])
    return known
