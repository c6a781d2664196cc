"""What a diffusion UNet works on: noisy latents, time steps over the whole schedule, hidden states of captions.

Latents are those of photographs where the family has an encoder, or with `source: captions` those that the UNet itself
makes of captions; hidden states are those of its text encoder. What a family does not have is drawn at random, and
said. Of n samples each has its own n-th part of the schedule, so that neither calibration nor evaluation is of one kind
of time step; as many are kept as the recipe says, whatever the steps.

Source: time-step-aware calibration as in PTQ4DM (Shang et al. 2022, arXiv:2211.15736) and Q-Diffusion (Li et al. 2023,
arXiv:2302.04304).
Differs: latents are noised from clean ones as in training, not taken on the network's own way through the steps; time
steps are uniform.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from calibration import images
from calibration.folder import Split
from calibration.prompts import CAPTIONS, PromptSet
from compress.components._unet_config import UNetConfig
from compress.components.unet import PATCH, TOKENS
from compress.errors import UserError
from compress.feeds import ITSELF, Load, Source, _pairs, _schedule, _tokens
from compress.feeds._captions import captions_of, load_captions, of_pictures
from compress.feeds.pictures import photographs
from compress.files import sha256
from compress.nn.batches import outputs
from compress.records import Arch, Feed, Inputs, Samples
from compress.sampling import ddim
from compress.sampling import latents as scales
from compress.sampling.guidance import guided
from compress.sampling.schedule import signal_shares, timesteps
from compress.store import key_of
from compress.written import Drawn

COMPANIONS = ()
OPTIONAL = ("encoder", "text_encoder")
UNCONDITIONAL_EVERY = 4  # guidance calls the UNet without text half the time, but always with the same states
STREAMS: Mapping[Split, int] = {"calibration": 1, "evaluation": 2}  # of random numbers
TRAINING, OWN = 3, 4
STEPS, GUIDANCE = 10, 3.0  # of latents that the UNet makes of captions
SAMPLED_AT_ONCE = 8


def check(arch: Arch, companions: Mapping[str, Arch]) -> None:
    """Refuse an encoder or a text encoder whose outputs the UNet does not take.

    Raises:
        UserError: both sizes, and what to do.
    """
    problems = []
    encoder, text = companions.get("encoder"), companions.get("text_encoder")
    if encoder is not None and encoder.config.latent_channels != arch.config.in_channels:
        channels = encoder.config.latent_channels
        problems.append(f"the encoder makes {channels} channels, the UNet takes {arch.config.in_channels}")
    if text is not None and arch.config.added is None and text.config.width != arch.config.context_width:
        problems.append(f"the text encoder's states have {text.config.width} channels, not {arch.config.context_width}")
    if problems:
        raise UserError(f"{'; '.join(problems)}: give the UNet's own folder alone to draw these inputs at random")


def digests(source: Source) -> dict[str, str]:
    """SHA-256 of photographs, captions, schedule and scale, by what they are for; weights are in the teacher's key."""
    beside = {path.name: sha256(path) for path in (_schedule.found(source.folder), _scale_file(source)) if path}
    _schedule.read(source.folder)
    _check_captions(source)
    found = {}
    sides: dict[str, Split] = {"calibration": "calibration", "evaluation": "evaluation", "sampler": "calibration"}
    for name, split in sides.items():
        pictures, texts = "none", "none"
        if _shows_pictures(source, split):
            whole = images.sampler(source.data.calibration.source, "calibration") if name == "sampler" else None
            pictures = whole.digest if whole else photographs(source.data, split).digest
        if _reads_captions(source):
            texts = _tokens.digest(source.companions["text_encoder"], captions_of(source.data, split))
        elif _samples(source, split):
            texts = load_captions(source.data, split).digest
        wanted = source.data.calibration if split == "calibration" else source.data.evaluation
        way = _way(source, split)
        drawn = [wanted.count, wanted.size, source.seed, *([] if way is None else [way.steps, way.guidance == 1.0])]
        found[name] = key_of({"pictures": pictures, "captions": texts, "beside": beside, "drawn": drawn})
    pairs = _pairs.digest(source)
    return found if pairs is None else found | {"pairs": pairs}


def notes(source: Source) -> tuple[str, ...]:
    """What is drawn at random, and what is assumed."""
    found = []
    if "encoder" not in source.companions and not _samples(source, "calibration"):
        found.append("no encoder lies beside the UNet: its latents are normal noise at every time step")
    if not _reads_captions(source):
        why = (
            "the two text encoders are not run" if source.arch.config.added else "no text encoder lies beside the UNet"
        )
        found.append(f"{why}: hidden states are normal noise, as after a layer norm")
    elif _tokens.found(source.companions["text_encoder"]) is None:
        found.append(_tokens.DRAWN)
    if _schedule.found(source.folder) is None:
        found.append(_schedule.ASSUMED)
    return tuple(found)


def feed(source: Source, load: Load) -> Feed:
    """Triples of noisy latents, time steps and hidden states; with SDXL's two additional inputs where it has them."""
    made = _Maker(source, load)

    def calibration() -> Inputs:
        return made.of_split("calibration").inputs

    def sample(step: int, batch: int, pixels: int) -> Inputs:
        return made.of_step(step, batch, pixels)

    def evaluation() -> Samples:
        return made.of_split("evaluation")

    return Feed(
        calibration=calibration,
        sample=sample,
        evaluation=evaluation,
        notes=notes(source),
        diffusion=lambda: _pairs.diffusion(source, load),
    )


class _Maker:
    """The parts that make triples, loaded once."""

    def __init__(self, source: Source, load: Load) -> None:
        self.source, self.config = source, source.arch.config
        self.schedule = _schedule.read(source.folder)
        self.shares = signal_shares(self.schedule)
        self.load = load
        self.encoder = load("encoder") if "encoder" in source.companions else None
        self.text = load("text_encoder") if _reads_captions(source) else None
        place = _scale_file(source)
        self.scale = scales.load(place) if place and self.encoder else None

    @cached_property
    def sampler(self) -> images.CropSampler:
        """Photographs to train on."""
        return images.sampler(self.source.data.calibration.source, "calibration")

    @cached_property
    def captions(self) -> PromptSet:
        """Captions to train on."""
        return captions_of(self.source.data, "calibration")

    @cached_property
    def own(self) -> torch.Tensor:
        """Latents that the UNet made of the calibration captions, to train on."""
        texts = load_captions(self.source.data, "calibration").texts
        return self._sampled(texts, self.source.data.calibration.size, np.random.default_rng([self.source.seed, OWN]))

    def of_split(self, split: Split) -> Samples:
        """The samples of one side."""
        data = self.source.data
        wanted = data.calibration if split == "calibration" else data.evaluation
        rng = np.random.default_rng([self.source.seed, STREAMS[split]])
        clean: torch.Tensor | None = None
        if _samples(self.source, split):
            names = texts = load_captions(data, split).texts
            clean = self._sampled(texts, wanted.size, rng)
        else:
            shown = photographs(data, split) if self.encoder else None
            names = shown.names if shown else tuple(f"noise {i}" for i in range(wanted.count))
            clean = self._encoded(shown.images) if shown else None
            texts = of_pictures(data, split, names)
        inputs = self._triples(clean, texts, wanted.size, rng, way=_way(self.source, split))
        named = tuple(f"t={int(t)} {name}" for t, name in zip(inputs[1], names, strict=True))
        return Samples(names=named, inputs=inputs, truth=None, digest=digests(self.source)[split])

    def of_step(self, step: int, batch: int, pixels: int) -> Inputs:
        """Training inputs, the same for the same step."""
        source = self.source
        rng = np.random.default_rng([source.seed, TRAINING, step])
        if _samples(source, "calibration"):
            own = self.own  # of their own size
            chosen = rng.integers(len(own), size=batch)
            captions = load_captions(source.data, "calibration").texts
            return self._triples(own[chosen], [captions[i] for i in chosen], own.shape[-1] * PATCH, rng)
        crops = self.sampler.crops(step, batch, pixels, source.seed) if self.encoder else None
        clean = None if crops is None else self._encoded(crops)
        return self._triples(clean, self.captions.drawn(step, batch, source.seed), pixels, rng)

    def _triples(
        self,
        clean: torch.Tensor | None,
        texts: Sequence[str],
        pixels: int,
        rng: np.random.Generator,
        way: Drawn | None = None,
    ) -> Inputs:
        count, config = len(texts), self.config
        steps = stratified(count, len(self.shares), rng)
        if way is not None:
            steps = timesteps(self.schedule, way.steps)[stratified(count, way.steps, rng)]
        share = _rows(self.shares[steps])
        noise = _normal(rng, (count, config.in_channels, pixels // PATCH, pixels // PATCH))
        clean = _normal(rng, tuple(noise.shape)) if clean is None else clean
        noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
        context = self._context(texts, rng, guided=way is None or way.guidance != 1.0)
        return (noisy, torch.from_numpy(steps.astype(np.float32)), context, *added_inputs(config, count, pixels, rng))

    def _sampled(self, texts: Sequence[str], pixels: int, rng: np.random.Generator) -> torch.Tensor:
        """Latents of captions, by the UNet itself."""
        unet, states = self.load(ITSELF), self._states([*texts, ""])
        given = torch.cat([states[:-1], states[-1:].expand(len(texts), -1, -1)])
        start = _normal(rng, (len(texts), self.config.in_channels, pixels // PATCH, pixels // PATCH))

        def predict(sample: torch.Tensor, step: int) -> torch.Tensor:
            twice = torch.cat([sample, sample])
            both = outputs(unet, (twice, torch.full((len(twice),), float(step)), given), SAMPLED_AT_ONCE)
            return cast("torch.Tensor", guided(both[: len(sample)], both[len(sample) :], GUIDANCE))

        made = ddim.solve(predict, start, self.schedule, STEPS)
        return cast("torch.Tensor", scales.require_finite(made, "sampling from captions for calibration"))

    def _encoded(self, pictures: torch.Tensor) -> torch.Tensor:
        assert self.encoder is not None
        latents = outputs(self.encoder, (pictures,))
        return latents if self.scale is None else self.scale.normalised(latents)

    def _context(self, texts: Sequence[str], rng: np.random.Generator, *, guided: bool) -> torch.Tensor:
        if self.text is None:
            return _normal(rng, (len(texts), TOKENS, self.config.context_width))
        empty = range(UNCONDITIONAL_EVERY - 1, len(texts), UNCONDITIONAL_EVERY) if guided else ()
        return self._states(["" if i in empty else text for i, text in enumerate(texts)])

    def _states(self, texts: Sequence[str]) -> torch.Tensor:
        assert self.text is not None
        config: Any = self.text.config
        return outputs(self.text, (_tokens.ids(self.source.companions["text_encoder"], config, texts),))


def stratified(count: int, steps: int, rng: np.random.Generator) -> np.ndarray:
    """`count` time steps of `steps`, one in each equal part of the schedule, in random order."""
    places = (np.arange(count) + rng.uniform(0, 1, count)) * (steps / count)
    return rng.permutation(np.minimum(places.astype(np.int64), steps - 1))


def added_inputs(config: UNetConfig, count: int, pixels: int, rng: np.random.Generator) -> Inputs:
    """SDXL's pooled text states, at random, and its sizes: the picture, uncropped."""
    if config.added is None:
        return ()
    sizes = torch.tensor([pixels, pixels, 0, 0, pixels, pixels], dtype=torch.float32)
    sizes = torch.nn.functional.pad(sizes, (0, max(0, config.added.numbers - 6)))[: config.added.numbers]
    return _normal(rng, (count, config.added.pooled)), sizes.repeat(count, 1)


def _reads_captions(source: Source) -> bool:
    return "text_encoder" in source.companions and source.arch.config.added is None


def _shows_pictures(source: Source, split: Split) -> bool:
    return "encoder" in source.companions and not _samples(source, split)


def _samples(source: Source, split: Split) -> bool:
    """Whether the UNet makes its own latents, of captions."""
    wanted = source.data.calibration if split == "calibration" else source.data.evaluation
    return wanted.source == CAPTIONS or Path(wanted.source).expanduser().is_file()


def _way(source: Source, split: Split) -> Drawn | None:
    """How the UNet samples, where it is evaluated for that alone."""
    drawn = source.data.drawn
    return None if drawn is None or split != "evaluation" or drawn.evaluated_at == "schedule" else drawn


def _check_captions(source: Source) -> None:
    if not _reads_captions(source) and (_samples(source, "calibration") or _samples(source, "evaluation")):
        raise UserError(
            "a UNet makes latents of captions with the text encoder of its family, which is not there; give a "
            "checkpoint that has one, or data of pictures (source: photographs)"
        )


def _scale_file(source: Source) -> Path | None:
    """latents.json in the family's folder or the UNet's own: how the UNet's latents differ from the encoder's."""
    places = (source.folder.parent / "latents.json", source.folder / "latents.json")
    return next((place for place in places if place.is_file()), None)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def _rows(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).view(-1, 1, 1, 1)
