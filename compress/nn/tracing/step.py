"""One operation of an exported graph, and what its rule needs to know and say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from compress.nn.tracing.identities import Identities, varying

Value = Any  # labels (a Tensor), a Stored, a list of either, or a plain argument


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stored:
    """A tensor of the state dict as it is seen through views: `entries` are its flat indices."""

    name: str
    shape: tuple[int, ...]
    entries: Tensor

    @property
    def whole(self) -> bool:
        """Whether it is seen as it is stored."""
        return self.shape == tuple(self.entries.shape) and self.entries.is_contiguous()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """An operation with its arguments looked up: tensors are labels now, or stored."""

    channels: Identities
    node: Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]  # of the output; () where it is no tensor

    def given(self, index: int, key: str, default: Any = None) -> Any:
        """An argument, by position or by name."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(key, default)

    def why(self, what: str) -> str:
        """A reason, with the place in the network and in its author's code."""
        return f"{what} {place_of(self.node)}".rstrip()

    def unknown(self, what: str = "") -> Tensor:
        """Fix everything that comes in; what comes out belongs to no channel."""
        operation = str(self.node.target).removeprefix("aten.").partition(".")[0]
        reason = self.why(what or f"they go through {operation}, of which it is not known what it does to channels,")
        for value in leaves([*self.args, *self.kwargs.values()]):
            if isinstance(value, Stored):
                self.channels.pinned.setdefault(value.name, reason)
            elif isinstance(value, Tensor):
                self.channels.fix(value, reason)
        return nobody(self.shape)


def nobody(shape: Sequence[int]) -> Tensor:
    """Labels of a tensor that belongs to no channel."""
    return torch.zeros((), dtype=torch.int64, device="cpu").expand(tuple(shape))


def leaves(values: Any) -> list[Any]:
    """The leaves of nested lists and tuples."""
    if isinstance(values, list | tuple):
        return [leaf for value in values for leaf in leaves(value)]
    return [values]


def module_of(node: Node) -> str:
    """The qualified name of the module whose forward pass a node belongs to."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""


def place_of(node: Node) -> str:
    """The module and the line of its author's code that a node comes from: "in 'up.0' (decoder.py, line 12)"."""
    traced = (node.meta.get("stack_trace") or "").splitlines()
    own = [line for line in traced if 'File "' in line and "/torch/" not in line.replace("\\", "/")]
    at = ""
    if own:
        file, _, rest = own[-1].strip().removeprefix('File "').partition('", ')
        at = f"({file.replace(chr(92), '/').rpartition('/')[2]}, {rest.partition(',')[0]})"
    module = module_of(node)
    return " ".join(part for part in (f"in '{module}'" if module else "", at) if part)


def vector(step: Step, labels: Tensor, axis: int, *, over_pixels: bool) -> Tensor | None:
    """One identity for each entry along `axis`; None, and all fixed, where other axes have identities too.

    Where a layer also sums `over_pixels`, an axis behind the channels may have several (a pixel shuffle leaves them).
    """
    axis %= labels.dim()
    others = [a for a in varying(labels) if a != axis]
    if others and (not over_pixels or min(others) < axis):
        step.unknown("two axes of one tensor carry channels where they reach a layer")
        return None
    merged = step.channels.merge_along(labels, others, step.why("they are mixed with values of no channel"))
    for other in range(labels.dim()):
        if other != axis:
            merged = merged.narrow(other, 0, 1)
    return merged.reshape(-1)


def spread(channels: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """Labels of a tensor whose channels lie along `axis`."""
    axis %= len(shape)
    return channels.reshape([-1 if a == axis else 1 for a in range(len(shape))]).expand(tuple(shape))
