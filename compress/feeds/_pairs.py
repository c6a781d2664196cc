"""Pictures with their own captions, as step distillation takes them: clean latents and the states that belong to them.

The pictures are the calibration set's, `count` of them, encoded once; each step draws some of them.
"""

from functools import cached_property

import numpy as np
import torch

from compress.feeds import Load, Source, _schedule, _tokens
from compress.feeds._captions import of_pictures
from compress.feeds.pictures import photographs
from compress.nn.batches import outputs
from compress.records import Diffusion, Inputs
from compress.sampling import latents as scales
from compress.sampling import schedule

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


class _Pairs:
    def __init__(self, source: Source, load: Load) -> None:
        self.source = source
        self.encoder, self.text = load("encoder"), load("text_encoder")
        self.scale = scales.load(source.folder.parent / "latents.json")
        self.encoded: dict[int, torch.Tensor] = {}

    def drawn(self, step: int, batch: int, pixels: int) -> Inputs:
        """Latents [batch, z, h, w] and states of pictures drawn by the seed and the step."""
        rows = np.random.default_rng([self.source.seed, STREAM, step]).integers(len(self.pictures), size=batch)
        chosen = torch.from_numpy(rows)
        return self.latents(pixels)[chosen], self.contexts[chosen]

    def latents(self, pixels: int) -> torch.Tensor:
        """Of every picture, at this size, as the UNet sees them."""
        if pixels not in self.encoded:
            shown = self.pictures
            if shown.shape[-1] != pixels:
                shown = torch.nn.functional.interpolate(shown, size=(pixels, pixels), mode="bilinear", antialias=True)
            found = outputs(self.encoder, (shown.clamp(0, 1),), ENCODED_AT_ONCE)
            self.encoded[pixels] = self.scale.normalised(found)
        return self.encoded[pixels]

    @cached_property
    def pictures(self) -> torch.Tensor:
        return photographs(self.source.data, "calibration").images

    @cached_property
    def contexts(self) -> torch.Tensor:
        names = photographs(self.source.data, "calibration").names
        return self.states(of_pictures(self.source.data, "calibration", names))[0]

    def states(self, texts: tuple[str, ...] | list[str]) -> Inputs:
        """The text encoder's states of some texts."""
        folder = self.source.companions["text_encoder"]
        config = self.text.config
        return (outputs(self.text, (_tokens.ids(folder, config, texts),), ENCODED_AT_ONCE),)  # type: ignore[arg-type]
