"""Batches through a module, and a histogram of what goes into and comes out of each named submodule.

Cost: one forward pass per batch; memory of two histograms per name, whatever the number of batches.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from calibration.errors import DataError
from calibration.observers import Histogram, start, update

Seen = dict[tuple[str, str], Histogram]  # by submodule name and "input" or "output"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActivationStats:
    """Histograms of one submodule: of its first positional input, and of its output."""

    input: Histogram
    output: Histogram


def collect(
    module: nn.Module, batches: Iterable[tuple[Tensor, ...]], names: Sequence[str]
) -> dict[str, ActivationStats]:
    """Run the batches through the module, in eval mode and without gradients, and watch the named submodules.

    The module is left as it was: hooks removed, training flags put back, also when something fails. An input is
    counted before the submodule runs, because an in-place activation would overwrite it.

    Args:
        module: What to run.
        batches: Its inputs, one tuple of tensors per call.
        names: Qualified names as in `module.named_modules()`.

    Raises:
        DataError: a name is not a submodule's, a submodule was never called, its first argument or its output is not
            one tensor, or a value is NaN or infinite.
    """
    watched = _named(module, names)
    seen: Seen = {}
    training = [part for part in module.modules() if part.training]
    handles = []
    try:
        for name, part in watched.items():
            handles.append(part.register_forward_pre_hook(_input_hook(seen, name)))
            handles.append(part.register_forward_hook(_output_hook(seen, name)))
        module.eval()
        with torch.no_grad():
            for batch in batches:
                module(*batch)
    finally:
        for handle in handles:
            handle.remove()
        for part in training:
            part.training = True
    never = [name for name in watched if (name, "output") not in seen]
    if never:
        raise DataError(
            f"never called while the batches ran: {', '.join(map(repr, never))}; leave them out or give batches"
        )
    return {name: ActivationStats(input=seen[name, "input"], output=seen[name, "output"]) for name in watched}


def _named(module: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    known = dict(module.named_modules(remove_duplicate=False))
    unknown = [name for name in names if name not in known]
    if unknown:
        near = get_close_matches(unknown[0], known, n=3)
        hint = f"; did you mean {', '.join(map(repr, near))}?" if near else f"; it has {len(known) - 1} submodules"
        raise DataError(f"no submodule named {', '.join(map(repr, unknown))} in {type(module).__name__}{hint}")
    return {name: known[name] for name in names}


def _count(seen: Seen, name: str, what: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise DataError(f"the {what} of '{name}' is {type(value).__name__}, not one tensor; leave '{name}' out")
    key, label = (name, what), f"the {what} of '{name}'"
    seen[key] = update(seen[key], value, name=label) if key in seen else start(value, name=label)


def _input_hook(seen: Seen, name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
    def hook(part: nn.Module, args: tuple[object, ...]) -> None:
        _count(seen, name, "input", args[0] if args else None)

    return hook


def _output_hook(seen: Seen, name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
    def hook(part: nn.Module, args: tuple[object, ...], output: object) -> None:
        _count(seen, name, "output", output)

    return hook
