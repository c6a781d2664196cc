"""A component from one layout to another: our folder, a diffusers folder, a transformers folder."""

from pathlib import Path
from typing import Literal

import torch

from compress.components import Checkpoint, load_variant, locate, parts_of, save_variant, write_checkpoint
from compress.errors import UserError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def convert(
    folder: Path,
    out: Path,
    *,
    layout: Literal["diffusers", "transformers", "mdcompress"],
    companion: Path | None = None,
    dtype: str | None = None,
) -> Path:
    """Write a component in a layout; gives the folder that was written.

    A checkpoint of another library that goes back into its own layout keeps its config.json and its type of weights, so
    that the tensors are the same, bit for bit.

    Args:
        folder: A variant folder, or a path that names a component of another library's folder, or an autoencoder's.
        out: A folder that does not exist yet, or is empty.
        layout: Whose layout to write.
        companion: The other half of an autoencoder.
        dtype: Type of the weights; by default the folder's. Ours are float32.

    Raises:
        UserError: `out` is taken, or the layout cannot express the component: what differs is named.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and not empty; choose another place with --out")
    found = [*parts_of(folder), *(parts_of(companion) if companion else ())]
    variants = [load_variant(path) for path in found]
    if layout == "mdcompress":
        if companion is not None or dtype not in (None, "float32"):
            raise UserError("--as mdcompress writes float32, without a companion; leave --with and --dtype away")
        for path, variant in zip(found, variants, strict=True):
            save_variant(variant, out if len(found) == 1 else out / path.name)
        return out
    sources = [None if (path / "arch.json").exists() else locate(path) for path in found]
    chosen = DTYPES[dtype] if dtype else _dtype(sources)
    write_checkpoint(variants, out, library=layout, dtype=chosen, config=_config(sources))
    return out


def _config(sources: list[Checkpoint | None]) -> dict[str, object] | None:
    """The config.json of a checkpoint all of whose parts come from one folder."""
    first = sources[0]
    whole = first is not None and all(s is not None and s.folder == first.folder for s in sources)
    return dict(first.config) if first is not None and whole and len(sources) == len(first.grammar.parts) else None


def _dtype(sources: list[Checkpoint | None]) -> torch.dtype:
    """The type of all weights, where there is one; else float32."""
    found = {entry.dtype for s in sources for entry in (s.tensors().values() if s else [])}
    only = {dtype for dtype in found if dtype.is_floating_point}
    return only.pop() if len(only) == 1 and all(sources) else torch.float32
