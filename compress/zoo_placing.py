"""How an entry comes into a zoo: built in a hidden folder beside its place, renamed into it, then listed.

Killed in between, `verify` names what is not listed, and doing it again completes it. One writer at a time.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from compress.errors import UserError
from compress.zoo_index import INDEX, Indexed, check_name, digests, files_below, read_card, read_index, write_index

ARCHIVE = "archive"  # where replaced entries are kept: archive/<entry name>/<number>


@contextmanager
def beside(zoo: Path, name: str) -> Iterator[Path]:
    """A hidden folder's name beside the place of an entry; whatever is left of it is deleted at the end."""
    check_name(name, "entry name")
    place = zoo / name
    folder = place.parent / f".{place.name}.{os.getpid()}.part"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settle(zoo: Path, name: str, folder: Path, *, replace: bool, keep_old: bool = False) -> tuple[Path, Path | None]:
    """Rename a finished entry into its place and list it; the same bytes again change nothing.

    Args:
        zoo: the zoo's folder; made if it is not there.
        name: of the entry.
        folder: the entry's files, on the same disk as the zoo.
        replace: whether an entry of other content makes room.
        keep_old: whether the entry that makes room is kept, as archive/<name>/<number>.

    Returns:
        The entry's place, and where the entry that made room is now.

    Raises:
        UserError: the place is taken, or lies in another entry.
    """
    index = read_index(zoo) if (zoo / INDEX).is_file() else {}
    _refuse_nesting(name, index)
    place, listed, kept = zoo / name, listing(folder), None
    if not place.exists() or _replaceable(place, listed, replace):
        if keep_old and place.exists():
            kept = _free_place(zoo, name)
            index |= {kept: listing(place)}
            copy_listed(place, zoo / kept)
        _move(folder, place)
    write_index(zoo, index | {name: listed})
    return place, None if kept is None else zoo / kept


def copy_listed(source: Path, target: Path) -> None:
    """Every plain file of an entry; links are not followed and not copied.

    Raises:
        UserError: a link is among them.
    """
    for file in files_below(source):
        if (source / file).is_symlink():
            raise UserError(f"{source / file}: is a link; an entry has plain files only")
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)


def listing(folder: Path) -> Indexed:
    """An entry's line in the index, from its files.

    Raises:
        UserError: its card cannot be read.
    """
    card = read_card(folder)
    return Indexed(
        component=card.component, licence=card.licence, tools=card.tools, files=digests(folder), summary=card.facts
    )


def _free_place(zoo: Path, name: str) -> str:
    number = 1
    while (zoo / ARCHIVE / name / str(number)).exists():
        number += 1
    return f"{ARCHIVE}/{name}/{number}"


def _refuse_nesting(name: str, index: Mapping[str, Indexed]) -> None:
    for other in index:
        if other.startswith(f"{name}/") or name.startswith(f"{other}/"):
            raise UserError(f"entry {name!r} and entry {other!r} would lie in one another; choose another name")


def _replaceable(place: Path, listed: Indexed, replace: bool) -> bool:
    """Whether what is there must make room; false where it is the same."""
    if not (place / "card.json").is_file():
        raise UserError(f"{place}: is there and is no zoo entry (no card.json); move it away, or choose another name")
    if digests(place) == listed.files:
        return False
    if not replace:
        raise UserError(f"{place}: an entry with other content is there; choose another name, or replace it")
    return True


def _move(new: Path, place: Path) -> None:
    """Rename `new` to `place`; what was there goes last."""
    old = new.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
