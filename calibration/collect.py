"""Batches through a module: histograms, or per-channel moments, of what goes into and comes out of named submodules.

Cost: one forward pass per batch; memory of two histograms (or eight numbers per channel) per name, whatever the number
of batches.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from calibration import channels as per_channel
from calibration.channels import Moments
from calibration.errors import DataError
from calibration.observers import Histogram, merge, start

Batches = Iterable[tuple[Tensor, ...]]
See = Callable[[str, str, nn.Module, object], None]  # (submodule name, "input" or "output", submodule, value)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActivationStats:
    """Histograms of one submodule: of its first positional input, and of its output."""

    input: Histogram
    output: Histogram


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelStats:
    """Moments of every channel of one submodule's first positional input, and of its output."""

    input: Moments
    output: Moments


def collect(
    module: nn.Module, batches: Batches, names: Sequence[str], *, most: int | None = None, also: Sequence[See] = ()
) -> dict[str, ActivationStats]:
    """Run the batches through the module and count what the named submodules see.

    Args:
        module: What to run.
        batches: Its inputs, one tuple of tensors per call.
        names: Qualified names as in `module.named_modules()`.
        most: Count at most so many values of each sample, evenly spread; extremes are those of all values.
        also: Who else is shown what the submodules see, so that one pass serves all.

    Raises:
        DataError: as `watch`, or a value is NaN or infinite.
    """
    seen: dict[tuple[str, str], Histogram] = {}

    def see(name: str, what: str, part: nn.Module, value: object) -> None:
        tensor, key, label = _tensor(name, what, value), (name, what), f"the {what} of '{name}'"
        limit = most if most is None or tensor.dim() == 0 else most * max(1, tensor.shape[0])
        found = start(tensor, most=limit, name=label)
        seen[key] = merge(seen[key], found) if key in seen else found
        for other in also:
            other(name, what, part, value)

    watch(module, batches, names, see)
    return {name: ActivationStats(input=seen[name, "input"], output=seen[name, "output"]) for name in names}


def channels(module: nn.Module, batches: Batches, names: Sequence[str]) -> dict[str, ChannelStats]:
    """The same for the moments of every channel: axis 1 of a convolution, the last axis of anything else.

    Raises:
        DataError: as `collect`.
    """
    seen: dict[tuple[str, str], Moments] = {}

    def see(name: str, what: str, part: nn.Module, value: object) -> None:
        tensor, key = _tensor(name, what, value), (name, what)
        found = per_channel.start(tensor, 1 if isinstance(part, nn.Conv2d) else -1, name=f"the {what} of '{name}'")
        seen[key] = per_channel.merge(seen[key], found) if key in seen else found

    watch(module, batches, names, see)
    return {name: ChannelStats(input=seen[name, "input"], output=seen[name, "output"]) for name in names}


def watch(module: nn.Module, batches: Batches, names: Sequence[str], see: See) -> None:
    """Run the batches through the module, in eval mode and without gradients, and show what the submodules see.

    The module is left as it was: hooks removed, training flags put back, also when something fails. An input is
    shown before the submodule runs, because an in-place activation would overwrite it.

    Raises:
        DataError: a name is not a submodule's, or a submodule was never called.
    """
    watched = _named(module, names)
    called: set[str] = set()
    training = [part for part in module.modules() if part.training]
    handles = []
    try:
        for name, part in watched.items():
            handles.append(part.register_forward_pre_hook(_input_hook(see, name)))
            handles.append(part.register_forward_hook(_output_hook(see, name, called)))
        module.eval()
        with torch.no_grad():
            for batch in batches:
                module(*batch)
    finally:
        for handle in handles:
            handle.remove()
        for part in training:
            part.training = True
    never = [name for name in watched if name not in called]
    if never:
        raise DataError(
            f"never called while the batches ran: {', '.join(map(repr, never))}; leave them out or give batches"
        )


def _named(module: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    known = dict(module.named_modules(remove_duplicate=False))
    unknown = [name for name in names if name not in known]
    if unknown:
        near = get_close_matches(unknown[0], known, n=3)
        hint = f"; did you mean {', '.join(map(repr, near))}?" if near else f"; it has {len(known) - 1} submodules"
        raise DataError(f"no submodule named {', '.join(map(repr, unknown))} in {type(module).__name__}{hint}")
    return {name: known[name] for name in names}


def _tensor(name: str, what: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise DataError(f"the {what} of '{name}' is {type(value).__name__}, not one tensor; leave '{name}' out")
    return value


def _input_hook(see: See, name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
    def hook(part: nn.Module, args: tuple[object, ...]) -> None:
        see(name, "input", part, args[0] if args else None)

    return hook


def _output_hook(see: See, name: str, called: set[str]) -> Callable[[nn.Module, tuple[object, ...], object], None]:
    def hook(part: nn.Module, args: tuple[object, ...], output: object) -> None:
        called.add(name)
        see(name, "output", part, output)

    return hook
