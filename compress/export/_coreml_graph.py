"""Putting the variant's integers, scales and tables into a converted Core ML program, and reading them out of one.

Source: coremltools 9, iOS 18 operators `constexpr_blockwise_shift_scale` and `constexpr_lut_to_dense`, iOS 17 operators
`quantize` and `dequantize`.
Differs: Core ML's blocks lie along the axes of a weight, ours along a channel's flattened inputs. Groups whose borders
fall between input channels become blocks of the greatest common divisor, scales repeated; others are refused. Tables of
a short last run of channels are repeated in the same way. A half-precision weight beside float32 activations is a shift
and scale by 1.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from compress.errors import UserError, require
from compress.nn.affine import (
    ActivationRange,
    Granularity,
    Half,
    Palette,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedWeight,
)
from compress.nn.qmodules import QuantizedModule

KEY = "mdcompress.layers"  # in the package's metadata: how each layer is quantized, in JSON
MODULE = "module"  # the component within the traced module: names in MIL start with a letter
LOOK_UP = "constexpr_lut_to_dense"


def place(program: Any, layers: Mapping[str, QuantizedModule]) -> None:
    """Replace each layer's float weight by its integers, and round its activations where it says so, in place.

    Raises:
        UserError: a layer has no place in the program, or a scale is lost in float16.
    """
    block = program.functions["main"]
    weights = {op.name: op for op in block.operations if op.op_type == "const"}
    found = {name: _weight_of(weights, name) for name in layers}
    lost = [name for name, op in found.items() if op is None or not op.outputs[0].child_ops]
    if lost or len({id(op) for op in found.values()}) < len(found):
        raise UserError(
            f"quantized layers without a place of their own in the program: {', '.join(lost) or 'two share one'}"
            "; leave them out of quantization"
        )
    block._essential_scope_sources.clear()  # what is placed here comes from no TorchScript module
    with block:
        for name, q in layers.items():
            _place_one(block, found[name], name, q)


def _plain(name: str) -> str:
    """A layer's name as MIL takes it, the module being `MODULE` of the traced one."""
    return f"{MODULE}_{name.replace('.', '_')}"


def _weight_of(weights: Mapping[str, Any], name: str) -> Any:
    """The constant that the converter made of a layer's weight; conversion to float16 gives it another name."""
    stem = f"{_plain(name)}_weight"
    return next((weights[n] for n in (stem, f"{stem}_to_fp16") if n in weights), None)


def _place_one(block: Any, const: Any, name: str, q: QuantizedModule) -> None:
    builder = require("coremltools.converters.mil.mil", extra="coreml", purpose="export.coreml").Builder
    old = const.outputs[0]
    readers = list(old.child_ops)
    new = _compressed(builder, const, name, q)
    block.replace_uses_of_var_after_op(anchor_op=new.op, old_var=old, new_var=new, no_check_var_types=True)
    block.remove_ops([const])
    for reader in readers:
        if q.layer.input is not None:
            given = reader.inputs["x"]
            rounded = _rounded(builder, given, q.layer.input, f"{reader.name}_input", before_op=reader)
            block.replace_uses_of_var_after_op(
                anchor_op=rounded.op, old_var=given, new_var=rounded, end_op=reader, no_check_var_types=True
            )
        if q.layer.output is not None:
            _round_output(builder, block, reader, q.layer.output)


def _round_output(builder: Any, block: Any, op: Any, grid: ActivationRange) -> None:
    made = op.outputs[0]
    following = list(block.operations)[list(block.operations).index(op) + 1 :]
    before = {"before_op": following[0]} if following else {}
    rounded = _rounded(builder, made, grid, f"{op.name}_output", **before)
    block.replace_uses_of_var_after_op(
        anchor_op=rounded.op, old_var=made, new_var=rounded, no_check_var_types=True, force_replace=True
    )
    if rounded in block.outputs:
        made.name, rounded.name = f"{made.name}_unrounded", made.name


def _rounded(builder: Any, value: Any, grid: ActivationRange, name: str, **where: Any) -> Any:
    kind = np.float16 if value.dtype.__name__ == "fp16" else np.float32
    scale, zero = kind(grid.scale), np.uint8(grid.zero_point)
    integers = builder.quantize(
        input=value, zero_point=zero, scale=scale, output_dtype="uint8", name=f"{name}_quantize", **where
    )
    return builder.dequantize(input=integers, zero_point=zero, scale=scale, name=f"{name}_dequantize", **where)


def _compressed(builder: Any, const: Any, name: str, q: QuantizedModule) -> Any:
    """The operator that makes the weight of what is stored."""
    kind = const.outputs[0].val.dtype
    label = f"{_plain(name)}_stored"
    if isinstance(q.layer.granularity, Palette):
        indices, tables = palette_blocks(q.quantized_weight)
        typed = indices.astype(_integer_type(f"uint{q.layer.bits}"))
        return builder.constexpr_lut_to_dense(indices=typed, lut=_in(tables, kind, name), name=label, before_op=const)
    if isinstance(q.layer.granularity, Half):
        data, scale = q.qdata.numpy(), np.ones([1] * q.qdata.dim(), kind)
        return builder.constexpr_blockwise_shift_scale(data=data, scale=scale, name=label, before_op=const)
    data = q.qdata.numpy().astype(_integer_type(f"int{q.layer.bits}"))
    scale = _in(scale_blocks(q.quantized_weight, name), kind, name)
    return builder.constexpr_blockwise_shift_scale(data=data, scale=scale, name=label, before_op=const)


def _integer_type(name: str) -> Any:
    types = require("coremltools.converters.mil.mil.types", extra="coreml", purpose="export.coreml")
    return types.nptype_from_builtin(types.string_to_builtin(name))


def _in(values: torch.Tensor, kind: Any, name: str) -> Any:
    """As an array of the program's float type.

    Raises:
        UserError: float16 is too narrow for the values.
    """
    made = values.detach().numpy().astype(kind)
    used = values.numpy() > 2.0**-50  # what stands for a channel of zeros may become 0
    if not np.isfinite(made).all() or (made[used] == 0).any():
        raise UserError(f"{name}: its scales do not fit into float16; choose precision: float32 for coreml")
    return made


def scale_blocks(weight: QuantizedWeight, name: str) -> torch.Tensor:
    """Scales [o, ...] as Core ML's blocks, of the weight's rank; exact.

    Raises:
        UserError: a group ends within an input channel's kernel.
    """
    shape = weight.qdata.shape
    match weight.granularity:
        case PerTensor() | PerChannel():
            return weight.scale.reshape(-1, *[1] * (len(shape) - 1))
        case PerGroup(size=size):
            step = block_of(shape, size)
            if step is None:
                raise UserError(f"{name}: {no_block(shape, size)}")
            starts = torch.arange(0, shape[1], step) * math.prod(shape[2:]) // size
            return weight.scale[:, starts].reshape(shape[0], -1, *[1] * (len(shape) - 2))
        case _:
            raise TypeError(f"{weight.granularity} has no scales")


def block_of(shape: torch.Size | tuple[int, ...], size: int) -> int | None:
    """Input channels per block that hold groups of `size`: all if there is one group; None where none would do."""
    kernel = math.prod(shape[2:])
    if size >= shape[1] * kernel:
        return shape[1]
    return None if size % kernel else math.gcd(size // kernel, shape[1])


def no_block(shape: torch.Size | tuple[int, ...], size: int) -> str:
    """What there is to say where `block_of` gives None."""
    kernel = math.prod(shape[2:])
    return (
        f"groups of {size} weights end within a kernel of {kernel}, which no block of Core ML does; "
        f"choose a multiple of {kernel}"
    )


def palette_blocks(weight: QuantizedWeight) -> tuple[Any, torch.Tensor]:
    """Unsigned codes in the weight's shape and tables [runs, 1..., 2^bits, 1] of equal runs of output channels."""
    if not isinstance(weight.granularity, Palette):
        raise TypeError(f"{weight.granularity} is no palette")
    shape, rank = weight.qdata.shape, weight.qdata.dim()
    channels = min(weight.granularity.channels or shape[0], shape[0])
    run = math.gcd(channels, shape[0])
    tables = weight.scale[torch.arange(0, shape[0], run) // channels]
    codes = weight.qdata.to(torch.int32) + 2 ** (weight.bits - 1)
    return codes.numpy(), tables.reshape(-1, *[1] * (rank - 1), 2**weight.bits, 1)


def described(layers: Mapping[str, QuantizedModule]) -> str:
    """How each layer is quantized, for the package's metadata."""
    return json.dumps({name: _entry(q.layer.bits, q.layer.granularity) for name, q in sorted(layers.items())})


def _entry(bits: int, granularity: Granularity) -> list[Any]:
    match granularity:
        case PerTensor():
            return [bits, "tensor", None]
        case PerChannel():
            return [bits, "channel", None]
        case PerGroup(size=size):
            return [bits, "group", size]
        case Palette(channels=channels):
            return [bits, "palette", channels]
        case Half(dtype=dtype):
            return [bits, dtype, None]


def stored(program: Any, text: str) -> dict[str, QuantizedWeight]:
    """What the program's own operators hold, by layer name, in the variant's terms."""
    entries = json.loads(text) if text else {}
    operators = {op.name: op for op in program.functions["main"].operations}
    held = {name: operators.get(f"{_plain(name)}_stored") for name in entries}
    return {
        name: _weight(op, *entries[name]) for name, op in held.items() if op is not None and op.outputs[0].child_ops
    }


def _weight(op: Any, bits: int, kind: str, size: int | None) -> QuantizedWeight:
    if op.op_type == LOOK_UP:
        codes, tables = np.asarray(op.indices.val).astype(np.int16), torch.tensor(op.lut.val, dtype=torch.float32)
        qdata = torch.from_numpy(codes - 2 ** (bits - 1)).to(torch.int8)
        return QuantizedWeight(
            qdata=qdata, scale=_tables(tables, qdata.shape[0], size), bits=bits, granularity=Palette(size)
        )
    if kind in ("float16", "bfloat16"):
        half = torch.from_numpy(np.array(op.data.val))
        return QuantizedWeight(qdata=half, scale=torch.zeros(0), bits=bits, granularity=Half("float16"))
    qdata = torch.from_numpy(np.asarray(op.data.val).astype(np.int8))
    scale = torch.tensor(op.scale.val, dtype=torch.float32).flatten(1)
    granularity: Granularity = PerTensor() if kind == "tensor" else PerChannel()
    if kind == "group" and size is not None:
        granularity, kernel = PerGroup(size), math.prod(qdata.shape[2:])
        groups = -(-qdata[0].numel() // size)
        step = qdata.shape[1] // scale.shape[1]
        scale = scale[:, torch.arange(groups) * size // kernel // step]
    return QuantizedWeight(
        qdata=qdata, scale=scale if kind == "group" else scale.flatten(), bits=bits, granularity=granularity
    )


def _tables(blocks: torch.Tensor, rows: int, channels: int | None) -> torch.Tensor:
    tables = blocks.reshape(blocks.shape[0], -1)
    run = rows // len(tables)
    return tables[torch.arange(0, rows, min(channels or rows, rows)) // run]
