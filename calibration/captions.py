"""Captioned pictures from a folder: which pictures, what they are called, how they look on a plain background.

A folder holds pictures and `captions.tsv` (a header naming the columns, then one row per picture) or `captions.json` (a
list of objects). Columns: `file`, and `name` (with optional `keywords`, separated by `|`) or `caption`.

Captions are drawn from templates, some of which are kept out of training so that an evaluation has phrases that were
never seen. Everything is deterministic: the caller passes the generator.
"""

import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from calibration.decode import UNREADABLE
from calibration.errors import DataError

TABLES = ("captions.tsv", "captions.json")

# Named colours that pictures are put on; pale enough that an outline of any colour stays visible.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "grey": (200, 200, 200),
    "pink": (255, 190, 205),
    "yellow": (255, 240, 150),
    "green": (180, 230, 170),
    "blue": (165, 205, 250),
    "purple": (205, 180, 240),
    "orange": (255, 205, 150),
    "black": (24, 24, 24),
}
PLAIN = "white"  # the background of a caption that names none

TEMPLATES: dict[Literal["training", "held-out"], tuple[str, ...]] = {
    "training": (
        "{name}",
        "{name}",
        "a {name}",
        "the {name}",
        "an emoji of {name}",
        "{name} emoji",
        "a picture of {name}",
        "a picture of a {name}",
        "a drawing of a {name}",
        "an icon showing {name}",
        "{name} icon",
        "a cartoon {name}",
        "one {name}",
        "a big {name}",
        "a cute {name}",
        "the emoji for {name}",
        "draw {name}",
        "draw me the {name}",
        "please draw a {name}",
        "i want a {name}",
        "{name} illustration",
        "an illustration of {name}",
        "{name} symbol",
        "{name}, clip art",
        "clip art of a {name}",
        "an image showing the {name}",
        "image of {name}, flat colours",
        "a simple {name} graphic",
    ),
    "held-out": (
        "an emoji showing a {name}",
        "a drawing of the {name}",
        "picture of {name}, cartoon",
        "show me a {name}",
        "a small {name} sticker",
    ),
}

# A picture whose name or keywords have one of these words means something else, or cannot be read, when mirrored.
ORIENTED = re.compile(
    r"""left|right|facing|arrow|arrows|back|forward|next|previous|east|west|clock|o'clock|time|hour|watch|thirty|letter|
    letters|alphabet|latin|input|keycap|button|number|numbers|digit|symbol|sign|signs|flag|flags|index|mark|word|
    words|text|font|japanese|ideograph|zodiac|note|notes|music|musical|score|moon|quarter|crescent|phase|map|globe|
    world|calendar|date|book|newspaper|page|money|currency|banknote|dollar|euro|pound|yen|chart|graph|medal|place|
    percent|question|math|hundred|id|vs|abc|atm|copyright|registered|trademark|card|cards|mahjong|die|speaker|
    keyboard|curving|clockwise|counterclockwise|anticlockwise|up|down|check|wheelchair|cane|running|walking""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioned:
    """One picture of the folder and what it shows."""

    file: str
    name: str
    keywords: tuple[str, ...] = ()

    @property
    def may_be_mirrored(self) -> bool:
        """Whether left and right may be exchanged without changing what the picture means."""
        text = " ".join((self.name, *self.keywords)).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        words = re.split(r"[^a-z0-9']+", text)
        return not any(ORIENTED.fullmatch(word) or re.search(r"[0-9]", word) for word in words)


def read_captions(folder: Path) -> tuple[Captioned, ...]:
    """Every row of the folder's captions, in order of the file names.

    Raises:
        DataError: no table, a table that cannot be read, a column or a picture that is missing, a file named twice; all
            rows' problems at once.
    """
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if table is None:
        raise DataError(f"{folder} has no {' or '.join(TABLES)}; give a folder of pictures with one of them")
    rows = _rows(table)
    problems: list[str] = []
    found: dict[str, Captioned] = {}
    for number, row in rows:
        where = f"{table.name}:{number}"
        entry, problem = _entry(row, folder)
        if entry is None:
            problems.append(f"{where}: {problem}")
        elif entry.file in found:
            problems.append(f"{where}: {entry.file} is named twice; keep one row")
        else:
            found[entry.file] = entry
    if problems:
        more = f"\n... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise DataError(f"{table}: {len(problems)} rows cannot be used:\n" + "\n".join(problems[:10]) + more)
    if not found:
        raise DataError(f"{table} has no rows; add one per picture")
    return tuple(found[file] for file in sorted(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One way a picture looks in training: its place in the list of pictures, its background, whether mirrored."""

    picture: int
    background: str
    mirrored: bool


def ways_to_show(pictures: tuple[Captioned, ...], *, seed: int, mirrored: bool, backgrounds: int) -> list[Shown]:
    """Each picture plain, mirrored where its meaning allows, and on some of the named colours; others are never seen.

    Which colours depends on the seed and the file's name alone.
    """
    ways = []
    colours = [name for name in BACKGROUNDS if name != PLAIN]
    for index, picture in enumerate(pictures):
        ways.append(Shown(picture=index, background=PLAIN, mirrored=False))
        if mirrored and picture.may_be_mirrored:
            ways.append(Shown(picture=index, background=PLAIN, mirrored=True))
        rng = np.random.default_rng([seed, *picture.file.encode()])
        chosen = rng.permutation(len(colours))[:backgrounds]
        ways += [Shown(picture=index, background=colours[colour], mirrored=False) for colour in chosen]
    return ways


def caption(
    picture: Captioned, rng: np.random.Generator, *, templates: tuple[str, ...], background: str = PLAIN
) -> str:
    """A caption from a random template; names the background unless it is plain."""
    text = templates[int(rng.integers(len(templates)))].format(name=picture.name)
    return on_background(text, background)


def keyword_caption(picture: Captioned, rng: np.random.Generator, *, background: str = PLAIN) -> str:
    """Some of the keywords in random order, half the time behind the name; the name alone where there are none."""
    if not picture.keywords:
        return on_background(picture.name, background)
    count = int(rng.integers(1, min(4, len(picture.keywords)) + 1))
    chosen = [picture.keywords[i] for i in rng.permutation(len(picture.keywords))[:count]]
    parts = [picture.name, *chosen] if rng.integers(2) else chosen
    return on_background(", ".join(parts), background)


def on_background(text: str, background: str) -> str:
    """The caption of a picture on this background."""
    return text if background == PLAIN else f"{text} on a {background} background"


def render(
    path: Path, *, size: int, background: str = PLAIN, mirrored: bool = False
) -> UInt8[np.ndarray, "size size 3"]:
    """The picture, shrunk or enlarged to fit a square of plain background.

    Raises:
        DataError: the file cannot be read as a picture.
    """
    if background not in BACKGROUNDS:
        raise DataError(f"no background '{background}'; known: {', '.join(BACKGROUNDS)}")
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGBA")
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not a picture that Pillow can decode; replace it or remove its row") from error
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read: {error}; replace it or remove its row") from error
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    square = Image.new("RGBA", (size, size), (*BACKGROUNDS[background], 255))
    # Alpha is laid over the background before resampling, so that the colour of invisible pixels never shows.
    backed = Image.new("RGBA", picture.size, (*BACKGROUNDS[background], 255))
    backed.alpha_composite(picture)
    square.paste(backed.resize((width, height), Image.Resampling.BICUBIC), ((size - width) // 2, (size - height) // 2))
    pixels = np.asarray(square.convert("RGB"))
    return np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels


def _rows(table: Path) -> list[tuple[int, Mapping[str, Any]]]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table} cannot be read as UTF-8 text: {error}") from error
    if table.suffix == ".json":
        try:
            listed = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{table} is not valid JSON ({error})") from error
        if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
            raise DataError(f"{table}: a list of objects is needed, each with file, and name or caption")
        return list(enumerate(listed))
    reader = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    columns = reader.fieldnames or []
    if "file" not in columns or not {"name", "caption"} & set(columns):
        raise DataError(f"{table}: columns {list(columns)}; 'file', and 'name' or 'caption' are needed")
    return [(reader.line_num, row) for row in reader]


def _entry(row: Mapping[str, Any], folder: Path) -> tuple[Captioned | None, str]:
    file, name = (str(row.get(key) or "").strip() for key in ("file", "name"))
    name = name or str(row.get("caption") or "").strip()
    if not file or not name:
        return None, "file, and name or caption must not be empty"
    if not (folder / file).is_file():
        return None, f"{file} is not in {folder}"
    given = row.get("keywords") or ""
    keywords = given if isinstance(given, list) else str(given).split("|")
    return Captioned(file=file, name=name, keywords=tuple(str(k).strip() for k in keywords if str(k).strip())), ""
