"""Bytes on disk, of a file or of everything in a folder.

Source: the lengths that the file system reports, not the blocks that it occupies.
Differs: links are followed and each file counts once, however many names it has in the folder.
Cost: one look at each file's entry; nothing is read.
"""

from pathlib import Path

from eval.errors import EvalError

UNIT = "bytes"
HIGHER_IS_BETTER = False
RANGE = (0.0, float("inf"))
NEEDS_NET = False
TAKES = "cost"
DEFINITION = "length of the files, each counted once"


def bytes_of(path: Path) -> int:
    """The length of a file, or of all files in a folder and below, each counted once.

    Raises:
        EvalError: there is nothing at `path`.
    """
    if path.is_file():
        return path.stat().st_size
    if path.is_dir():
        return sum(found.stat().st_size for found in {entry.resolve() for entry in path.rglob("*") if entry.is_file()})
    raise EvalError(f"no file or folder {path} to take the size of")


def ratio(candidate: Path, reference: Path) -> float:
    """Bytes of the candidate over bytes of the reference.

    Raises:
        EvalError: one of them is missing, or the reference is empty.
    """
    whole = bytes_of(reference)
    if whole == 0:
        raise EvalError(f"{reference} is empty: a size relative to it says nothing")
    return bytes_of(candidate) / whole
