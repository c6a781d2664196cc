"""The zoo's index and cards: what is listed, under which digests, and the names that may be.

    <zoo>/index.json            what there is: every file of every entry with its SHA-256 and size
    <zoo>/<entry name>/         artifact files, recipe.yaml, verdicts.json, card.json, README.md (made from card.json)
    <zoo>/<entry name>/samples/ inputs with the outputs that the artifacts gave (safetensors), preview.png

The same entry gives the same bytes: no clock, no machine, sorted keys.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from compress.errors import UserError
from compress.schema import Schema

SCHEMA = 1
INDEX = "index.json"
WRITTEN = ("card.json", "README.md", "recipe.yaml", "verdicts.json", INDEX)  # names that no artifact may take


class File(Schema):
    """One file of an entry."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    bytes: int = Field(ge=0)


class Indexed(Schema):
    """One entry, as the index lists it."""

    component: str
    licence: str
    tools: dict[str, str]  # package -> version
    files: dict[str, File]
    summary: dict[str, int | float | str]


class CardSample(Schema):
    """An input with the output that a file gave, and the tolerances for another machine."""

    file: str
    format: str
    tensors: str
    max_difference: float | None = None
    min_psnr_db: float | None = None
    min_sqnr_db: float | None = None

    @property
    def decibels(self) -> tuple[float, ...]:
        """The limits that are ratios."""
        return tuple(limit for limit in (self.min_psnr_db, self.min_sqnr_db) if limit is not None)


class DrawnSample(Schema):
    """A prompt with the picture that a bundle's files drew of it, and the tolerance for another machine."""

    prompt: str
    seed: int = Field(ge=0)
    format: str
    picture: str  # a PNG of 8 bits
    min_psnr_db: float

    @property
    def decibels(self) -> tuple[float, ...]:
        """The limits that are ratios."""
        return (self.min_psnr_db,)


class Card(Schema):
    """card.json: everything that is known of an entry."""

    schema_version: Literal[1]
    name: str
    component: str
    licence: str
    tools: dict[str, str]
    files: dict[str, File]
    samples: list[CardSample]
    facts: dict[str, int | float | str]
    verdicts: list[dict[str, Any]]
    preview: str | None
    drawn: tuple[DrawnSample, ...] = ()  # of a bundle, a whole text-to-image model; of a component there are none

    @property
    def is_bundle(self) -> bool:
        """Whether the entry is a whole text-to-image model rather than one component."""
        return bool(self.drawn)

    @property
    def formats(self) -> tuple[str, ...]:
        """What can load its files."""
        return tuple(sorted({sample.format for sample in self.samples} | {sample.format for sample in self.drawn}))

    def record(self) -> dict[str, Any]:
        """What card.json holds; a component's card says nothing of pictures drawn."""
        return self.model_dump(exclude=set() if self.drawn else {"drawn"})


def check_name(name: str, what: str) -> None:
    """Refuse names that could leave the zoo, hide in it, or mean another file elsewhere.

    Raises:
        UserError: the name, and what names look like.
    """
    parts = name.split("/")
    printable = name.isprintable() and "\\" not in name and ":" not in name
    if not printable or any(part == "" or part.startswith(".") or part != part.strip() for part in parts):
        raise UserError(
            f"{what} {name!r} is not allowed: parts separated by '/', each without a leading dot, backslash or colon, "
            "such as 'decoder/d4_w8a8'"
        )


def to_bytes(value: Any) -> bytes:
    """Readable JSON with sorted keys; NaN and Inf are refused."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def digest(path: Path) -> File:
    """SHA-256 and size of a file."""
    with path.open("rb") as stream:
        return File(sha256=hashlib.file_digest(stream, "sha256").hexdigest(), bytes=path.stat().st_size)


def files_below(folder: Path) -> list[str]:
    """Every file and link below a folder."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())


def digests(folder: Path) -> dict[str, File]:
    """Every file of an entry, by its name in it."""
    return {name: digest(folder / name) for name in files_below(folder)}


def write_index(zoo: Path, index: Mapping[str, Indexed]) -> None:
    """Replace the index."""
    entries = {name: listed.model_dump() for name, listed in index.items()}
    beside = zoo / f".{INDEX}.{os.getpid()}.part"
    try:
        beside.write_bytes(to_bytes({"schema": SCHEMA, "entries": entries}))
        beside.replace(zoo / INDEX)
    finally:
        beside.unlink(missing_ok=True)


def read_index(zoo: Path) -> dict[str, Indexed]:
    """Every entry of a zoo.

    Raises:
        UserError: there is no zoo, its index is damaged or of a newer version, or holds a name that is not allowed.
    """
    path = zoo / INDEX
    if not path.is_file():
        raise UserError(f"{zoo}: no zoo here (no {INDEX}); give a zoo's folder, or make one with mdcompress zoo add")
    return parse_index(path.read_bytes(), str(path))


def parse_index(content: bytes, where: str) -> dict[str, Indexed]:
    """Every entry of an index that was read from `where`.

    Raises:
        UserError: as `read_index`.
    """
    try:
        raw = json.loads(content)
        version = raw["schema"]
        if isinstance(version, int) and version > SCHEMA:
            raise UserError(f"{where}: schema {version} is newer than {SCHEMA}, the newest known: update mdcompress")
        index = TypeAdapter(dict[str, Indexed]).validate_python(raw["entries"], strict=True)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: damaged index ({error}); fetch it again, or add the entries again") from error
    for name, listed in index.items():
        check_name(name, f"{where}: entry name")
        for file in listed.files:
            check_name(file, f"{where}: file name")
    return index


def listed_entry(index: Mapping[str, Indexed], name: str, zoo: Path | str) -> Indexed:
    """One entry of an index.

    Raises:
        UserError: there is none of that name; names those that are near.
    """
    if name not in index:
        near = difflib.get_close_matches(name, index, n=2) or sorted(index)
        raise UserError(f"{zoo}: no entry {name!r}; there are: {', '.join(near) or 'none'}")
    return index[name]


def read_card(folder: Path) -> Card:
    """The card of an entry's folder.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Card.model_validate_json((folder / "card.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{folder / 'card.json'}: cannot be read ({error}); fetch or add the entry again") from error
