"""Many prompts, one after the other: pictures, the latents after every step, seconds, and what was not finite."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from compress.sampling.generator import Networks, Settings, Way, generate
from compress.sampling.latents import NotFinite
from compress.sampling.parts import PATCH


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """What was drawn, prompt by prompt."""

    images: Float[np.ndarray, "n 3 height width"]  # in [0, 1]; NaN where a prediction or a latent was not finite
    latents: Float[np.ndarray, "n steps z h w"]  # after each step, in the UNet's scale; NaN likewise
    seconds: tuple[float, ...]  # of the pictures that could be drawn
    broken: tuple[str, ...]  # what was said of those that could not
    notes: tuple[str, ...]


def draw_each(
    prompts: Sequence[str],
    networks: Networks,
    settings: Settings,
    way: Way,
    told: Callable[[int, str], None] = lambda index, prompt: None,
) -> Series:
    """One picture per prompt, the i-th with seed + i; `told` hears of each before it is drawn.

    Raises:
        UserError: as `generate`, but for what is not finite.
    """
    z, height, width = networks.latent_shape
    images, latents, seconds, broken, notes = [], [], [], [], []
    for index, prompt in enumerate(prompts):
        told(index, prompt)
        begun, seen = time.perf_counter(), list[np.ndarray]()
        try:
            here = replace(way, seed=way.seed + index)
            made = generate([prompt], networks, settings, here, watch=seen.append)
        except NotFinite as error:
            broken.append(f"'{prompt}': {error}")
            images.append(np.full((1, 3, height * PATCH, width * PATCH), math.nan, np.float32))
            latents.append(np.full((1, way.steps, z, height, width), math.nan, np.float32))
            continue
        seconds.append(time.perf_counter() - begun)
        images.append(made.images.astype(np.float32, copy=False))
        latents.append(np.stack(seen[1:], axis=1).astype(np.float32))
        notes += [note.replace("prompt 1", f"prompt {index + 1}") for note in made.notes]
    return Series(
        images=np.concatenate(images),
        latents=np.concatenate(latents),
        seconds=tuple(seconds),
        broken=tuple(broken),
        notes=tuple(notes),
    )
