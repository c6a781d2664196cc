"""From prompts to pictures: tokenizer, text encoder, UNet with guidance in a solver's loop, decoder.

The networks are callables on NumPy arrays, so the same loop runs torch modules (compress/sampling/modules.py) and
exported files. Cost: `steps` UNet calls per picture, twice that with guidance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from compress.errors import UserError
from compress.sampling import ddim, dpm_solver, latents, schedule, tokenizer
from compress.sampling.guidance import guided
from compress.sampling.latents import LatentScale, require_finite
from compress.sampling.schedule import Schedule
from compress.sampling.tokenizer import Tokenizer

Solver = Literal["ddim", "dpm_solver"]
SOLVERS = {"ddim": ddim.solve, "dpm_solver": dpm_solver.solve}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a text-to-image model has beside its networks."""

    tokenizer: Tokenizer
    schedule: Schedule
    scale: LatentScale


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """The three networks, arrays in and out; `most` is the largest batch that they take (None: any)."""

    text_encoder: Callable[[np.ndarray], np.ndarray]  # ids [n, t] to states [n, t, c]
    unet: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # latents, time steps [n], states to a prediction
    decoder: Callable[[np.ndarray], np.ndarray]  # latents to images in [0, 1]
    latent_shape: tuple[int, int, int]
    most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How to sample. One seed per picture: the i-th prompt gets `seed + i`."""

    solver: Solver = "dpm_solver"
    steps: int = 20
    guidance: float = 3.0  # 1: none, and half the work
    rescale: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generated:
    """Pictures in [0, 1], the latents they were decoded from, and what the user should know."""

    images: Float[np.ndarray, "n 3 height width"]
    latents: Float[np.ndarray, "n z h w"]
    notes: tuple[str, ...]


def read_settings(folder: Path) -> Settings:
    """tokenizer.json, scheduler.json and latents.json of a folder.

    Raises:
        UserError: one of them is missing or not what it should be.
    """
    return Settings(
        tokenizer=tokenizer.load(folder / "tokenizer.json"),
        schedule=schedule.load(folder / "scheduler.json"),
        scale=latents.load(folder / "latents.json"),
    )


def generate(
    prompts: Sequence[str],
    networks: Networks,
    settings: Settings,
    way: Way,
    *,
    watch: Callable[[np.ndarray], None] = lambda sample: None,
) -> Generated:
    """One picture per prompt; `watch` is shown the latents before each step and at the end, in the UNet's scale.

    Raises:
        UserError: no prompt, a setting out of range, networks and settings that do not belong together, or latents that
            are not finite.
    """
    _check(prompts, networks, settings, way)
    encoded = settings.tokenizer.encode([*prompts, ""])
    states = _in_parts(networks.text_encoder, networks.most, encoded.ids)
    with_text, without = states[:-1], np.repeat(states[-1:], len(prompts), axis=0)
    predict = _prediction(networks, with_text, without, way, watch)
    start = latents.noise(networks.latent_shape, [way.seed + i for i in range(len(prompts))])
    found = SOLVERS[way.solver](predict, start, settings.schedule, way.steps)
    watch(found)
    found = np.asarray(settings.scale.restored(found), dtype=np.float32)
    images = require_finite(_in_parts(networks.decoder, networks.most, found), "decoder")
    return Generated(images=images, latents=found, notes=_notes(prompts, encoded.cut[:-1], settings.tokenizer))


def _prediction(
    networks: Networks, with_text: np.ndarray, without: np.ndarray, way: Way, watch: Callable[[np.ndarray], None]
) -> Callable[[np.ndarray, int], np.ndarray]:
    """The UNet with guidance, as a solver calls it."""

    def unet(sample: np.ndarray, step: int, states: np.ndarray) -> np.ndarray:
        times = np.full(len(sample), step, dtype=np.float32)
        found = _in_parts(networks.unet, networks.most, sample, times, states)
        return require_finite(found, f"UNet, time step {step}", count=len(with_text))

    def predict(sample: np.ndarray, step: int) -> np.ndarray:
        sample = sample.astype(np.float32, copy=False)
        watch(sample)
        if way.guidance == 1.0:
            return unet(sample, step, with_text)
        both = unet(np.concatenate([sample, sample]), step, np.concatenate([with_text, without]))
        return guided(both[: len(sample)], both[len(sample) :], way.guidance, rescale=way.rescale)

    return predict


def _in_parts(call: Callable[..., np.ndarray], most: int | None, *arrays: np.ndarray) -> np.ndarray:
    if most is None:
        return call(*arrays)
    parts = [call(*(a[i : i + most] for a in arrays)) for i in range(0, len(arrays[0]), most)]
    return np.concatenate(parts)


def _check(prompts: Sequence[str], networks: Networks, settings: Settings, way: Way) -> None:
    problems = []
    if not prompts:
        problems.append("no prompt; give at least one")
    if way.solver not in SOLVERS:
        problems.append(f"no solver '{way.solver}'; known: {', '.join(SOLVERS)}")
    if not np.isfinite(way.guidance) or way.guidance < 0:
        problems.append(f"guidance {way.guidance}: a number from 0, 1 is none, 2 to 8 are usual")
    if not 0 <= way.rescale <= 1:
        problems.append(f"rescale {way.rescale}: from 0 to 1")
    if way.seed < 0:
        problems.append(f"seed {way.seed}: 0 or more")
    if networks.latent_shape[0] != len(settings.scale.mean):
        problems.append(
            f"the UNet has {networks.latent_shape[0]} latent channels, latents.json {len(settings.scale.mean)}: they "
            "are not from one training"
        )
    if problems:
        raise UserError("; ".join(problems))


def _notes(prompts: Sequence[str], cut: Sequence[str], words: Tokenizer) -> tuple[str, ...]:
    notes = []
    for number, (prompt, rest) in enumerate(zip(prompts, cut, strict=True), start=1):
        if rest:
            notes.append(f"prompt {number} is longer than {words.length - 2} tokens; left out: '{rest}'")
        if not prompt.strip():
            notes.append(f"prompt {number} is empty: a picture of nothing in particular")
        strange = words.unknown(prompt)
        if strange:
            notes.append(f"prompt {number} has characters that training never had: {strange}")
    return tuple(notes)
