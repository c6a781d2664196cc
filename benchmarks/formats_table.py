"""Rows that benchmarks/formats.py measured, kept as JSON lines, and the table that is made of them.

A row is of one recipe in one format; one whose format is empty is of a recipe that made no file at all. The last row of
a kind counts. What a recipe said and which weights it began with is kept as a digest: a row of other ones is not shown.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.components import find
from compress.files import sha256
from compress.recipe import Recipe, digest
from compress.store import key_of

Row = dict[str, Any]
HEADS = {
    "recipe": "recipe",
    "format": "format",
    "bytes": "bytes",
    "parity": "parity, dB",
    "lpips": "LPIPS",
    "latency": "latency ratio",
    "ms": "ms",
    "partitions": "partitions",
    "outcome": "gates",
}
OPENING = """# Every recipe in every format

Made by `scripts/readme_table.py --formats ROWS` of rows that `benchmarks/formats.py --out ROWS` measured. Parity is of the file in its
runtime to the variant in torch, on the worst sample: PSNR of pictures, SQNR of other tensors. LPIPS is the mean to the photographs,
or to what is drawn with the uncompressed network. Latency is over the float teacher's file in the same runtime, and in milliseconds, on
{hosts}; where it is empty, gates on it were left out. A gate that failed is named with its value and its limit:
such a file does not enter a zoo. Limits are the recipe's, set for its own format. A file of a few milliseconds differs from itself by up
to 5 %, by where a load puts it (docs/latency.md).
"""
PLACES = {"parity": 1, "lpips": 4, "latency": 3, "ms": 1}
WHOLE = ""  # the format of a row that is of the recipe as a whole


def read(path: Path) -> list[Row]:
    """The rows that count, in the order in which they were measured."""
    rows: dict[tuple[str, str], Row] = {}
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for row in map(json.loads, text.splitlines()):
        name, form = row["recipe"], row["format"]
        others = [key for key in rows if key[0] == name and (form == WHOLE or key[1] in (WHOLE, form))]
        for key in others:
            del rows[key]
        rows[name, form] = row
    return list(rows.values())


def append(path: Path, row: Row) -> None:
    """One row more, written at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, sort_keys=True, allow_nan=False) + "\n")


def subject(recipe: Recipe) -> str:
    """The digest of what is measured: the recipe, and the preset's weights where it has any."""
    folder = find(recipe.component)
    files = [path for name in ("arch.json", "weights.safetensors") if (path := folder / name).is_file()]
    return key_of({"recipe": digest(recipe), "files": [sha256(path) for path in files]})


def current(rows: Iterable[Row], digests: Mapping[str, str]) -> list[Row]:
    """Those of recipes that still say what they said, by recipe and format."""
    kept = [row for row in rows if row["digest"] == digests.get(row["recipe"])]
    return sorted(kept, key=lambda row: (row["recipe"], row["format"]))


def done(row: Row | None, digest: str, *, timed: bool) -> bool:
    """Whether a row need not be measured again: same recipe, and timed if it is to be."""
    if row is None or row["digest"] != digest:
        return False
    return row["timed"] or not timed or row.get("bytes") is None


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    head = [line(HEADS), "|" + "---|" * len(HEADS)]
    return "\n".join([*head, *(line({key: shown(row, key) for key in HEADS}) for row in rows)])


def shown(row: Row, key: str) -> str:
    """One cell."""
    value = row.get(key)
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.{PLACES[key]}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def line(cells: Mapping[str, str]) -> str:
    return "| " + " | ".join(cells[key].replace("|", "/") for key in HEADS) + " |"


def document(rows: Sequence[Row], names: Iterable[str]) -> str:
    """docs/formats.md: for each component the files, and what was not made with the reason."""
    hosts = sorted(
        {f"{row['host']}, threads: {row['threads']}" for row in rows if isinstance(row.get("latency"), float)}
    )
    lines = [OPENING.format(hosts="; ".join(hosts) or "no host yet")]
    lines += [said, ""] if (said := not_run(rows, names)) else []
    for part in sorted({row["recipe"].partition("/")[0] for row in rows}):
        mine = [row for row in rows if row["recipe"].partition("/")[0] == part]
        files = [row for row in mine if row.get("bytes") is not None]
        lines += [f"## {part}", "", *([markdown(files), ""] if files else []), *_not_made(mine)]
    return "\n".join(lines).rstrip() + "\n"


def _not_made(rows: Sequence[Row]) -> list[str]:
    """Why there is no file, said once for all formats that it is true of."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.get("bytes") is None:
            reasons.setdefault((row["recipe"], row["outcome"]), []).append(row["format"] or "any")
    table = [f"| {name} | {', '.join(forms)} | {why.replace('|', '/')} |" for (name, why), forms in reasons.items()]
    return ["| no file of | in | because |", "|---|---|---|", *table, ""] if table else []


def not_run(rows: Sequence[Row], names: Iterable[str]) -> str:
    """A sentence of the recipes that no row is of; empty where there is none."""
    missing = sorted(set(names) - {row["recipe"] for row in rows})
    return f"Not run: {', '.join(f'`{name}`' for name in missing)}." if missing else ""
