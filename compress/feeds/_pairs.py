"""Pictures with their own captions, as step distillation takes them: clean latents and the states that belong to them.

Of a captioned folder they are all its pictures, on white, each with a caption from a random training template: what
the model was trained on, the evaluation's pictures included, because a text-to-image model is judged on words that it
did not see, not on pictures. Without captions they are the calibration set's, `count` of them. Each is encoded once.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from calibration.captions import TEMPLATES, Captioned, caption, read_captions, render
from compress.feeds import Load, Source, _schedule, _tokens
from compress.feeds._captions import has_table, of_pictures
from compress.feeds.pictures import photographs
from compress.files import sha256
from compress.nn.batches import outputs
from compress.records import Diffusion, Inputs
from compress.sampling import latents as scales
from compress.sampling import schedule
from compress.store import key_of
from compress.written import Data

STREAM = 4  # of random numbers
ENCODED_AT_ONCE = 16


def diffusion(source: Source, load: Load) -> Diffusion | None:
    """The noise schedule, pairs and empty text of a UNet; None where its family lacks a part of them."""
    family = source.folder.parent
    place, scale = family / "scheduler.json", family / "latents.json"
    companions = {"encoder", "text_encoder"} <= set(source.companions)
    if not companions or _schedule.found(source.folder) != place or not scale.is_file():
        return None
    if _tokens.found(source.companions["text_encoder"]) is None or source.arch.config.added is not None:
        return None
    pairs = _Pairs(source, load)
    return Diffusion(schedule=schedule.load(place), clean=pairs.drawn, empty=pairs.states([""]))


def digest(source: Source) -> str | None:
    """Of all files that pairs are made of, where they are more than the calibration set."""
    written = source.data.calibration.source
    if not has_table(written):
        return None
    folder = Path(written).expanduser()
    return key_of({entry.file: [entry.name, sha256(folder / entry.file)] for entry in read_captions(folder)})


class Shown(Protocol):
    """Pictures with captions."""

    def images(self, pixels: int) -> torch.Tensor:
        """All of them [n, 3, pixels, pixels]."""

    def texts(self, rows: Sequence[int], rng: np.random.Generator) -> tuple[str, ...]:
        """A caption for each."""


class _Pairs:
    def __init__(self, source: Source, load: Load) -> None:
        self.source = source
        self.encoder, self.text = load("encoder"), load("text_encoder")
        self.scale = scales.load(source.folder.parent / "latents.json")
        self.encoded: dict[int, torch.Tensor] = {}
        written = source.data.calibration.source
        self.shown: Shown = _Folder(Path(written).expanduser()) if has_table(written) else _Photographs(source.data)

    def drawn(self, step: int, batch: int, pixels: int) -> Inputs:
        """Latents [batch, z, h, w] and states of pictures drawn by the seed and the step."""
        rng = np.random.default_rng([self.source.seed, STREAM, step])
        latents = self.latents(pixels)
        rows = rng.integers(len(latents), size=batch)
        return latents[torch.from_numpy(rows)], *self.states(self.shown.texts(rows.tolist(), rng))

    def latents(self, pixels: int) -> torch.Tensor:
        """Of every picture, at this size, as the UNet sees them."""
        if pixels not in self.encoded:
            found = outputs(self.encoder, (self.shown.images(pixels),), ENCODED_AT_ONCE)
            self.encoded[pixels] = self.scale.normalised(found)
        return self.encoded[pixels]

    def states(self, texts: Sequence[str]) -> Inputs:
        """The text encoder's states of some texts."""
        folder = self.source.companions["text_encoder"]
        config = self.text.config
        return (outputs(self.text, (_tokens.ids(folder, config, texts),), ENCODED_AT_ONCE),)  # type: ignore[arg-type]


class _Folder:
    """All pictures of a captioned folder, on white, under captions from training templates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: tuple[Captioned, ...] = read_captions(folder)

    def images(self, pixels: int) -> torch.Tensor:
        found = np.stack([render(self.folder / entry.file, size=pixels) for entry in self.entries])
        return torch.from_numpy(found).permute(0, 3, 1, 2).float() / 255

    def texts(self, rows: Sequence[int], rng: np.random.Generator) -> tuple[str, ...]:
        return tuple(caption(self.entries[row], rng, templates=TEMPLATES["training"]) for row in rows)


class _Photographs:
    """The calibration set's pictures with what captions there are."""

    def __init__(self, data: Data) -> None:
        self.data = data

    @cached_property
    def found(self) -> tuple[torch.Tensor, tuple[str, ...]]:
        found = photographs(self.data, "calibration")
        return found.images, of_pictures(self.data, "calibration", found.names)

    def images(self, pixels: int) -> torch.Tensor:
        shown, _ = self.found
        if shown.shape[-1] != pixels:
            shown = torch.nn.functional.interpolate(shown, size=(pixels, pixels), mode="bilinear", antialias=True)
        return shown.clamp(0, 1)

    def texts(self, rows: Sequence[int], rng: np.random.Generator) -> tuple[str, ...]:
        _, captions = self.found
        return tuple(captions[row] for row in rows)
