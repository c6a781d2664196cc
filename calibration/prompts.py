"""Captions for calibration, evaluation and training: built in, a captioned folder, or a text file of one a line.

`captions` are put together from a subject, what it does or where it is, and a style: no download. A subject is on one
side only. Somebody's own captions are on a side by their text (first byte of its SHA-256, as for pictures). A PromptSet
says by digest what it holds.
"""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.captions import TABLES, read_captions
from calibration.errors import DataError
from calibration.folder import Split, split_of

CAPTIONS = "captions"

SUBJECTS = (
    "a cat", "a red heart", "an old sailing ship", "two children", "a slice of pizza", "a mountain lake",
    "an astronaut",
    "a steam locomotive", "a bowl of fruit", "a sleeping dog", "a lighthouse", "a woman with grey hair", "a bicycle",
    "a castle", "a hummingbird", "a cup of coffee", "a city street", "a wooden chair", "a snowman", "three tulips",
    "a robot", "a vintage car", "a waterfall", "a man with a hat", "a glass bottle", "an owl", "a birthday cake",
    "a spiral staircase", "a fishing village", "a violin", "a tiger", "a desert road", "a pair of shoes", "a library",
    "a hot air balloon", "a smiling face",
)  # fmt: skip
DETAILS = (
    "", "in the rain", "at sunset", "on a white background", "in front of a blue wall", "seen from above",
    "covered with snow", "with long shadows", "in a crowded market", "next to a window", "reflected in still water",
    "on a table made of dark wood, with a candle and an open book beside it",
)  # fmt: skip
STYLES = (
    "", "a photograph of", "an oil painting of", "a pencil drawing of", "a cartoon of", "a low-poly 3D render of",
    "a highly detailed studio photograph, sharp focus, soft light, of",
)  # fmt: skip
EVALUATION_EVERY = 3  # of the subjects, as of pictures, a third is for evaluation
ORDER = 0  # seed of the order of the built-in captions


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """Captions in order, and a digest of them."""

    texts: tuple[str, ...]
    digest: str

    def drawn(self, step: int, batch: int, seed: int) -> tuple[str, ...]:
        """Some of them at random, the same for the same (seed, step)."""
        chosen = np.random.default_rng([seed, step]).integers(len(self.texts), size=batch)
        return tuple(self.texts[int(index)] for index in chosen)


def load(source: str, *, split: Split, count: int) -> PromptSet:
    """`count` captions of one side of a source.

    Args:
        source: "captions", a folder with captions.tsv or captions.json, or a text file with one caption a line.
        split: "calibration" or "evaluation"; no caption is on both.
        count: How many.

    Raises:
        DataError: too few captions, or the source cannot be read.
    """
    texts = every(source, split).texts
    if len(texts) < count:
        raise DataError(
            f"{source} has {len(texts)} captions for {split}, {count} asked; lower the count or add captions"
        )
    return _set(texts[:count])


def every(source: str, split: Split) -> PromptSet:
    """All captions of one side.

    Raises:
        DataError: there are none, or the source cannot be read.
    """
    if source == CAPTIONS:
        return _set(_built_in(split))
    found = tuple(text for text in _own(Path(source).expanduser()) if split_of(text.encode()) == split)
    if not found:
        raise DataError(f"{source} has no caption for {split}; add captions")
    return _set(found)


def _built_in(split: Split) -> tuple[str, ...]:
    wanted = split == "evaluation"
    subjects = [s for i, s in enumerate(SUBJECTS) if (i % EVALUATION_EVERY == 0) == wanted]
    texts = [" ".join(filter(None, parts)) for parts in itertools.product(STYLES, subjects, DETAILS)]
    return tuple(texts[int(index)] for index in np.random.default_rng(ORDER).permutation(len(texts)))


def _own(path: Path) -> tuple[str, ...]:
    """The captions of a folder or a file, each once, in their order."""
    if path.is_dir():
        return tuple(dict.fromkeys(entry.name for entry in read_captions(path)))
    if not path.is_file():
        raise DataError(
            f"no captions at {path}; give '{CAPTIONS}' for the built-in ones, a folder with {' or '.join(TABLES)}, or "
            "a text file with one caption a line"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text, one caption a line: {error}") from error
    return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _set(texts: tuple[str, ...]) -> PromptSet:
    return PromptSet(texts=texts, digest=hashlib.sha256("\0".join(texts).encode()).hexdigest())
