"""A network's blocks, and what they make while it runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Seen = dict[str, torch.Tensor]


def blocks_of(module: nn.Module) -> list[str]:
    """Children of the network, and the entries of its lists instead of the lists."""
    found = []
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            found += [f"{name}.{index}" for index in range(len(child))]
        else:
            found.append(name)
    return found


def first_tensor(output: Any) -> torch.Tensor | None:
    """What a block gives on: its output, or the first of several."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, torch.Tensor) else None


@contextmanager
def watched(module: nn.Module, names: Sequence[str]) -> Iterator[Seen]:
    """What the named blocks make, by name, while the context is open."""
    seen: Seen = {}

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(part: nn.Module, args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                seen[name] = tensor

        return hook

    handles = [module.get_submodule(name).register_forward_hook(hook_for(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
