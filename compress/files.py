"""Files that appear whole or not at all: JSON, text and tensors written beside and renamed in."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import UserError

if TYPE_CHECKING:
    import torch  # sampling from exported files has none


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then rename it in; on any failure nothing is left behind.

    Raises:
        UserError: the disk is full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        os.close(handle)
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left to write {path}; free some, or choose another place with --out") from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_folder_atomically(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a new folder beside `path`, then rename it in, in the place of what was there.

    Raises:
        UserError: the disk is full.
    """
    beside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        new = beside / "new"
        new.mkdir()
        fill(new)
        for part in (new, *new.rglob("*")):
            part.chmod(0o755 if part.is_dir() else 0o644)
        if path.exists():
            path.rename(beside / "old")
        new.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left to write {path}; free some, or choose another place with --out") from error
        raise
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)


def copy_artifact(source: Path, to: Path) -> None:
    """A file, or a folder that is one artifact (a Core ML package, an OpenVINO model), to another place, whole."""
    if source.is_dir():
        write_folder_atomically(to, lambda folder: _copy_tree(source, folder))
    else:
        write_atomically(to, lambda temporary: _copy_file(source, temporary))


def _copy_tree(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)


def _copy_file(source: Path, to: Path) -> None:
    shutil.copyfile(source, to)


def parts_of(artifact: Path) -> tuple[Path, ...]:
    """The files that an artifact is made of, sorted: itself, or everything below it where it is a folder."""
    if not artifact.is_dir():
        return (artifact,)
    return tuple(sorted(p for p in artifact.rglob("*") if p.is_symlink() or not p.is_dir()))


def size_of(artifact: Path) -> int:
    """Bytes of an artifact, all its files together."""
    return sum(part.stat().st_size for part in parts_of(artifact))


def write_bytes(path: Path, data: bytes) -> None:
    """Bytes as they are."""

    def fill(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomically(path, fill)


def write_text(path: Path, text: str) -> None:
    """UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Readable JSON with sorted keys; NaN and Inf are refused."""
    write_text(path, json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """safetensors, in sorted order: same tensors, same bytes."""
    from safetensors.torch import save_file

    ordered = {name: tensors[name].detach().contiguous() for name in sorted(tensors)}
    write_atomically(path, lambda temporary: save_file(ordered, temporary, dict(metadata) if metadata else None))


def read_json(path: Path) -> Any:
    """Parsed JSON.

    Raises:
        UserError: missing, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
