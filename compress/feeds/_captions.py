"""Captions for pictures: a captioned folder's own, those of the project's photographs, or built-in ones."""

from collections.abc import Sequence
from pathlib import Path

from calibration import prompts
from calibration.captions import TABLES, read_captions
from calibration.folder import Split
from calibration.images import PHOTOGRAPHS
from compress.written import Data

OF_PHOTOGRAPHS = {
    "chelsea": "a photograph of a tabby cat looking up",
    "flower": "a photograph of a pink flower in front of dark leaves",
    "motorcycle_left": "a photograph of a motorcycle in a garage",
    "rocket": "a photograph of a rocket on its launch pad at night",
    "ihc": "a microscope picture of stained tissue in brown and blue",
    "astronaut": "a photograph of a smiling astronaut in an orange suit",
    "china": "a photograph of a Chinese pavilion by a lake",
    "coffee": "a photograph of a cup of coffee on a wooden table",
}


def captions_of(data: Data, split: Split) -> prompts.PromptSet:
    """All captions of one side: a captioned folder's, a text file's, or the built-in ones."""
    wanted = data.calibration if split == "calibration" else data.evaluation
    return prompts.every(wanted.source if has_captions(wanted.source) else prompts.CAPTIONS, split)


def load_captions(data: Data, split: Split) -> prompts.PromptSet:
    """As many captions of one side as the data asks for, where captions are its source."""
    wanted = data.calibration if split == "calibration" else data.evaluation
    return prompts.load(wanted.source, split=split, count=wanted.count)


def of_pictures(data: Data, split: Split, names: Sequence[str]) -> tuple[str, ...]:
    """A caption for each picture by its name; pictures that have none get others in turn."""
    wanted = data.calibration if split == "calibration" else data.evaluation
    known = OF_PHOTOGRAPHS if wanted.source == PHOTOGRAPHS else {}
    if has_table(wanted.source):
        known = {entry.file: entry.name for entry in read_captions(Path(wanted.source).expanduser())}
    others = captions_of(data, split).texts
    return tuple(known.get(name.split("@")[0], others[i % len(others)]) for i, name in enumerate(names))


def has_captions(source: str) -> bool:
    """Whether a source has captions of its own: a captioned folder, or a text file."""
    return has_table(source) or (source != PHOTOGRAPHS and Path(source).expanduser().is_file())


def has_table(source: str) -> bool:
    """Whether a source is a captioned folder."""
    return source != PHOTOGRAPHS and any((Path(source).expanduser() / name).is_file() for name in TABLES)
