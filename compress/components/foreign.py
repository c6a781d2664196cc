"""Somebody else's module as a component: its blocks are found by running it, its channel groups by tracing it.

Source: torch.export for the graph; dependency groups as in DepGraph (Fang et al. 2023, arXiv:2301.12900).
Differs: nothing is guessed. A group that the trace cannot prove, or that fails when cut on trial, stays fixed with
its reason. The configuration is plain data; the code that it names runs only where a caller gives it (`Origin`), never
because a file says so.
Cost: one export and a few forward passes on a small input for each configuration that is pruned.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.errors import UserError
from compress.nn import cost, removable, trial
from compress.nn.stand_in import stand_in
from compress.nn.structure import Block, ChannelGroup, FixedChannels, Kind, Removal
from compress.nn.tracing.graph import Untraceable
from compress.nn.tracing.groups import Traced, traced
from compress.records import Arch, Variant

FLAGS = {"decoder": "--module", "encoder": "--encoder"}
RANGE_TOLERANCE = 1e-3  # beyond [0, 1], as the metrics take it
Leaf = Literal["decoder", "encoder"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Origin:
    """A module as its author's code made it, and what is known of it. Lives as long as the process, never in a file."""

    leaf: Leaf
    entry: str  # "package.module:function", or "" for a module that was adopted in Python
    module: nn.Module
    known: dict[tuple[str, Any], Any] = field(default_factory=dict)  # traces and blocks, by configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Which code builds the module, and how it was cut."""

    entry: str
    input_shape: tuple[int, ...]  # of the example, batch of 1
    pixels: int  # side of the image that belongs to it
    probe: tuple[float, ...]  # what the uncut module makes of seeded noise: other code gives other numbers
    sizes: tuple[tuple[str, tuple[int, ...]], ...] = ()  # tensors with another shape than the author's
    removed: tuple[str, ...] = ()  # blocks that were taken out
    origin: Any = field(default=None, compare=False, repr=False, metadata={"stored": False})


def adopt(
    module: object,
    example: Tensor | tuple[Tensor, ...],
    *,
    component: str = "yours/decoder",
    leaf: Leaf = "decoder",
    entry: str = "",
) -> Variant:
    """Any module with one input as a variant that every method takes.

    Args:
        module: A decoder (latents [n, z, h, w] to images [n, 3, H, W] in [0, 1]) or an encoder (the other way round);
            float32. It is copied.
        example: An input, small: the module is traced and tried out on this shape.
        component: What reports call it.
        leaf: Which of the two it is.
        entry: The `package.module:function` that makes it, so that a saved variant can say so.

    Raises:
        UserError: it is no such module; says what to change.
    """
    name = entry or component
    given = (example,) if isinstance(example, Tensor) else tuple(example)
    if not isinstance(module, nn.Module):
        raise UserError(f"{name} gives {type(module).__name__}, not a torch.nn.Module; return the module itself")
    if len(given) != 1 or given[0].dim() != 4:
        shapes = ", ".join(str(list(x.shape)) for x in given)
        raise UserError(f"{name}: one input [n, c, h, w] is needed, not {shapes or 'nothing'}")
    _check_tensors(module, name)
    try:
        own = copy.deepcopy(module).requires_grad_(False).eval()
    except trial.FAILURES as error:
        raise UserError(f"{name}: the module cannot be copied ({error}); keep only tensors that are leaves") from error
    image, latents = _run(own, given[0][:1].float(), leaf, name)
    config = Config(
        entry=entry,
        input_shape=tuple(given[0][:1].shape),
        pixels=image.shape[-1],
        probe=(),
        origin=Origin(leaf=leaf, entry=entry, module=own),
    )
    _check_sides(image, latents, name)
    config = replace(config, probe=_probe(config))
    _check_meta(config, name)
    return Variant(component=component, arch=Arch(kind=f"foreign.{leaf}", config=config), module=own)


def _run(module: nn.Module, given: Tensor, leaf: Leaf, name: str) -> tuple[Tensor, Tensor]:
    """The image and the latents of one pass.

    Raises:
        UserError: the module fails, or gives something else.
    """
    try:
        with torch.no_grad():
            made = module(given)
    except trial.FAILURES as error:
        raise UserError(f"{name} fails on an input of shape {list(given.shape)}: {error}") from error
    if not isinstance(made, Tensor):
        raise UserError(f"{name} gives {type(made).__name__}, not one tensor; return the image (or the latents) alone")
    if not made.isfinite().all():
        raise UserError(f"{name} gives NaN or Inf on an input of shape {list(given.shape)}; check its weights")
    image = made if leaf == "decoder" else given
    if made.dim() != 4 or image.shape[1] != 3:
        wanted = "images [n, 3, H, W]" if leaf == "decoder" else "latents [n, z, h, w]"
        raise UserError(f"{name} turns {list(given.shape)} into {list(made.shape)}; {wanted} are needed")
    low, high = float(image.min()), float(image.max())
    if leaf == "decoder" and (low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE):
        raise UserError(
            f"{name} gives values in [{low:.3g}, {high:.3g}]; images are in [0, 1] here: end its forward with "
            ".clamp(0, 1), after (x + 1) / 2 where it makes [-1, 1]"
        )
    return (made, given) if leaf == "decoder" else (given, made)


def _check_sides(image: Tensor, latents: Tensor, name: str) -> None:
    tall, wide = (i / z for i, z in zip(image.shape[2:], latents.shape[2:], strict=True))
    if tall != wide or tall != int(tall) or image.shape[2] != image.shape[3]:
        raise UserError(
            f"{name}: image {list(image.shape)} and latents {list(latents.shape)}; a square example with a whole "
            "number of pixels per latent is needed"
        )


def _check_tensors(module: nn.Module, name: str) -> None:
    state = module.state_dict(keep_vars=True)
    other = [n for n, t in state.items() if t.is_floating_point() and t.dtype != torch.float32]
    if other:
        raise UserError(f"{name}: {other[0]} is {state[other[0]].dtype}; call .float() on the module")
    seen: dict[int, str] = {}
    for key, tensor in state.items():
        if tensor.numel() and seen.setdefault(tensor.data_ptr(), key) != key:
            raise UserError(
                f"{name}: {seen[tensor.data_ptr()]} and {key} share their memory; give each its own (copy.deepcopy)"
            )


def _check_meta(config: Config, name: str) -> None:
    """Costs are counted without memory: everything that the forward pass reads must be a parameter or a buffer."""
    try:
        with torch.device("meta"):
            module = build(config)
        cost.measure(module, [input_shape(config, config.pixels)])
    except trial.FAILURES as error:
        raise UserError(
            f"{name} does not run without memory ({str(error).partition(chr(10))[0]}); its forward may not look at "
            "values (branches, .item()), and the tensors that it reads must be registered as parameters or buffers"
        ) from error


def _probe(config: Config) -> tuple[float, ...]:
    module, inputs = _seeded(config)
    with torch.no_grad():
        made = module(*inputs).double()
    numbers = (made.mean(), made.std(), made.flatten()[0], made.flatten()[made.numel() // 2])
    return tuple(float(f"{float(number):.5g}") if math.isfinite(float(number)) else 0.0 for number in numbers)


def _seeded(config: Config, removed: Sequence[str] = ()) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The module with weights of noise, and noise for its input."""
    whole = build(config)
    state = trial.seeded_state(whole)
    made = whole if not removed else build(replace(config, removed=(*config.removed, *removed)))
    made.load_state_dict({name: state[name] for name in made.state_dict()})
    return made, trial.seeded_inputs([torch.zeros(config.input_shape)])


# ------------------------------------------------------------------------------------------------- as the kind says it


def build(config: Config, flag: str = "--module") -> nn.Module:
    """The author's module with this configuration's sizes, without its removed blocks; arbitrary weights.

    Raises:
        UserError: nobody has named the code that builds it.
    """
    if config.origin is None:
        todo = f"add {flag} {config.entry}" if config.entry else "adopt it again, with entry='package.module:function'"
        raise UserError(f"this component is built by code of somebody's own, which no file may start: {todo}")
    return stand_in(config.origin.module, dict(config.sizes), config.removed)


def bind(config: Config, origins: Sequence[Any]) -> Config:
    """The configuration with the code that it names, where that is among `origins`.

    Raises:
        UserError: the code computes something else than when the configuration was made.
    """
    origin = next((o for o in origins if isinstance(o, Origin) and o.entry and o.entry == config.entry), None)
    if origin is None:
        return config
    known = {name: tensor.dim() for name, tensor in origin.module.state_dict().items()}
    parts = dict(origin.module.named_modules())
    fits = all(known.get(name) == len(size) for name, size in config.sizes) and set(config.removed) <= set(parts)
    whole = replace(config, sizes=(), removed=(), origin=origin)
    if not fits or not all(
        math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4) for a, b in _pairs(_probe(whole), config.probe)
    ):
        raise UserError(
            f"{config.entry} does not build what it built when this component was saved; go back to that code, "
            "or compress the new module from its start"
        )
    return replace(config, origin=origin)


def _pairs(one: Sequence[float], other: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(one, other, strict=True)) if len(one) == len(other) else [(0.0, 1.0)]


def input_shape(config: Config, pixels: int) -> tuple[int, ...]:
    """Scaled from the example's."""
    batch, channels, *sides = config.input_shape
    return (batch, channels, *(side * pixels // config.pixels for side in sides))


def channel_groups(config: Config) -> tuple[ChannelGroup, ...]:
    """Traced, and each cut on trial.

    Raises:
        UserError: torch cannot export the module.
    """
    return _traced(config).groups


def fixed_channels(config: Config) -> tuple[FixedChannels, ...]:
    """Channels that stay, and why.

    Raises:
        UserError: torch cannot export the module.
    """
    return _traced(config).fixed


def _traced(config: Config) -> Traced:
    return _remembered(config, "trace", _trace)


def _trace(config: Config) -> Traced:
    module, inputs = _seeded(config)
    try:
        found = traced(module, inputs)
    except Untraceable as error:
        raise UserError(
            f"{config.entry or 'the module'} cannot be traced: torch.export says: {error}. Leave prune.width out, or "
            "write its forward without branches on values; mdcompress exports by the same tracer"
        ) from error
    case = trial.Case(
        build=lambda widths: build(_resized(config, found.groups, widths)), inputs=inputs, state=module.state_dict()
    )
    failed = trial.failures(case, found.groups)
    fixed = [FixedChannels(name=g.name, width=g.width, reason=failed[g.name]) for g in found.groups if g.name in failed]
    return Traced(
        groups=tuple(group for group in found.groups if group.name not in failed), fixed=(*fixed, *found.fixed)
    )


def with_widths(config: Config, widths: Mapping[str, int]) -> Config:
    """The configuration with new widths for some channel groups."""
    return _resized(config, channel_groups(config), widths)


def _resized(config: Config, groups: Sequence[ChannelGroup], widths: Mapping[str, int]) -> Config:
    original = {name: list(tensor.shape) for name, tensor in config.origin.module.state_dict().items()}
    sizes = original | {name: list(size) for name, size in config.sizes}
    for group in groups:
        gone = group.width - widths.get(group.name, group.width)
        for part in group.slices if gone else ():
            sizes[part.tensor] = list(sizes[part.tensor])
            sizes[part.tensor][part.axis] -= gone * part.span
    changed = {name: tuple(size) for name, size in sizes.items() if size != original[name]}
    return replace(config, sizes=tuple(sorted(changed.items())))


def blocks(config: Config) -> tuple[Block, ...]:
    """The author's blocks that are still there; one whose input and output were cut apart cannot go any more."""
    return _remembered(config, "blocks", _blocks)


def _blocks(config: Config) -> tuple[Block, ...]:
    module, inputs = _seeded(config)
    if not config.sizes and not config.removed:
        return removable.find_blocks(module, lambda name: _seeded(config, [name])[0], inputs)
    ran = removable.calls(module, inputs)
    there = [b for b in blocks(replace(config, sizes=(), removed=())) if b.name not in config.removed]
    return tuple(b if b.fixed else Block(name=b.name, fixed=removable.why_fixed(ran.get(b.name, ()))) for b in there)


def without_blocks(config: Config, names: Sequence[str]) -> Removal:
    """The configuration without these blocks; the others keep their names."""
    return Removal(config=replace(config, removed=tuple(sorted({*config.removed, *names}))), renamed={})


def _remembered(config: Config, what: str, find: Callable[[Config], Any]) -> Any:
    """What was found of a configuration before; kept with the module that it was found of."""
    if config.origin is None:
        build(config)  # says which code to name
    known, key = config.origin.known, (what, config)
    if key not in known:
        known[key] = find(config)
    return known[key]


def _kind(leaf: Leaf, feed: str) -> Kind:
    return Kind(
        config=Config,
        build=partial(build, flag=FLAGS[leaf]),
        output="image" if leaf == "decoder" else "latents",
        input_shape=input_shape,
        channel_groups=channel_groups,
        with_widths=with_widths,
        blocks=blocks,
        without_blocks=without_blocks,
        feed=feed,
        fixed_channels=fixed_channels,
        bind=bind,
    )


KINDS = {"decoder": _kind("decoder", "latents"), "encoder": _kind("encoder", "pictures")}
