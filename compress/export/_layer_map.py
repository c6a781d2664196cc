"""How a file's tensors are to be read as layers: written into formats whose converters change shapes, never values.

One entry a quantized layer: {"bits", "granularity", "shape", "turned"}. `turned` means stored [i, o], as the graph
multiplies by it; integers and scales themselves are always read from the file's own tensors.
"""

import json
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter, ValidationError

from compress.export._onnx_graph import is_turned, weights_of
from compress.nn.affine import Granularity, Half, PerChannel, PerGroup, PerTensor, QuantizedWeight

if TYPE_CHECKING:
    from onnx import GraphProto

KEY = "quantized_layers"  # of the metadata


def layer_map(onnx: Any, graph: "GraphProto") -> str:
    """The map of an ONNX graph, as JSON."""
    entries = {
        name: {
            "bits": weight.bits,
            "granularity": _written(weight.granularity),
            "shape": list(weight.qdata.shape),
            "turned": is_turned(graph, name),
        }
        for name, weight in weights_of(onnx, graph).items()
    }
    return json.dumps(entries, sort_keys=True, separators=(",", ":"))


def entries_of(text: str) -> dict[str, dict[str, Any]]:
    """The map that a file holds.

    Raises:
        ValueError: it is not one.
    """
    try:
        entries = TypeAdapter(dict[str, dict[str, Any]]).validate_json(text)
        for entry in entries.values():
            _granularity(entry["granularity"])
            if not {"bits", "shape", "turned"} <= entry.keys():
                raise KeyError("bits, shape, turned")
    except (ValidationError, KeyError, TypeError) as error:
        raise ValueError(f"its map of layers is damaged ({error})") from error
    return entries


def weight_from(entry: dict[str, Any], qdata: torch.Tensor, scale: torch.Tensor) -> QuantizedWeight:
    """A layer as the variant had it.

    Args:
        entry: what the map says of it.
        qdata: its integers or 16-bit numbers in the order of the file, of any shape with as many elements.
        scale: its scales, likewise; empty for 16-bit numbers.

    Raises:
        RuntimeError: the tensors do not have so many elements.
    """
    shape, granularity = tuple(entry["shape"]), _granularity(entry["granularity"])
    inputs = torch.Size(shape[1:]).numel()
    flat = qdata.reshape(inputs, shape[0]).t() if entry["turned"] else qdata.reshape(shape[0], inputs)
    match granularity:
        case PerGroup():
            scale = scale.reshape(-1, shape[0]).t() if entry["turned"] else scale.reshape(shape[0], -1)
        case PerChannel():
            scale = scale.reshape(shape[0])
        case PerTensor():
            scale = scale.reshape(1)
        case _:
            scale = torch.zeros(0)
    return QuantizedWeight(
        qdata=flat.reshape(shape).contiguous(),
        scale=scale.contiguous(),
        bits=entry["bits"],
        granularity=granularity,
    )


def _written(granularity: Granularity) -> str | dict[str, int]:
    match granularity:
        case PerGroup(size=size):
            return {"per_group": size}
        case Half(dtype=dtype):
            return dtype
        case PerTensor():
            return "per_tensor"
        case _:
            return "per_channel"


def _granularity(written: Any) -> Granularity:
    match written:
        case {"per_group": int(size)}:
            return PerGroup(size)
        case "float16" | "bfloat16":
            return Half(written)
        case "per_tensor":
            return PerTensor()
        case "per_channel":
            return PerChannel()
    raise KeyError(written)
