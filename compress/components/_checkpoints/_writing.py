"""Our components as another library's folder: config.json and safetensors, or what cannot be expressed, by name."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from compress.components._checkpoints._grammar import Grammar, grammars
from compress.errors import UserError
from compress.files import write_json, write_tensors
from compress.nn.qmodules import quantized
from compress.records import Variant

LISTED = 8  # differences that are printed


def write(
    variants: Sequence[Variant],
    folder: Path,
    *,
    library: Literal["diffusers", "transformers"],
    dtype: torch.dtype = torch.float32,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write components as one folder of the class that holds their kinds.

    Args:
        variants: One component, or an autoencoder's encoder and decoder.
        folder: Where config.json and the weights go.
        library: Whose class.
        dtype: Of the file's floating-point tensors.
        config: The config.json that the components were read with, to be written again.

    Raises:
        UserError: there is no such class, or it cannot express what the components are: every difference is named.
    """
    grammar = _grammar_of(variants, library)
    parts = {part: v for v in variants for part, kind in grammar.parts.items() if kind == v.arch.kind}
    for part, variant in parts.items():
        integers = list(quantized(variant.module))
        if integers:
            raise UserError(
                f"{grammar.name} cannot hold the quantized layers of the {part}: {_some(integers)}; "
                "write the variant as it was before quantization"
            )
    records = {part: v.arch.config for part, v in parts.items()}
    chosen = dict(config) if config is not None else {"_class_name": grammar.name} | grammar.write(records)
    if grammar.library == "transformers":
        chosen.pop("_class_name", None)
        key = "torch_dtype" if "torch_dtype" in chosen else "dtype"  # transformers 4 and 5
        chosen[key] = str(dtype).removeprefix("torch.")
    _check(grammar, chosen, records)
    tensors: dict[str, torch.Tensor] = {}
    for part, variant in parts.items():
        for name, tensor in variant.module.state_dict().items():
            theirs = grammar.names(part, name, records[part])[0]
            kept = tensor.flatten(1) if grammar.flat(name) else tensor
            tensors[theirs] = kept.to(dtype) if kept.is_floating_point() else kept
    write_tensors(folder / f"{grammar.stem}.safetensors", tensors, metadata={"format": "pt"})
    write_json(folder / "config.json", chosen)


def _grammar_of(variants: Sequence[Variant], library: str) -> Grammar:
    """The library's class whose parts these are."""
    kinds = [v.arch.kind for v in variants]
    for grammar in grammars().values():
        if len(set(kinds)) == len(kinds) and set(kinds) <= set(grammar.parts.values()) and grammar.library == library:
            return grammar
    known = "; ".join(f"{g.library}.{name}: {' and '.join(g.parts.values())}" for name, g in grammars().items())
    raise UserError(f"no class of {library} holds {' and '.join(kinds)} ({known})")


def _check(grammar: Grammar, config: Mapping[str, Any], records: Mapping[str, Any]) -> None:
    """Read the configuration back and compare: what differs is what the class cannot express."""
    problems = []
    for part, record in records.items():
        try:
            back = grammar.read(config, part)
        except (UserError, ValueError) as error:
            raise UserError(f"{grammar.name} cannot express this {part}: {error}") from error
        problems += [f"{part}: {line}" for line in differences(asdict(record), asdict(back))]
    if problems:
        raise UserError(
            f"{grammar.name} cannot express these components; where they differ from the nearest it can:\n  "
            + "\n  ".join(problems[:LISTED])
            + (f"\n  ... and {len(problems) - LISTED} more" if len(problems) > LISTED else "")
            + "\n  keep them as arch.json + weights.safetensors, which holds everything"
        )


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where two records differ, leaf by leaf."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [d for key in ours for d in differences(ours[key], theirs.get(key), f"{path}.{key}".lstrip("."))]
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        if len(ours) != len(theirs):
            return [f"{path}: {len(ours)} of them, not {len(theirs)}"]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for i, (mine, other) in pairs for d in differences(mine, other, f"{path}.{i}")]
    return [] if ours == theirs else [f"{path} is {_short(ours)}, not {_short(theirs)}"]


def _short(value: Any) -> str:
    return "there" if isinstance(value, dict | tuple) else "none" if value is None else str(value)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
