"""What named layers read and made in one pass of a module, told in the moment before anything else sees it.

A residual sum is no module, so no hook sees it: the pass is watched operation by operation, and an addition belongs to
the layer before it if it is the first to read that layer's output (or a view of it) and no other layer ran in between.
Whoever is told may overwrite the output in place: the rest of the pass goes on with what it wrote.
Cost: one pass, up to what follows the last of the named layers.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from calibration.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One call of a layer. Of its tensors only the output may be written to."""

    input: Tensor
    output: Tensor
    added: Tensor | None  # what its output is about to be added to


Told = Callable[[str, Call], None]


class _Enough(Exception):
    """Everything that was asked for has been told."""


class _Watch(TorchDispatchMode):
    """Holds back each layer's call until it is clear what its output is for."""

    def __init__(self, names: Collection[str], told: Told) -> None:
        super().__init__()
        self.waiting = set(names)
        self.told = told
        self.pending: tuple[str, Tensor, Tensor] | None = None  # name, input, output

    def ran(self, name: str, given: Tensor, output: Tensor) -> None:
        """A layer has run; the first time counts."""
        self.tell(None)
        if name in self.waiting:
            self.waiting.remove(name)
            self.pending = (name, given, output)

    def tell(self, added: Tensor | None) -> None:
        """Pass on what is held back."""
        if self.pending is not None:
            (name, given, output), self.pending = self.pending, None
            self.told(name, Call(input=given, output=output, added=added))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.pending is not None and not _only_views(func):
            output = self.pending[2]
            mine = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and _shared(t, output)]
            if mine:
                self.tell(_summand(func, args, output))
        return func(*args, **(kwargs or {}))


def _only_views(func: Any) -> bool:
    """Whether an operation reads no values, but gives another view of them."""
    infos = [argument.alias_info for argument in func._schema.arguments]
    return any(info is not None and not info.is_write for info in infos)


def _shared(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _summand(func: Any, args: Sequence[Any], output: Tensor) -> Tensor | None:
    """The other operand, if this adds the whole output to something of its size."""
    if func is not torch.ops.aten.add.Tensor or not isinstance(args[1], Tensor) or args[0].shape != args[1].shape:
        return None
    mine = [_shared(t, output) for t in args[:2]]
    if all(mine) or args[0].numel() != output.numel():
        return None
    return args[0] if mine[1] else args[1]


def watch(module: nn.Module, inputs: Sequence[Tensor], names: Collection[str], told: Told) -> None:
    """Run the module on one batch, without gradients, and tell of each named layer's first call, in order.

    The module is left as it was: hooks removed, also when something fails.

    Raises:
        DataError: a layer never ran.
    """
    mode = _Watch(names, told)
    handles = []
    try:
        for name, part in module.named_modules():
            if next(part.children(), None) is None:
                handles.append(part.register_forward_pre_hook(_before(mode)))
            if name in names:
                handles.append(part.register_forward_hook(_after(mode, name)))
        with torch.no_grad(), mode:
            module(*inputs)
        mode.tell(None)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if mode.waiting:
        never = ", ".join(sorted(mode.waiting))
        raise DataError(f"never called in {type(module).__name__}: {never}; leave them out")


def _before(mode: _Watch) -> Callable[..., None]:
    def hook(part: nn.Module, args: tuple[Any, ...]) -> None:
        mode.tell(None)
        if not mode.waiting:
            raise _Enough

    return hook


def _after(mode: _Watch, name: str) -> Callable[..., None]:
    def hook(part: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        mode.ran(name, args[0], output)

    return hook
