"""How often a text-to-image model draws what was asked: nearest neighbours among the captioned pictures.

    python scripts/score_t2i.py runs/t2i --pictures FOLDER [--phrases held-out] [--steps 20] [--guidance 3] --out score.json
        [--unet runs/unet] [--text-encoder FILE] [--decoder FILE]

The model is a folder or preset as `mdcompress generate` takes it, with other parts where they are given. For each of
--prompts pictures, spread over the folder at random, one caption is drawn from templates that training never saw (or,
with --phrases training, from those it did). The score is the share of pictures whose own original is among the 10
nearest of the folder (eval/neighbours.py states the distance). Beside score.json, score.png shows the samples.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from calibration.captions import TEMPLATES, caption, read_captions, render
from compress.files import write_json
from compress.generation import Model, open_model
from compress.sampling.generator import Way, generate
from eval.neighbours import ranks

AT_ONCE = 25  # prompts
NEAREST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiz:
    """Prompts, and the pictures that they ask for among all."""

    prompts: list[str]
    right: np.ndarray  # of each prompt: the number of its picture
    files: list[str]  # of each prompt
    gallery: torch.Tensor  # every picture [m, 3, size, size]


def quiz(folder: Path, *, count: int, phrases: str, seed: int, size: int) -> Quiz:
    """`count` pictures of a captioned folder at random, each with a caption from a random template."""
    pictures = read_captions(folder)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(pictures))[:count])
    prompts = [caption(pictures[i], rng, templates=TEMPLATES[phrases]) for i in chosen]
    gallery = as_images([render(folder / p.file, size=size) for p in pictures])
    return Quiz(prompts=prompts, right=chosen, files=[pictures[i].file for i in chosen], gallery=gallery)


def draw_all(prompts: Sequence[str], model: Model, way: Way) -> tuple[np.ndarray, float]:
    """A picture for each prompt, the i-th with seed + i, and the seconds that they took."""
    started, found = time.monotonic(), []
    for begin in range(0, len(prompts), AT_ONCE):
        part = Way(solver=way.solver, steps=way.steps, guidance=way.guidance, seed=way.seed + begin)
        found.append(generate(prompts[begin : begin + AT_ONCE], model.networks, model.settings, part).images)
    return np.concatenate(found), time.monotonic() - started


def places(images: np.ndarray, asked: Quiz) -> np.ndarray:
    """How many pictures of the folder are nearer to each than the one asked for."""
    return ranks(torch.from_numpy(images), asked.gallery, torch.from_numpy(asked.right)).numpy()


def as_images(pixels: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


def sheet(images: np.ndarray, columns: int) -> Image.Image:
    """Pictures [n, 3, h, w] in rows of `columns`."""
    pixels = (images.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    blank = np.full((-len(pixels) % columns, *pixels.shape[1:]), 255, np.uint8)
    rows = np.concatenate([pixels, blank]).reshape(-1, columns, *pixels.shape[1:])
    return Image.fromarray(rows.transpose(0, 2, 1, 3, 4).reshape(-1, columns * pixels.shape[2], 3))


def table_row(columns: Iterable[str], cells: Mapping[str, Any]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(str(cells[name]) for name in columns)} |"


def table_head(columns: Mapping[str, str]) -> list[str]:
    """Its first two lines."""
    return [table_row(columns, columns), table_row(columns, dict.fromkeys(columns, "---"))]


def threads() -> int:
    return max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))


def add_quiz(parser: argparse.ArgumentParser) -> None:
    """What is asked, and how it is drawn where nothing else is said."""
    parser.add_argument("model", help="a folder or preset: the parts and the settings files")
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--phrases", choices=sorted(TEMPLATES), default="held-out")
    parser.add_argument("--decoder", default="md-tiny/decoder")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_quiz(parser)
    parser.add_argument("--text-encoder")
    parser.add_argument("--unet")
    parser.add_argument("--solver", choices=["dpm_solver", "ddim"], default="dpm_solver")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()

    asked = quiz(given.pictures, count=given.prompts, phrases=given.phrases, seed=given.seed, size=given.size)
    parts = {"text_encoder": given.text_encoder, "unet": given.unet, "decoder": given.decoder}
    model = open_model(given.model, parts, pixels=given.size, threads=threads())
    way = Way(solver=given.solver, steps=given.steps, guidance=given.guidance, seed=given.seed)
    images, seconds = draw_all(asked.prompts, model, way)
    found = places(images, asked)
    row: dict[str, Any] = {name: getattr(given, name) for name in ("phrases", "solver", "steps", "guidance", "seed")}
    row |= {
        "parts": dict(model.parts),
        "prompts": len(asked.prompts),
        "gallery": len(asked.gallery),
        "among_10_nearest": float((found < NEAREST).mean()),
        "nearest": float((found < 1).mean()),
        "median_place": float(np.median(found)),
        "seconds": round(seconds, 1),
    }
    each = [
        {"prompt": text, "file": file, "place": int(place)}
        for text, file, place in zip(asked.prompts, asked.files, found, strict=True)
    ]
    write_json(given.out, row | {"each": each})
    sheet(images, 20).save(given.out.with_suffix(".png"))
    print(row)


if __name__ == "__main__":
    main()
