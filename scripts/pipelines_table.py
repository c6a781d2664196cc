"""Whole models side by side, each drawn in its own way: what runs, UNet calls, bytes, seconds, how often it is right.

    python scripts/pipelines_table.py md-tiny zoo/md-tiny/w8a8 zoo/md-tiny/s1_w8a8 --pictures FOLDER
        [--prompts 200] [--markdown FILE] [--json FILE]

A model is a preset, a bundle of a zoo, or any folder that `mdcompress generate --model` takes; its sampling.json says how
it is drawn. Bytes are those of the three files, or of a preset's weights as they are stored. Seconds are the median over
prompts drawn one at a time on this machine. Right: own picture among the 10 nearest of the folder, as in
scripts/score_t2i.py, once with phrases that training had and once with others. scripts/readme_table.py --pipelines FILE
puts the table into README.md.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from score_t2i import NEAREST, places, quiz, table_head, table_row, threads

from compress.bundle_parts import chosen
from compress.generation import Model, model_folder, open_model
from compress.sampling.generator import Way
from compress.sampling.series import draw_each
from eval.metrics import latency

COLUMNS = {
    "model": "model",
    "runs": "runs in",
    "calls": "UNet calls",
    "bytes": "three files, MB",
    "seconds": "s per picture",
    "training": "right, phrases of training",
    "held-out": "right, other phrases",
}


def row(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One line of the table."""
    folder = model_folder(name)
    parts = chosen(folder, {})
    model = open_model(
        name, {leaf: str(part.place) for leaf, part in parts.parts.items()}, pixels=None, threads=threads()
    )
    usual = model.usual
    found: dict[str, Any] = {
        "model": "/".join(folder.parts[-2:]) if (folder / "card.json").is_file() else folder.name,
        "runs": next(iter(model.parts.values())).partition(",")[0],
        "calls": usual.steps * (1 if usual.guidance == 1.0 else 2),
        "bytes": f"{sum(_weights(part.place) for part in parts.parts.values()) / 1e6:.2f}",
    }
    seconds: list[float] = []
    for phrases in ("training", "held-out"):
        share, took = right(model, phrases, given)
        found[phrases] = f"{100 * share:.1f} %"
        seconds += took
    return found | {"seconds": f"{statistics.median(seconds):.2f}"}


def right(model: Model, phrases: str, given: argparse.Namespace) -> tuple[float, tuple[float, ...]]:
    """The share of prompts whose own picture is among the nearest, and the seconds of each."""
    usual = model.usual
    asked = quiz(given.pictures, count=given.prompts, phrases=phrases, seed=given.seed, size=usual.pixels)
    way = Way(solver=usual.solver, steps=usual.steps, guidance=usual.guidance, seed=given.seed)
    drawn = draw_each(asked.prompts, model.networks, model.settings, way)
    if drawn.broken:
        raise SystemExit(f"{len(drawn.broken)} pictures are not finite: {drawn.broken[0]}")
    return float((places(drawn.images, asked) < NEAREST).mean()), drawn.seconds


def _weights(place: Path) -> int:
    """Bytes of a file, a folder that is one artifact, or a variant's weights."""
    if (place / "weights.safetensors").is_file():
        return (place / "weights.safetensors").stat().st_size
    return sum(p.stat().st_size for p in ([place] if place.is_file() else place.rglob("*")) if p.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    for name in ("markdown", "json"):
        parser.add_argument(f"--{name}", type=Path)
    given = parser.parse_args()
    rows, lines = [], table_head(COLUMNS)
    print(*lines, sep="\n")
    for name in given.models:
        rows.append(row(name, given))
        lines.append(table_row(COLUMNS, rows[-1]))
        print(lines[-1], flush=True)
    host = f"{given.prompts} prompts of each kind, on {latency.host()}, {threads()} of them used."
    if given.markdown:
        given.markdown.write_text("\n".join([*lines, "", host]) + "\n", encoding="utf-8")
    if given.json:
        given.json.write_text(json.dumps({"host": host, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
