"""Rules for what holds weights, or treats channels one by one: layers, norms, sums, gates, attention products."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.nn.tracing.identities import Role, varying
from compress.nn.tracing.step import Step, Stored, leaves, module_of, nobody, spread, vector

aten = torch.ops.aten


def _whole(step: Step, index: int, key: str) -> Stored | None:
    value = step.given(index, key)
    return value if isinstance(value, Stored) and value.whole else None


def _dense(step: Step, axis: int, *, writes: int, over_pixels: bool) -> Tensor:
    """A layer in which every output channel reads every input channel: weight, and bias where there is one."""
    weight, bias, given = _whole(step, 1, "weight"), _whole(step, 2, "bias"), step.args[0]
    if weight is None or (bias is None and step.given(2, "bias") is not None) or isinstance(given, Stored):
        return step.unknown("they reach a layer whose weight is computed, not stored,")
    channels = vector(step, given, axis, over_pixels=over_pixels)
    if channels is None:
        return step.unknown("two axes of one tensor carry channels where they reach a layer")
    step.channels.place(weight.name, 1 - writes, channels, "reads")
    made = step.channels.fresh(weight.shape[writes])
    step.channels.place(weight.name, writes, made, "writes")
    if bias is not None:
        step.channels.place(bias.name, 0, made, "writes")
    return spread(made, axis, step.shape)


def linear(step: Step) -> Tensor:
    """`x @ weight.T + bias` over the last axis."""
    return _dense(step, -1, writes=0, over_pixels=False)


def convolution(step: Step) -> Tensor:
    """Weight [out, in, ...]; depthwise ones scale each channel."""
    return _convolution(step, writes=0, groups=step.given(6, "groups", 1))


def transposed_convolution(step: Step) -> Tensor:
    """Weight [in, out, ...]."""
    return _convolution(step, writes=1, groups=step.given(6, "groups", 1))


def _convolution(step: Step, *, writes: int, groups: int) -> Tensor:
    if groups == 1:
        return _dense(step, 1, writes=writes, over_pixels=True)
    weight, bias, given = _whole(step, 1, "weight"), _whole(step, 2, "bias"), step.args[0]
    if isinstance(given, Stored) or weight is None or (bias is None and step.given(2, "bias") is not None):
        return step.unknown("they reach a layer whose weight is computed, not stored,")
    if groups != given.shape[1] or (writes == 1 and weight.shape[1] != 1):
        return step.unknown(f"they reach a convolution in {groups} groups of several channels each")
    channels = vector(step, given, 1, over_pixels=True)
    if channels is None:
        return step.unknown("two axes of one tensor carry channels where they reach a layer")
    made = channels.repeat_interleave(step.shape[1] // groups)
    step.channels.place(weight.name, 0, made, "norm")
    if bias is not None:
        step.channels.place(bias.name, 0, made, "norm")
    return spread(made, 1, step.shape)


# ------------------------------------------------------------------------------------------------------------- norms


def _normed(step: Step, axis: int, indices: Sequence[int]) -> Tensor | None:
    """The channels along `axis`, with the stored vectors that scale and shift them placed; None where that fails."""
    given = [step.args[i] for i in indices if len(step.args) > i and step.args[i] is not None]
    channels = vector(step, step.args[0], axis, over_pixels=axis == 1) if isinstance(step.args[0], Tensor) else None
    if channels is None or not all(isinstance(v, Stored) and v.whole and len(v.shape) == 1 for v in given):
        return None
    for value in given:
        step.channels.place(value.name, 0, channels, "norm")
    return channels


def group_norm(step: Step) -> Tensor:
    """Groups of neighbouring channels must keep equally many."""
    channels = _normed(step, 1, (2, 3))
    if channels is None:
        return step.unknown("they reach a norm that cannot be followed")
    step.channels.norms.append((module_of(step.node), step.args[1], tuple(channels.tolist())))
    return spread(channels, 1, step.shape)


def batch_norm(step: Step) -> list[Tensor]:
    """The first of three outputs; the others are statistics that nobody reads in eval mode."""
    channels = _normed(step, 1, (1, 2, 3, 4))
    shape = step.node.meta["val"][0].shape
    if channels is None:
        step.unknown("they reach a norm that cannot be followed")
        return [nobody(shape)]
    return [spread(channels, 1, shape)]


def instance_norm(step: Step) -> Tensor:
    """Each channel by itself."""
    channels = _normed(step, 1, (1, 2, 3, 4))
    return step.unknown("they reach a norm that cannot be followed") if channels is None else _same(step, channels, 1)


def layer_norm(step: Step) -> Tensor:
    """Over the last axis alone."""
    channels = _normed(step, -1, (2, 3)) if len(step.args[1]) == 1 else None
    return step.unknown("they reach a norm that cannot be followed") if channels is None else _same(step, channels, -1)


def _same(step: Step, channels: Tensor, axis: int) -> Tensor:
    return spread(channels, axis, step.shape)


# ------------------------------------------------------------------------------------------------ element by element


def pointwise(step: Step) -> Tensor:
    """Sums, products, gates, activations: channels at the same place go together."""
    values = [v for v in leaves([*step.args, *step.kwargs.values()]) if isinstance(v, Tensor | Stored)]
    operands = [_aligned(v, len(step.shape)) for v in values if isinstance(v, Tensor)]
    result = nobody(step.shape)
    for labels in (x for x in operands if x.any()):
        result = _joined(step, result, labels).expand(step.shape) if result.any() else labels.expand(step.shape)
    axes = varying(result)
    for labels in (x for x in operands if not x.any()):
        if any(labels.shape[axis] > 1 for axis in axes):
            step.channels.fix(result, step.why("they are combined with values of fixed channels"))
    for value in values:
        if isinstance(value, Stored):
            _stored_beside(step, value, result)
    return result


def prelu(step: Step) -> Tensor:
    """One slope for all, or one for each channel."""
    labels, slope = step.args
    if not isinstance(labels, Tensor) or not isinstance(slope, Stored) or not slope.whole:
        return step.unknown()
    if slope.entries.numel() > 1:
        channels = vector(step, labels, 1, over_pixels=True)
        if channels is None:
            return step.unknown()
        step.channels.place(slope.name, 0, channels, "norm")
    return labels.expand(step.shape)


def _aligned(labels: Tensor, dims: int) -> Tensor:
    return labels.reshape((1,) * (dims - labels.dim()) + tuple(labels.shape))


def _joined(step: Step, one: Tensor, other: Tensor) -> Tensor:
    """The channels of two operands as one. A single channel that is spread over several is fixed and says no more."""
    thin = [any(a.shape[i] == 1 < b.shape[i] for i in varying(b)) for a, b in ((one, other), (other, one))]
    for labels, is_thin in zip((one, other), thin, strict=True):
        if is_thin:
            step.channels.fix(labels, step.why("a single channel is spread over several"))
    if all(thin):
        return nobody(step.shape)
    if any(thin):
        return other if thin[0] else one
    step.channels.merge(one, other, step.why("they are combined with values of fixed channels"))
    return torch.maximum(one, other)


def _stored_beside(step: Step, value: Stored, labels: Tensor) -> None:
    """A stored tensor that scales or shifts channels: one of its axes runs with them, or does not know of them."""
    entries = _aligned(value.entries, len(step.shape))
    if all(entries.shape[axis] == 1 for axis in varying(labels)):
        return
    axis = _axis_along(value, entries, labels)
    if axis is None:
        step.unknown(f"they are combined with {value.name}, no axis of which runs with them,")
        step.channels.fix(labels, step.why(f"they are combined with {value.name}, no axis of which runs with them,"))
        return
    role: Role = "norm" if step.node.target in (aten.mul.Tensor, aten.div.Tensor) else "writes"
    step.channels.place(value.name, axis[0], axis[1], role)


def _axis_along(value: Stored, entries: Tensor, labels: Tensor) -> tuple[int, Tensor] | None:
    """The stored tensor's axis on which each position has one identity and each identity one position."""
    entries, labels = torch.broadcast_tensors(entries, labels)
    pairs = torch.stack([labels.reshape(-1), entries.reshape(-1)]).unique(dim=1)
    if not pairs[0].all():
        return None
    for axis, coordinates in enumerate(torch.unravel_index(pairs[1], value.shape)):
        found = torch.stack([coordinates, pairs[0]]).unique(dim=1)
        size = value.shape[axis]
        if found.shape[1] == size == found[1].unique().numel() == found[0].unique().numel():
            return axis, found[1]
    return None


# --------------------------------------------------------------------------------------------------------- attention


def product(step: Step) -> Tensor:
    """`a @ b`: what is summed over goes together; rows of `a` or columns of `b` may still carry channels."""
    one, other = step.args[0], step.args[1]
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or min(one.dim(), other.dim()) < 2:
        return step.unknown()
    _summed(step, one, other.transpose(-1, -2))
    return _carried(step, one.narrow(-1, 0, 1), other.narrow(-2, 0, 1))


def attention(step: Step) -> Tensor:
    """Queries and keys share their channels, and the scale of the scores is theirs; values pass through."""
    query, key, value = step.args[:3]
    if not all(isinstance(x, Tensor) for x in (query, key, value)) or step.given(3, "attn_mask") is not None:
        return step.unknown()
    _summed(step, query, key)
    if step.kwargs.get("scale") is None:
        for labels in (query, key):
            step.channels.fix(labels, step.why("attention scales its scores by the width of its keys"))
    return _carried(step, query.narrow(-1, 0, 1), value.narrow(-2, 0, 1))


def _summed(step: Step, one: Tensor, other: Tensor) -> None:
    """Merge the last axes of both; whatever else carried channels is left alone."""
    reason = step.why("they are multiplied with values of fixed channels")
    sides = [labels for labels in (one, other) if labels.any()]
    reduced = []
    for labels in sides:
        axes = varying(labels)
        if labels.dim() - 1 in axes:
            flat = step.channels.merge_along(labels, [a for a in axes if a != labels.dim() - 1], reason)
            reduced.append(torch.stack([flat.select(-1, i).reshape(-1)[0] for i in range(flat.shape[-1])]))
    if len(reduced) == 2:
        step.channels.merge(reduced[0], reduced[1], reason)
    elif reduced:
        step.channels.fix(reduced[0], reason)


def _carried(step: Step, rows: Tensor, columns: Tensor) -> Tensor:
    """Labels of a product from those of its rows and columns, read where the summed axis has its first entry."""
    carried = [labels for labels in (rows, columns) if varying(labels)]
    if len(carried) > 1:
        for labels in carried:
            step.channels.fix(labels, step.why("two axes of one product carry channels"))
        return nobody(step.shape)
    return carried[0].expand(step.shape) if carried else nobody(step.shape)


RULES: Mapping[Any, Callable[[Step], Any]] = {
    aten.linear.default: linear,
    **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default), convolution),
    **dict.fromkeys((aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding), convolution),
    **dict.fromkeys(
        (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
        transposed_convolution,
    ),
    aten.group_norm.default: group_norm,
    aten._native_batch_norm_legit_no_training.default: batch_norm,
    aten.instance_norm.default: instance_norm,
    aten.layer_norm.default: layer_norm,
    aten.prelu.default: prelu,
    **dict.fromkeys((aten.matmul.default, aten.bmm.default, aten.mm.default), product),
    aten.scaled_dot_product_attention.default: attention,
}
