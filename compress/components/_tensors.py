"""Tensors in safetensors files: the header alone, or one tensor at a time, straight into the memory it stays in.

Source: the format of github.com/huggingface/safetensors, whose own parser judges every header here.
Differs: a tensor is read, not mapped: one copy in memory, aligned as torch's own, and a file that somebody truncates
later cannot take the process with it.
Cost: the largest tensor beside what has been read; headers alone take milliseconds whatever the file's size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from compress.components._packing import narrow, unpacked
from compress.errors import UserError
from compress.headers import AGAIN, entries

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LISTED = 12  # problems of one file that are printed


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of a file, not read yet."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # in bytes from the beginning of the file
    stop: int


def header(path: Path) -> dict[str, Entry]:
    """The tensors of a file, by name; their data is not touched.

    Raises:
        UserError: no such file, or one that is truncated or damaged, or whose header contradicts itself.
    """
    from safetensors import SafetensorError, safe_open

    try:
        begin, found = entries(path)
        with safe_open(path, framework="pt"):  # the library's own judgement of types, shapes and offsets
            pass
        return {name: _entry(path, name, entry, begin) for name, entry in found.items()}
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}); {AGAIN}") from error


def _entry(path: Path, name: str, entry: Mapping[str, object], begin: int) -> Entry:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if dtype in DTYPES:
            sizes = tuple(int(str(size)) for size in shape)
            return Entry(file=path, dtype=DTYPES[dtype], shape=sizes, start=begin + start, stop=begin + stop)
        case _:
            raise ValueError(f"'{name}' has the type {entry.get('dtype')}; known: {', '.join(DTYPES)}")


def read(entry: Entry) -> torch.Tensor:
    """The tensor itself, in the type that the file has."""
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        if tensor.numel() and file.readinto(tensor.reshape(-1).view(torch.uint8).numpy().data) != tensor.nbytes:
            raise UserError(f"{entry.file} became shorter while it was read; {AGAIN}")
    return tensor


def misfits(expected: Mapping[str, torch.Tensor], found: Mapping[str, Entry], what: str) -> list[str]:
    """What a file's tensors lack or have too much for a module's, by the header alone.

    Args:
        expected: The module's tensors, on any device.
        found: The file's, under the module's names.
        what: The file that says how the module is built.
    """
    problems = [f"missing tensor {name} {list(t.shape)}" for name, t in expected.items() if name not in found]
    problems += [f"unexpected tensor {name} {list(e.shape)}" for name, e in found.items() if name not in expected]
    both = [(name, found[name], t) for name, t in expected.items() if name in found]
    problems += [
        f"{name} is {list(e.shape)} in the file, {list(t.shape)} in {what}" for name, e, t in both if e.shape != t.shape
    ]
    return problems + [
        f"{name} is {e.dtype} in the file, {t.dtype} expected"
        for name, e, t in both
        if e.dtype.is_floating_point != t.dtype.is_floating_point
    ]


def refuse(problems: Sequence[str], where: Path, what: str) -> None:
    """Raise what is wrong, the first of them in full.

    Raises:
        UserError: there are problems.
    """
    if problems:
        more = f"\n  ... and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise UserError(f"{where} does not fit its {what}:\n  " + "\n  ".join(problems[:LISTED]) + more)


def fill(module: nn.Module, found: Mapping[str, Entry], where: Path, what: str) -> None:
    """Put the tensors of a file that fits into a module; it may be on the meta device.

    Floating-point tensors are converted to the module's type here, one by one, and nowhere else.

    Raises:
        UserError: tensors hold NaN or Inf.
    """
    state, problems, packed = {}, [], narrow(module)
    for name, wanted in module.state_dict().items():
        tensor = read(found[name])
        if tensor.is_floating_point() and not tensor.isfinite().all():
            problems.append(f"{name} holds NaN or Inf")
        codes = unpacked(tensor, packed[name], wanted) if name in packed else tensor
        state[name] = codes.reshape(wanted.shape).to(wanted.dtype)
    refuse(problems, where, what)
    module.load_state_dict(state, assign=True)
