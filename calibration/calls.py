"""What named layers read and made in one pass of a module, and the stream that each result was added to.

A residual sum is no module, so no hook sees it: the pass is watched operation by operation, and an addition belongs to
the convolution or linear layer that ran just before it, if that layer's output (or a view of it) takes part. Knows
nothing of any architecture; an addition to something that was computed from the output itself would mislead it.
Cost: one pass, up to what follows the last of the named layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from calibration.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One call of a layer. The tensors are the module's own: not to be written to."""

    input: Tensor
    output: Tensor
    added: Tensor | None  # what its output was added to before anything else ran


class _Enough(Exception):
    """Everything that was asked for has been seen."""


class _Sums(TorchDispatchMode):
    """Notes, for each layer, the other summand of an addition that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.last: tuple[str, Tensor] | None = None  # the layer that ran last, and its output
        self.added: dict[str, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.add.Tensor and self.last and isinstance(args[1], Tensor):
            name, output = self.last
            mine = [_storage(t) == _storage(output) for t in args[:2]]
            if mine[0] != mine[1] and args[0].shape == args[1].shape and args[0].numel() == output.numel():
                self.added.setdefault(name, args[0] if mine[1] else args[1])
        return func(*args, **(kwargs or {}))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def calls(module: nn.Module, inputs: Sequence[Tensor], names: Sequence[str]) -> dict[str, Call]:
    """Run the module on one batch, without gradients, and watch the named layers; by name, in order of execution.

    The module is left as it was. A layer that runs more than once is seen the first time.

    Raises:
        DataError: a layer never ran.
    """
    sums, seen = _Sums(), dict[str, tuple[Tensor, Tensor]]()
    handles = []
    try:
        for name, part in module.named_modules():
            if not any(True for _ in part.children()):
                handles.append(part.register_forward_pre_hook(_before(sums, seen, len(set(names)))))
            if name in names:
                handles.append(part.register_forward_hook(_after(sums, seen, name)))
        with torch.no_grad(), sums:
            module(*inputs)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    never = [name for name in names if name not in seen]
    if never:
        raise DataError(f"never called in {type(module).__name__}: {', '.join(never)}; leave them out")
    return {name: Call(input=x, output=y, added=sums.added.get(name)) for name, (x, y) in seen.items()}


def _before(sums: _Sums, seen: dict[str, tuple[Tensor, Tensor]], wanted: int) -> Callable[..., None]:
    def hook(part: nn.Module, args: tuple[Any, ...]) -> None:
        sums.last = None
        if len(seen) == wanted:
            raise _Enough

    return hook


def _after(sums: _Sums, seen: dict[str, tuple[Tensor, Tensor]], name: str) -> Callable[..., None]:
    def hook(part: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if name not in seen:
            seen[name] = (args[0], output)
            sums.last = (name, output)

    return hook
