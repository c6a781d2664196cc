"""What headers and JSON alone show of a component's folder, without torch: what is damaged is refused in milliseconds.

Source: the format of github.com/huggingface/safetensors: eight bytes of length, JSON, tensors.
"""

import ast
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from compress.errors import UserError
from compress.files import read_json

AGAIN = "copy or download it again"
HALVES = {"decoder": "vae", "encoder": "vae"}  # components -> their folder in a diffusers pipeline
DESCRIPTIONS = ("config.json", "model_index.json", "arch.json", "quantization.json")


def entries(path: Path) -> tuple[int, dict[str, dict[str, object]]]:
    """Where a safetensors file's data begins, and its header; its promise is compared with the file's size.

    Raises:
        UserError: the file is truncated, or its header is none.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > size - 8:
                raise UserError(
                    f"{path} is truncated: its header alone claims {header_bytes} bytes, the file has {size}"
                )
            found = json.loads(file.read(header_bytes))
        if not isinstance(found, dict):
            raise ValueError("the header is not a JSON object")
        found.pop("__metadata__", None)
        promised = max((_stop(name, entry) for name, entry in found.items()), default=0) + header_bytes + 8
    except (struct.error, ValueError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}); {AGAIN}") from error
    if promised != size:
        raise UserError(f"{path} is truncated or damaged: {promised} bytes promised, {size} there; {AGAIN}")
    return header_bytes + 8, found


def shards(index: Path) -> tuple[Path, ...]:
    """The files that a safetensors index names.

    Raises:
        UserError: it is no index, or files are missing.
    """
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index} has no weight_map of tensors to files; copy or download it again")
    paths = sorted({index.parent / Path(name).name for name in places.values()})
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise UserError(f"{index} names shards that are not there: {', '.join(missing)}; copy or download them")
    return tuple(paths)


def look(folder: Path, component: str = "") -> None:
    """Refuse a component's folder, or one with a folder for each component, whose files are damaged.

    Args:
        folder: What a user gave; a path below an existing folder names a part of it.
        component: The only component that is wanted of several, e.g. "decoder".

    Raises:
        UserError: the file and what is wrong with it.
    """
    for place in _places(folder, component):
        for name in DESCRIPTIONS:
            if (place / name).is_file():
                _check_class(place / name, read_json(place / name))
        for index in sorted(place.glob("*.safetensors.index.json")):
            shards(index)
        for path in sorted(place.glob("*.safetensors")):
            entries(path)


def _check_class(path: Path, config: object) -> None:
    """Refuse a config.json of a class that nothing here reads; other files name none."""
    if path.name != "config.json" or not isinstance(config, dict):
        return
    listed = config.get("architectures")
    name = config.get("_class_name") or (listed[0] if isinstance(listed, list) and listed else None)
    known = classes()
    if name is not None and name not in known:
        raise UserError(f"{path} is of the class {name}, which cannot be read; known: {', '.join(known)}")


def classes() -> tuple[str, ...]:
    """The classes of other libraries that can be read, from the files that read them, none of which is imported."""
    found = []
    for path in sorted((Path(__file__).parent / "components" / "_checkpoints").glob("[a-z]*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Grammar":
                names = [word.value for word in node.keywords if word.arg == "name"]
                found += [value.value for value in names if isinstance(value, ast.Constant)]
    return tuple(str(name) for name in found)


def _places(folder: Path, component: str) -> Iterator[Path]:
    """The folder, that of the component in it, and that of which it names a part."""
    leaf = component or folder.name
    for place in (folder, *(folder / name for name in (leaf, HALVES.get(leaf, leaf)) if component)):
        if place.is_dir():
            yield place
    if not folder.exists():
        yield from (p for p in (folder.parent, folder.parent / HALVES.get(leaf, leaf)) if (p / "config.json").is_file())


def _stop(name: str, entry: object) -> int:
    match entry:
        case {"data_offsets": [int(), int(stop)]}:
            return stop
        case _:
            raise ValueError(f"the header's entry '{name}' has no data_offsets")
