"""Which parts of any module depth pruning may take out: found by running it, and by running it without them.

A part with a shortcut still passes its input on when all its weights are zero; the innermost such parts are the blocks.
Outside of these, whatever holds several layers is a block, and then every single layer. A block can go when its input
and output have the same shape and the module runs without it.
Cost: one forward pass for each block, and one for each part that might have a shortcut.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.nn.structure import Block
from compress.nn.trial import FAILURES

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a submodule was given first, and what it gave back; None where that is not one tensor."""

    given: Tensor | None
    made: Tensor | None

    @property
    def keeps_shape(self) -> bool:
        """Whether the identity could stand in its place."""
        return self.given is not None and self.made is not None and self.given.shape == self.made.shape


def find_blocks(
    module: nn.Module, without: Callable[[str], nn.Module], inputs: tuple[Tensor, ...]
) -> tuple[Block, ...]:
    """Every block of a module, in the order in which they run; `without` builds it without a named part."""
    ran = calls(module, inputs)
    parts = dict(module.named_modules())
    layers = [name for name, part in parts.items() if isinstance(part, LAYERS)]
    holding = {name: sum(layer.startswith(f"{name}.") for layer in layers) for name in parts if name}
    short = _innermost([n for n, count in holding.items() if count and _has_shortcut(parts[n], ran.get(n, ()))])
    free = [n for n, count in holding.items() if count > 1 and not any(_overlap(n, other) for other in short)]
    chosen = [*short, *_innermost(free)]
    chosen += [name for name in layers if not any(_overlap(name, other) for other in chosen)]
    order = {name: place for place, name in enumerate(ran)}
    chosen.sort(key=lambda name: order.get(name, len(order)))
    whole = ran[""][0].made
    found = tuple(Block(name=name, fixed=why_fixed(ran.get(name, ()))) for name in chosen)
    return tuple(
        block if block.fixed else replace(block, fixed=_try_without(without, block.name, inputs, whole))
        for block in found
    )


def calls(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, tuple[Call, ...]]:
    """Every submodule that ran, in order of its first call; the module itself is ""."""
    seen: dict[str, list[Call]] = {}
    handles = []

    def before(name: str) -> Callable[..., None]:
        def note(part: nn.Module, args: tuple[object, ...]) -> None:
            seen.setdefault(name, [])

        return note

    def after(name: str) -> Callable[..., None]:
        def note(part: nn.Module, args: tuple[object, ...], output: object) -> None:
            given = args[0] if args and isinstance(args[0], Tensor) else None
            seen[name].append(Call(given=given, made=output if isinstance(output, Tensor) else None))

        return note

    for name, part in module.named_modules():
        handles += [part.register_forward_pre_hook(before(name)), part.register_forward_hook(after(name))]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: tuple(made) for name, made in seen.items()}


def why_fixed(made: Sequence[Call]) -> str | None:
    """Why the identity cannot stand in a block's place, by the shapes of its calls."""
    if not made:
        return "it is never called"
    for call in made:
        if call.given is None or call.made is None:
            return "it does not turn one tensor into one tensor"
        if not call.keeps_shape:
            return f"it turns {list(call.given.shape)} into {list(call.made.shape)}"
    return None


def _has_shortcut(part: nn.Module, made: Sequence[Call]) -> bool:
    """Whether a part passes its input on with all weights zero. Its tensors are put back."""
    if not made or not all(call.keeps_shape for call in made):
        return False
    given = made[0].given
    assert given is not None
    saved = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    try:
        with torch.no_grad():
            for tensor in part.state_dict().values():
                tensor.zero_()
            one, other = part(given), part(given + 1.0)
    except FAILURES:  # it needs more than one input; then it is no block by itself
        return False
    finally:
        part.load_state_dict(saved)
    return not torch.equal(one, other)


def _try_without(
    without: Callable[[str], nn.Module], name: str, inputs: tuple[Tensor, ...], whole: Tensor | None
) -> str | None:
    try:
        with torch.no_grad():
            found = without(name)(*inputs)
    except FAILURES as error:
        return f"without it the module fails: {str(error).strip().partition(chr(10))[0]}"
    same = isinstance(found, Tensor) and whole is not None and found.shape == whole.shape
    return None if same else "without it the module's output has another shape"


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _innermost(names: Sequence[str]) -> list[str]:
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
