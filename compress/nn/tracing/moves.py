"""Rules for what moves data or sums over pixels: these operations run on the identities themselves.

Where an operation has sizes of its own on an axis of channels (a slice, uneven parts), those channels are fixed: the
graph does not say how its author came to the sizes. A view that splits channels into several axes is taken to keep all
but the largest, as `(heads, width)` and `(channels, 2, 2)` do; whoever uses the result must try it out.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from compress.nn.tracing.identities import compacted, varying
from compress.nn.tracing.step import Step, Stored, leaves, nobody, spread, vector

aten = torch.ops.aten


def moved(step: Step) -> Any:
    """Run the operation on the labels; a view of a stored tensor is a view of its entries."""
    tensors = [v for v in leaves(step.args) if isinstance(v, Tensor | Stored)]
    stored = [v for v in tensors if isinstance(v, Stored)]
    if stored:
        return _viewed(step, stored[0]) if len(tensors) == 1 else step.unknown()
    made = _operation(step)(*step.args, **step.kwargs)
    return [compacted(part) for part in made] if isinstance(made, list | tuple) else compacted(made)


def _operation(step: Step) -> Callable[..., Any]:
    assert callable(step.node.target)
    return step.node.target


def _viewed(step: Step, stored: Stored) -> Any:
    made = _operation(step)(stored.entries, *step.args[1:], **step.kwargs)
    if isinstance(made, list | tuple):
        return [Stored(name=stored.name, shape=stored.shape, entries=part) for part in made]
    return Stored(name=stored.name, shape=stored.shape, entries=made)


def unchanged(step: Step) -> Any:
    """Casts, copies, dropout in eval mode."""
    return step.args[0]


def view(step: Step) -> Any:
    """A new shape; channels that come to lie along several axes go together along all but the largest."""
    labels = step.args[0]
    if isinstance(labels, Stored):
        return Stored(name=labels.name, shape=labels.shape, entries=labels.entries.reshape(step.shape))
    made = compacted(labels.reshape(step.shape))
    axes = varying(made)
    if len(axes) <= len(varying(labels)):
        return made
    rest = sorted(axes, key=lambda axis: made.shape[axis])[:-1]
    merged = step.channels.merge_along(made, rest, step.why("they are viewed together with values of no channel"))
    return merged.expand(made.shape)


def along(index: int, key: str, default: Any = 0) -> Callable[[Step], Any]:
    """A rule for operations that pick from or change the order of the axes that an argument names."""

    def rule(step: Step) -> Any:
        labels = step.args[0]
        if isinstance(labels, Tensor) and _crosses(labels, step.given(index, key, default)):
            whole = step.shape == tuple(labels.shape) and step.node.target is aten.slice.Tensor
            if not whole:
                return step.unknown("a part of them is picked by position")
        return moved(step)

    return rule


def parts(step: Step) -> Any:
    """Equal parts go together; the sizes of uneven parts are their author's, so those are fixed."""
    labels, axis = step.args[0], step.given(2, "dim", 0)
    made = moved(step)
    if not isinstance(labels, Tensor) or axis % labels.dim() not in varying(labels):
        return made
    if len({tuple(part.shape) for part in made}) > 1:
        step.unknown("they are cut into parts of fixed, unequal sizes")
        return [nobody(part.shape) for part in made]
    for part in made[1:]:
        step.channels.merge(made[0], part, step.why("they are cut into parts together with values of no channel"))
    return made


def reduced(step: Step) -> Tensor:
    """A sum, mean or extreme over axes that carry no channels."""
    labels = step.args[0]
    if not isinstance(labels, Tensor):
        return step.unknown("they are summed or compared with each other")
    axes = step.given(1, "dim", None) or list(range(labels.dim()))
    if _crosses(labels, axes):
        return step.unknown("they are summed or compared with each other")
    keep = step.kwargs.get("keepdim") if step.node.target in SPREADS else step.given(2, "keepdim")
    return compacted(labels.amax(axes, keepdim=bool(keep)))


def weighed(step: Step) -> Tensor:
    """A softmax, or a running sum, along an axis that carries no channels."""
    labels = step.args[0]
    if not isinstance(labels, Tensor) or _crosses(labels, step.given(1, "dim")):
        return step.unknown("they are summed or compared with each other")
    return labels


def pixels(step: Step) -> Tensor:
    """Resizing, pooling and padding of each channel's own pixels; channels along axis 1."""
    labels = step.args[0]
    if not isinstance(labels, Tensor) or labels.dim() < 3:
        return step.unknown()
    if step.node.target in PADS and any(step.args[1][2 * (labels.dim() - 2) :]):
        return step.unknown("channels are added by padding")
    channels = vector(step, labels, 1, over_pixels=True)
    return step.unknown() if channels is None else spread(channels, 1, step.shape)


def _crosses(labels: Tensor, axes: Any) -> bool:
    listed = axes if isinstance(axes, list | tuple) else [axes]
    return any(axis % labels.dim() in varying(labels) for axis in listed)


SPREADS = (aten.var.correction, aten.std.correction)
PADS = (aten.constant_pad_nd.default, aten.pad.default)
MOVES: Mapping[Any, Callable[[Step], Any]] = {
    **dict.fromkeys(
        (
            aten.transpose.int,
            aten.permute.default,
            aten.t.default,
            aten.numpy_T.default,
            aten.unsqueeze.default,
            aten.squeeze.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
            aten.expand.default,
            aten.cat.default,
            aten.stack.default,
            aten.repeat.default,
            aten.repeat_interleave.self_int,
            aten.pixel_shuffle.default,
            aten.pixel_unshuffle.default,
            aten.movedim.int,
            aten.movedim.intlist,
        ),
        moved,
    ),
    **dict.fromkeys(
        (
            aten.view.default,
            aten._unsafe_view.default,
            aten.reshape.default,
            aten.flatten.using_ints,
            aten.unflatten.int,
        ),
        view,
    ),
    **dict.fromkeys(
        (
            aten.clone.default,
            aten.contiguous.default,
            aten.alias.default,
            aten.detach.default,
            aten.detach_.default,
            aten._to_copy.default,
            aten.to.dtype,
            aten.dropout.default,
            aten.lift_fresh_copy.default,
        ),
        unchanged,
    ),
    **dict.fromkeys((aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default), parts),
    aten.slice.Tensor: along(1, "dim"),
    aten.select.int: along(1, "dim"),
    aten.unbind.int: along(1, "dim"),
    aten.flip.default: along(1, "dims"),
    aten.roll.default: along(2, "dims", ()),
    **dict.fromkeys(
        (
            aten.mean.dim,
            aten.mean.default,
            aten.sum.dim_IntList,
            aten.sum.default,
            aten.amax.default,
            aten.amin.default,
            aten.var.correction,
            aten.std.correction,
        ),
        reduced,
    ),
    **dict.fromkeys((aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten.cumsum.default), weighed),
    **dict.fromkeys(
        (
            aten.upsample_nearest1d.vec,
            aten.upsample_nearest2d.vec,
            aten.upsample_nearest3d.vec,
            aten.upsample_nearest2d.default,
            aten._upsample_nearest_exact2d.vec,
            aten.upsample_bilinear2d.vec,
            aten.upsample_bicubic2d.vec,
            aten._upsample_bilinear2d_aa.vec,
            aten._upsample_bicubic2d_aa.vec,
            aten.avg_pool2d.default,
            aten.max_pool2d.default,
            aten.adaptive_avg_pool2d.default,
            aten.adaptive_max_pool2d.default,
            aten.reflection_pad2d.default,
            aten.replication_pad2d.default,
            aten.constant_pad_nd.default,
            aten.pad.default,
        ),
        pixels,
    ),
}
