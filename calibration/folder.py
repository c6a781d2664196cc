"""A folder of pictures, file by file: what each holds, or why it was left out.

Differs: which split a file belongs to is read from its content (first byte of its SHA-256 below 86: evaluation, which
is one third; else calibration). Renaming or adding files moves nothing, equal files are never on both sides, and both
splits of one folder are disjoint without a list being kept.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from calibration.decode import decode
from calibration.errors import DataError

Split = Literal["calibration", "evaluation"]

EVALUATION_BELOW = 86  # of the 256 values of a digest's first byte
LOOKED_AT_LEAST = 64  # files decoded before a folder counts as sound, even when fewer would do
NAMED = 5  # files named in one message


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedFile:
    """A file that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """One usable picture, already prepared (cropped or shrunk) by whoever asked for it."""

    name: str
    pixels: np.ndarray  # uint8 [height, width, 3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What a folder gave: pictures of one split sorted by name, and the account of everything else."""

    pictures: tuple[Picture, ...]
    skipped: tuple[SkippedFile, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looked:
    """One directory entry after a look: either pixels or a reason. `broken`: a picture by name that cannot be read."""

    name: str
    split: Split | None = None
    pixels: np.ndarray | None = None
    reason: str | None = None
    note: str | None = None
    broken: bool = False


def gather(folder: Path, split: Split, *, most: int, prepare: Callable[[np.ndarray], np.ndarray]) -> Gathered:
    """Up to `most` pictures of one split, in the order of their names.

    Looking stops once `most` are found and 64 files were seen, so that a large folder is not decoded whole. `prepare`
    turns full pixels into what is kept, or raises DataError with the reason to leave this picture out.

    Raises:
        DataError: the folder is missing, is a file, has no pictures, or more than half of those looked at are broken.
    """
    entries = _entries(folder)
    kept: list[Picture] = []
    skipped: list[SkippedFile] = []
    notes: list[str] = []
    pictures = broken = seen = 0
    for look in _looks(entries):
        seen += 1
        pictures += look.broken or look.pixels is not None
        broken += look.broken
        picture, reason = _prepared(look, split, prepare) if len(kept) < most else (None, look.reason)
        if reason is not None:
            skipped.append(SkippedFile(name=look.name, reason=reason))
        if picture is not None:
            kept.append(picture)
            notes += [f"{look.name}: {look.note}"] if look.note else []
        if len(kept) >= most and seen >= LOOKED_AT_LEAST:
            break
    if pictures == 0:
        raise DataError(f"{folder} has no pictures; give a folder with pictures in it (PNG, JPEG, WebP, TIFF, ...)")
    if 2 * broken > pictures:
        raise DataError(f"{broken} of {pictures} pictures in {folder} cannot be read: {named(tuple(skipped))}")
    if seen < len(entries):
        notes.append(f"the first {seen} of {len(entries)} files in {folder.name} were looked at")
    return Gathered(pictures=tuple(kept), skipped=tuple(skipped), notes=tuple(notes))


def named(skipped: tuple[SkippedFile, ...]) -> str:
    """The first few skipped files with their reasons, and how many more there are."""
    text = "; ".join(f"{file.name} ({file.reason})" for file in skipped[:NAMED])
    return text if len(skipped) <= NAMED else f"{text}; and {len(skipped) - NAMED} more"


def split_of(data: bytes) -> Split:
    """The split that a file with these bytes belongs to."""
    return "evaluation" if hashlib.sha256(data).digest()[0] < EVALUATION_BELOW else "calibration"


def _prepared(
    look: _Looked, split: Split, prepare: Callable[[np.ndarray], np.ndarray]
) -> tuple[Picture | None, str | None]:
    if look.pixels is None or look.split != split:
        return None, look.reason
    try:
        return Picture(name=look.name, pixels=prepare(look.pixels)), None
    except DataError as error:
        return None, str(error)


def _entries(folder: Path) -> list[Path]:
    if not folder.exists():
        raise DataError(
            f"no folder {folder}; give an existing folder of pictures, or 'photographs' for the built-in ones"
        )
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; give the folder that holds the pictures")
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}; make it readable or give another folder") from error
    if not entries:
        raise DataError(f"{folder} is empty; give a folder with pictures in it")
    return entries


def _looks(entries: list[Path]) -> Iterator[_Looked]:
    first_with: dict[bytes, str] = {}
    Image.init()
    suffixes = {*Image.registered_extensions(), ".heic", ".heif", ".avif"}
    for path in entries:
        if path.name.startswith("."):
            yield _Looked(name=path.name, reason="hidden file")
        elif path.is_dir():
            yield _Looked(name=path.name, reason="a folder; pictures are not looked for below it")
        elif path.exists() and not path.is_file():
            yield _Looked(name=path.name, reason="not a regular file")
        else:
            yield _look_at(path, first_with, path.suffix.lower() in suffixes)


def _look_at(path: Path, first_with: dict[bytes, str], is_picture_by_name: bool) -> _Looked:
    try:
        data = path.read_bytes()
    except OSError as error:
        return _Looked(name=path.name, reason=f"cannot be read: {error.strerror}", broken=is_picture_by_name)
    first = first_with.setdefault(hashlib.sha256(data).digest(), path.name) if data else path.name
    if first != path.name:
        return _Looked(name=path.name, reason=f"same bytes as {first}")
    try:
        decoded = decode(data)
    except DataError as error:
        return _Looked(name=path.name, reason=str(error), broken=is_picture_by_name)
    return _Looked(name=path.name, split=split_of(data), pixels=decoded.pixels, note=decoded.note)
