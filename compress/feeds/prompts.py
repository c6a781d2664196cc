"""What a text encoder reads: captions as token ids."""

from collections.abc import Mapping

import torch

from calibration import prompts
from compress.feeds import Load, Source
from compress.feeds._captions import load_captions
from compress.feeds._tokens import DRAWN, digest, found, ids
from compress.records import Arch, Feed, Inputs, Samples

COMPANIONS = ()
OPTIONAL = ()
SHOWN = 60  # characters of a caption that name a sample


def check(arch: Arch, companions: Mapping[str, Arch]) -> None:
    """Nothing else is needed."""


def digests(source: Source) -> dict[str, str]:
    """SHA-256 of captions and tokenizer, by what they are for; the tokenizer is tried out.

    Raises:
        UserError: it is not this text encoder's.
    """
    sets = {
        "calibration": load_captions(source.data, "calibration"),
        "sampler": prompts.every(source.data.calibration.source, "calibration"),
        "evaluation": load_captions(source.data, "evaluation"),
    }
    _ids(source, sets["evaluation"].texts[:1])
    return {name: digest(source.folder, chosen) for name, chosen in sets.items()}


def notes(source: Source) -> tuple[str, ...]:
    """What the ids are where there is no tokenizer."""
    return () if found(source.folder) else (DRAWN,)


def feed(source: Source, load: Load) -> Feed:
    """Captions; for training they are drawn by the seed and the step."""
    every = prompts.every(source.data.calibration.source, "calibration")

    def calibration() -> Inputs:
        return (_ids(source, load_captions(source.data, "calibration").texts),)

    def sample(step: int, batch: int, pixels: int) -> Inputs:
        return (_ids(source, every.drawn(step, batch, source.seed)),)

    def evaluation() -> Samples:
        chosen = load_captions(source.data, "evaluation")
        names = tuple(text if len(text) <= SHOWN else f"{text[:SHOWN]}..." for text in chosen.texts)
        rows = _ids(source, chosen.texts)
        return Samples(names=names, inputs=(rows,), truth=None, digest=digest(source.folder, chosen))

    return Feed(calibration=calibration, sample=sample, evaluation=evaluation, notes=notes(source))


def _ids(source: Source, texts: tuple[str, ...]) -> torch.Tensor:
    return ids(source.folder, source.arch.config, texts)
