"""Results kept by what made them: one directory per key, written beside and renamed in, never changed afterwards.

A key is the SHA-256 of everything that can change the result: method, validated configuration, parent, data, seed, the
code of the method and of every room below it, and the torch version. A failure leaves nothing behind.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.errors import UserError

ROOT = Path(__file__).parent.parent
ROOMS_BELOW = ("compress/nn", "compress/components", "calibration", "eval/metrics")
FILES_BELOW = ("compress/records.py", "compress/schema.py", "compress/errors.py", "compress/files.py")


def default_root() -> Path:
    """`$MDCOMPRESS_CACHE`, else mdcompress in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MDCOMPRESS_CACHE") or Path(base) / "mdcompress" / "store")


def key_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of `parts`.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def code_digest(module_file: Path) -> str:
    """SHA-256 of a method's file, its room's underscore files, and every room below that it may import."""
    files = {module_file.resolve(), *module_file.resolve().parent.glob("_*.py")}
    for room in ROOMS_BELOW:
        files |= set((ROOT / room).rglob("*.py"))
    files |= {ROOT / name for name in FILES_BELOW}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


class Store:
    """A folder of finished results and of the scratch space of unfinished ones."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, key: str) -> Path | None:
        """The folder of a finished result, or None."""
        folder = self.root / key[:2] / key
        return folder if folder.is_dir() else None

    def put(self, key: str, build: Callable[[Path], None]) -> Path:
        """Let `build` fill a folder, then rename it in. When two do so at once, the first wins and both get its folder.

        Raises:
            UserError: the store cannot be written.
        """
        folder = self.root / key[:2] / key
        temporary = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".building-"))
            build(temporary)
            temporary.chmod(0o755)
            temporary.rename(folder)
        except OSError as error:
            if not folder.is_dir():  # else somebody was faster
                raise UserError(
                    f"cannot write the store {self.root}: {error.strerror}; set MDCOMPRESS_CACHE"
                ) from error
        finally:
            if temporary is not None and temporary.exists():
                shutil.rmtree(temporary)
        return folder

    def scratch(self, key: str) -> Path:
        """Space for the checkpoints of a result that is being made; survives a kill."""
        folder = self.root / "unfinished" / key
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write the store {self.root}: {error.strerror}; set MDCOMPRESS_CACHE") from error
        return folder

    def clear_scratch(self, key: str) -> None:
        """Drop the checkpoints of a result that is stored now."""
        shutil.rmtree(self.root / "unfinished" / key, ignore_errors=True)
