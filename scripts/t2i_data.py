"""What scripts/train_t2i.py draws its batches from: captioned pictures as latents, tokenizer, noise schedule, scale."""

import argparse
import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from score_t2i import as_images

from calibration.captions import (
    BACKGROUNDS,
    PLAIN,
    TEMPLATES,
    Captioned,
    Shown,
    caption,
    keyword_caption,
    read_captions,
    render,
    ways_to_show,
)
from compress import components
from compress.distill._lesson import fast_bfloat16
from compress.files import write_bytes, write_tensors
from compress.sampling import latents as latent_files
from compress.sampling import schedule, tokenizer
from compress.sampling.generator import Settings
from compress.sampling.latents import LatentScale
from compress.sampling.schedule import Schedule, signal_shares


@torch.inference_mode()
def encode_once(
    pictures: tuple[Captioned, ...], ways: list[Shown], arguments: argparse.Namespace, size: int, device: torch.device
) -> torch.Tensor:
    """Latents [ways, z, h, w]; read back when the same pictures went through the same encoder before."""
    encoder = components.load(arguments.encoder)
    digest = hashlib.sha256(repr((ways, size)).encode())
    for picture in pictures:
        digest.update((arguments.pictures / picture.file).read_bytes())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    path = arguments.out / f"latents-{digest.hexdigest()[:16]}.safetensors"
    if path.exists():
        return load_file(path)["latents"].float()
    encoder.to(device)
    found = []
    for begin in range(0, len(ways), 32):
        pixels = [
            render(
                arguments.pictures / pictures[way.picture].file,
                size=size,
                background=way.background,
                mirrored=way.mirrored,
            )
            for way in ways[begin : begin + 32]
        ]
        with torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device.type)):
            found.append(encoder(as_images(pixels).to(device)).cpu().half())
        if begin % 1600 == 0:
            say(arguments.out, {"encoded": begin, "of": len(ways)})
    latents = torch.cat(found)
    write_tensors(path, {"latents": latents})
    return latents.float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Everything a batch is drawn from."""

    pictures: tuple[Captioned, ...]
    ways: list[Shown]
    rows_of: list[list[int]]  # which of the ways show each picture
    latents: torch.Tensor  # of each way, normalised
    settings: Settings
    shares: torch.Tensor  # of every time step
    spec: dict

    def batch(self, step: int) -> tuple[torch.Tensor, ...]:
        """Latents, ids, time steps and noise; depends on seed and step alone, so a resumed run sees the same data."""
        spec, size = self.spec, self.spec["batch"]
        rng = np.random.default_rng([spec["seed"], 1, step])
        rows, texts = [], []
        for picture in self._pictures(step * size, size):
            way = self._way(self.rows_of[picture], rng)
            rows.append(way)
            texts.append(self._text(self.ways[way], rng))
        ids = torch.from_numpy(self.settings.tokenizer.encode(texts).ids)
        spread = (rng.permutation(size) + rng.random(size)) / size  # one time step from each of `size` equal parts
        late = spread ** (1 / spec["towards_noise"])
        steps = torch.from_numpy((late * len(self.shares)).astype(np.int64))
        noise = torch.from_numpy(rng.standard_normal((size, *self.latents.shape[1:]), dtype=np.float32))
        return self.latents[rows], ids, steps, noise

    def _pictures(self, begin: int, count: int) -> list[int]:
        """Every picture once an epoch, in an order of its own."""
        total, found = len(self.pictures), []
        for position in range(begin, begin + count):
            if not found or position % total == 0:
                order = np.random.default_rng([self.spec["seed"], 2, position // total]).permutation(total)
            found.append(int(order[position % total]))
        return found

    def _way(self, of_picture: list[int], rng: np.random.Generator) -> int:
        draw = rng.random(2)
        coloured = [i for i in of_picture if self.ways[i].background != PLAIN]
        mirrored = [i for i in of_picture if self.ways[i].mirrored]
        if draw[0] < self.spec["coloured"] and coloured:
            return coloured[int(rng.integers(len(coloured)))]
        return mirrored[0] if draw[1] < self.spec["mirrored"] and mirrored else of_picture[0]

    def _text(self, way: Shown, rng: np.random.Generator) -> str:
        picture, draw = self.pictures[way.picture], rng.random()
        if draw < self.spec["without_text"]:
            return ""
        if draw < self.spec["without_text"] + self.spec["with_keywords"]:
            return keyword_caption(picture, rng, background=way.background)
        return caption(picture, rng, templates=TEMPLATES["training"], background=way.background)


def make_tokenizer(pictures: tuple[Captioned, ...], spec: dict, path: Path) -> tokenizer.Tokenizer:
    """Trained on every training caption and keyword; read back on a resumed run."""
    if path.exists():
        return tokenizer.load(path)
    colours = [f"on a {name} background" for name in BACKGROUNDS]
    texts = [t.format(name=p.name) for p in pictures for t in TEMPLATES["training"]]
    texts += [", ".join(p.keywords) for p in pictures] + colours
    made = tokenizer.train(
        texts, vocabulary=spec["text_encoder"]["vocabulary"], length=spec["text_encoder"]["positions"]
    )
    made.save(path)
    return made


def scale_of(latents: torch.Tensor, path: Path) -> LatentScale:
    """Mean and deviation of every channel; read back on a resumed run."""
    if path.exists():
        return latent_files.load(path)
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    scale = LatentScale(mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    latent_files.save(scale, path)
    return scale


def folder_of(start: str) -> Path:
    """A folder with both networks and the settings, or the preset family of that name."""
    return Path(start) if Path(start).is_dir() else components.find(f"{start}/unet").parent


def take_settings(start: str, out: Path) -> None:
    for name in ("tokenizer.json", "latents.json"):
        if not (out / name).exists():
            write_bytes(out / name, (folder_of(start) / name).read_bytes())


def prepare(arguments: argparse.Namespace, spec: dict, device: torch.device) -> Data:
    """Captions, tokenizer, schedule and latents; everything but the networks."""
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    pictures = read_captions(arguments.pictures)
    if arguments.start is not None:
        take_settings(arguments.start, out)
    words = make_tokenizer(pictures, spec, out / "tokenizer.json")
    noises = Schedule(**spec["schedule"])
    schedule.save(noises, out / "scheduler.json")
    ways = ways_to_show(
        pictures, seed=spec["seed"], mirrored=spec["mirrored"] > 0, backgrounds=spec["backgrounds_per_picture"]
    )
    latents = encode_once(pictures, ways, arguments, spec["size"], device)
    plain = latents[[i for i, way in enumerate(ways) if way.background == PLAIN]]
    scale = scale_of(plain, out / "latents.json")
    rows_of: list[list[int]] = [[] for _ in pictures]
    for row, way in enumerate(ways):
        rows_of[way.picture].append(row)
    return Data(
        pictures=pictures,
        ways=ways,
        rows_of=rows_of,
        latents=scale.normalised(latents),
        settings=Settings(tokenizer=words, schedule=noises, scale=scale),
        shares=torch.from_numpy(signal_shares(noises)).float(),
        spec=spec,
    )


def say(out: Path, row: dict[str, Any]) -> None:
    row = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **row}
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)
