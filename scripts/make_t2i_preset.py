"""Turn a run of train_t2i.py into a preset's text encoder and UNet: weights, settings, and a card with what was measured.

    python scripts/make_t2i_preset.py runs/t2i --name md-tiny --pictures FOLDER --scores held-out.json training.json

Scores are files of scripts/score_t2i.py. The card's grid shows prompts spread evenly over the folder, none of them chosen,
each drawn once; those that the score counts as missed are listed beneath it.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from score_t2i import NEAREST, Quiz, as_images, draw_all, places, sheet, threads

from calibration.captions import read_captions, render
from compress.files import write_atomically, write_bytes, write_text
from compress.generation import OWN_SETTINGS, open_model
from compress.sampling.generator import Way

PRESETS = Path(__file__).resolve().parent.parent / "compress" / "components" / "presets"
PARTS = ("text_encoder", "unet")
COLUMNS, ROWS = 8, 6
GRID_PIXELS = 96  # of each picture on the card


def copy(run: Path, folder: Path) -> None:
    """Weights, architectures and settings."""
    for part in PARTS:
        for name in ("arch.json", "weights.safetensors"):
            write_bytes(folder / part / name, (run / part / name).read_bytes())
    for name in OWN_SETTINGS:
        write_bytes(folder / name, (run / name).read_bytes())


def grid(folder: Path, pictures: Path, size: int, out: Path) -> tuple[list[str], list[str]]:
    """Draw names spread over the folder; the prompts, and those whose own picture is not among the nearest."""
    every = read_captions(pictures)
    chosen = np.linspace(3, len(every) - 4, COLUMNS * ROWS).astype(int)
    gallery = as_images([render(pictures / p.file, size=size) for p in every])
    names = [every[i].name for i in chosen]
    asked = Quiz(prompts=names, right=chosen, files=[every[i].file for i in chosen], gallery=gallery)
    model = open_model(str(folder), {}, pixels=size, threads=threads())
    usual = model.usual
    images, _ = draw_all(names, model, Way(solver=usual.solver, steps=usual.steps, guidance=usual.guidance))
    missed = [name for name, place in zip(names, places(images, asked), strict=True) if place >= NEAREST]
    small = torch.nn.functional.interpolate(torch.from_numpy(images), size=GRID_PIXELS, mode="bilinear", antialias=True)
    picture = sheet(small.numpy(), COLUMNS)
    write_atomically(out, lambda place: picture.save(place, format="jpeg", quality=90))
    return names, missed


def card(name: str, log: list[dict], scores: list[dict], names: list[str], missed: list[str]) -> str:
    """README.md of the UNet."""
    first, last = ([row for row in log if key in row][-1] for key in ("parameters", "epoch"))
    steps = max(row["step"] for row in log if "step" in row)
    epochs = last["epoch"] * steps / last["step"]
    counts, rows = first["parameters"], [names[i : i + COLUMNS] for i in range(0, len(names), COLUMNS)]
    table = [
        f"| {s['phrases']} | {s['solver']}, {s['steps']}, guidance {s['guidance']:g} | {100 * s['among_10_nearest']:.1f} % "
        f"| {100 * s['nearest']:.1f} % | {s['median_place']:g} |"
        for s in scores
    ]
    return "\n".join(
        [
            "---",
            "license: apache-2.0",
            "tags: [mdcompress, text-to-image, latent-diffusion]",
            "---",
            "",
            f"# {name}: text encoder and UNet",
            "",
            f"MobileDiffusion's shape with 1/90 of its parameters, for pictures of 128 pixels: UNet {counts['unet']:,} "
            f"parameters, text encoder",
            f"{counts['text_encoder']:,}, both stored in float16. Trained together by `scripts/train_t2i.py` on "
            f"{first['pictures']:,} Noto emoji (Apache-2.0) with their names",
            f"and keywords: {steps:,} steps, {epochs:.0f} times over the pictures; weights are the running average.",
            "",
            "![samples](samples.jpg)",
            "",
            f"Names spread evenly over the set, none chosen, each drawn once ({len(names) - len(missed)} of "
            f"{len(names)} have their own picture among the {NEAREST} nearest):",
            "",
            *(f"{number}. {', '.join(row)}" for number, row in enumerate(rows, start=1)),
            "",
            f"Missed: {', '.join(missed) or 'none'}.",
            "",
            f"How often the picture that was asked for is among the {NEAREST} nearest of all {scores[0]['gallery']:,} "
            f"(eval/neighbours.py), {scores[0]['prompts']} prompts:",
            "",
            f"| phrases | sampled by | among the {NEAREST} nearest | the nearest | median place |",
            "|---|---|---|---|---|",
            *table,
            "",
            "It draws emoji and nothing else, and knows the words of their captions alone. Made to be compressed, in "
            "demonstrations and tests.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default="md-tiny")
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--scores", type=Path, nargs="+", required=True)
    parser.add_argument("--size", type=int, default=128)
    given = parser.parse_args()
    folder = PRESETS / given.name
    copy(given.run, folder)
    names, missed = grid(folder, given.pictures, given.size, folder / "unet" / "samples.jpg")
    log = [json.loads(line) for line in (given.run / "log.jsonl").read_text().splitlines()]
    scores = [json.loads(path.read_text()) for path in given.scores]
    text = card(given.name, log, scores, names, missed)
    write_text(folder / "unet" / "README.md", text)
    print(text)


if __name__ == "__main__":
    main()
