"""How often a text-to-image model draws what was asked: nearest neighbours among the captioned pictures.

    python scripts/score_t2i.py runs/t2i --pictures FOLDER [--phrases held-out] [--steps 20] [--guidance 3] --out score.json

For each of --prompts pictures, spread over the folder at random, one caption is drawn from templates that training never
saw (or, with --phrases training, from those it did). The score is the share of pictures whose own original is among
the 10 nearest of the folder (eval/neighbours.py states the distance). Beside score.json, score.png shows the samples.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from calibration.captions import TEMPLATES, caption, read_captions, render
from compress import components
from compress.components import find, load_variant
from compress.files import write_json
from compress.sampling.generator import Generated, Way, generate, read_settings
from compress.sampling.modules import from_modules
from eval.neighbours import ranks


def as_images(pixels: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255


def sheet(images: np.ndarray, columns: int) -> Image.Image:
    """Pictures [n, 3, h, w] in rows of `columns`."""
    pixels = (images.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    blank = np.full((-len(pixels) % columns, *pixels.shape[1:]), 255, np.uint8)
    rows = np.concatenate([pixels, blank]).reshape(-1, columns, *pixels.shape[1:])
    return Image.fromarray(rows.transpose(0, 2, 1, 3, 4).reshape(-1, columns * pixels.shape[2], 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder with unet/, text_encoder/ and the three settings files")
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--decoder", default="md-tiny/decoder")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--phrases", choices=sorted(TEMPLATES), default="held-out")
    parser.add_argument("--solver", choices=["dpm_solver", "ddim"], default="dpm_solver")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--bfloat16", action="store_true", help="faster, a little coarser")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    pictures = read_captions(arguments.pictures)
    rng = np.random.default_rng(arguments.seed)
    chosen = np.sort(rng.permutation(len(pictures))[: arguments.prompts])
    prompts = [caption(pictures[i], rng, templates=TEMPLATES[arguments.phrases]) for i in chosen]
    settings = read_settings(arguments.model)
    text_encoder, unet = (load_variant(find(p, arguments.model)).module for p in ("text_encoder", "unet"))
    networks = from_modules(
        text_encoder,
        unet,
        components.load(arguments.decoder),
        settings,
        pixels=arguments.size,
        bfloat16=arguments.bfloat16,
    )
    started, found = time.monotonic(), []
    for begin in range(0, len(prompts), 25):
        way = Way(
            solver=arguments.solver,
            steps=arguments.steps,
            guidance=arguments.guidance,
            seed=arguments.seed + begin,
        )
        made: Generated = generate(prompts[begin : begin + 25], networks, settings, way)
        found.append(made.images)
    images = np.concatenate(found)
    seconds = time.monotonic() - started
    gallery = as_images([render(arguments.pictures / p.file, size=arguments.size) for p in pictures])
    places = ranks(torch.from_numpy(images), gallery, torch.from_numpy(chosen))
    row = {
        "prompts": len(prompts),
        "gallery": len(pictures),
        "phrases": arguments.phrases,
        "solver": arguments.solver,
        "steps": arguments.steps,
        "guidance": arguments.guidance,
        "bfloat16": arguments.bfloat16,
        "among_10_nearest": float((places < 10).float().mean()),
        "nearest": float((places < 1).float().mean()),
        "median_place": float(places.float().median()),
        "seconds": round(seconds, 1),
    }
    each = [
        {"prompt": t, "file": pictures[i].file, "place": int(p)}
        for t, i, p in zip(prompts, chosen, places, strict=True)
    ]
    write_json(arguments.out, row | {"each": each})
    sheet(images, 20).save(arguments.out.with_suffix(".png"))
    print(row)


if __name__ == "__main__":
    main()
