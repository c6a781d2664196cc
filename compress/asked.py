"""Which pictures the prompts ask for: those of the captioned folder that the prompts are the names of."""

from dataclasses import dataclass
from pathlib import Path

import torch

from calibration.captions import read_captions, render
from compress.errors import UserError
from compress.feeds._captions import has_table
from eval import neighbours

FEWEST = 100  # pictures in a folder; among fewer, one of the 10 nearest is soon found by chance


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """A folder's pictures as they are compared, and which of them each prompt asks for."""

    gallery: torch.Tensor  # [m, 3, 32, 32] in [0, 1]
    right: torch.Tensor  # numbers [n]


def check(source: str) -> None:
    """Refuse a source in which nothing can be asked for.

    Raises:
        UserError: it is no folder of captioned pictures, or a small one.
        DataError: its table cannot be read.
    """
    if not has_table(source):
        raise UserError(
            f"gates: task_score asks whether pictures show what their prompts say, and {source} has no captioned "
            "pictures; give the folder that the model was trained on, with captions.tsv or captions.json: --images "
            "FOLDER"
        )
    count = len(read_captions(Path(source).expanduser()))
    if count < FEWEST:
        raise UserError(
            f"gates: task_score looks among the pictures of {source}, and of {count} the 10 nearest say little; "
            f"{FEWEST} at least are needed"
        )


def load(source: str, prompts: tuple[str, ...], *, size: int) -> Asked:
    """Every picture of a captioned folder on a plain square of `size` pixels, shrunk; the first of each name counts.

    Raises:
        UserError, DataError: as `check`; a picture cannot be read.
    """
    check(source)
    folder = Path(source).expanduser()
    entries = read_captions(folder)
    numbers: dict[str, int] = {}
    shrunk = []
    for number, entry in enumerate(entries):
        numbers.setdefault(entry.name, number)
        pixels = torch.from_numpy(render(folder / entry.file, size=size).copy())
        shrunk.append(neighbours.shrunk(pixels.permute(2, 0, 1)[None].float() / 255))
    return Asked(gallery=torch.cat(shrunk), right=torch.tensor([numbers[prompt] for prompt in prompts]))
