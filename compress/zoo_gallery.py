"""A zoo as a static site: cards with pictures, trade-off plots with filters, a page and the files of every entry.

    <site>/index.html                   all entries
    <site>/entries/<name>/index.html    the model card of one
    <site>/zoo/                         the zoo itself, every listed file and nothing else: it can be pulled from

Every link is relative, so the site works from a disk as it does from a server; it reads without JavaScript, which only
filters and sorts. The same zoo gives the same bytes. A site is built beside its place and renamed into it.
"""

import os
import shutil
from pathlib import Path

from compress.errors import UserError
from compress.files import read_json, write_json, write_text
from compress.gallery_pages import Shown, entry_page, front_page
from compress.zoo_index import INDEX, Indexed, digest, read_card, read_index

MARKER = "gallery.json"  # says that a folder is a site of ours, which may be replaced
MADE = {"made_by": "mdcompress zoo gallery", "schema": 1}


def gallery(zoo: Path, site: Path, *, title: str = "Model zoo") -> Path:
    """Write the site of a zoo; one that was there is replaced as a whole.

    Args:
        zoo: The zoo's folder.
        site: Where the site goes.
        title: What the site is called.

    Raises:
        UserError: there is no zoo, a file of it is not the one that its index lists, or `site` is something else.
    """
    index = read_index(zoo)
    _check_place(zoo, site)
    beside = site.absolute().parent / f".{site.absolute().name}.{os.getpid()}.part"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        _build(zoo, index, beside, title)
        _move(beside, site)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return site / "index.html"


def _check_place(zoo: Path, site: Path) -> None:
    ours, theirs = site.resolve(), zoo.resolve()
    if ours == theirs or ours in theirs.parents or theirs in ours.parents:
        raise UserError(f"{site}: the site and the zoo {zoo} would lie in one another; choose another --out")
    if not site.exists():
        return
    marker = site / MARKER
    made = site.is_dir() and marker.is_file() and read_json(marker) == MADE
    if not made and (not site.is_dir() or any(site.iterdir())):
        raise UserError(f"{site} exists and is no gallery (no {MARKER}); choose another --out, or delete it")


def _build(zoo: Path, index: dict[str, Indexed], site: Path, title: str) -> None:
    for name, listed in sorted(index.items()):
        for file in sorted(listed.files):
            _copy(zoo / name / file, site / "zoo" / name / file, listed, file)
    (site / "zoo").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(zoo / INDEX, site / "zoo" / INDEX)
    shown = [_shown(site / "zoo", name, listed) for name, listed in sorted(index.items())]
    write_text(site / "index.html", front_page(shown, title))
    for one in shown:
        write_text(site / "entries" / one.name / "index.html", entry_page(one, title))
    write_json(site / MARKER, MADE)


def _copy(source: Path, target: Path, listed: Indexed, file: str) -> None:
    """Copy one file and hold the copy to its digest."""
    damaged = UserError(f"{source} is not the file that the index lists; see: mdcompress zoo verify")
    if source.is_symlink() or not source.is_file():
        raise damaged
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    if digest(target) != listed.files[file]:
        raise damaged


def _shown(zoo: Path, name: str, listed: Indexed) -> Shown:
    for needed in ("card.json", "recipe.yaml"):
        if needed not in listed.files:
            raise UserError(f"{zoo.parent.name}: entry {name} lists no {needed}; add it again")
    card = read_card(zoo / name)
    return Shown(
        name=name,
        card=card,
        recipe=(zoo / name / "recipe.yaml").read_text(encoding="utf-8", errors="replace"),
        files=dict(sorted(listed.files.items())),
        preview=_picture_size(zoo / name, card.preview, listed),
    )


def _picture_size(folder: Path, preview: str | None, listed: Indexed) -> tuple[str, int, int] | None:
    """The preview with its width and height; None where there is none, or where it is no picture."""
    from PIL import Image, UnidentifiedImageError

    if preview is None or preview not in listed.files:
        return None
    try:
        with Image.open(folder / preview) as image:
            return preview, *image.size
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None


def _move(new: Path, site: Path) -> None:
    """Rename `new` to `site`; what was there goes last."""
    old = new.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if site.exists():
        site.rename(old)
    new.rename(site)
    shutil.rmtree(old, ignore_errors=True)
