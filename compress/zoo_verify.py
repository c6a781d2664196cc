"""Check a zoo: every digest, files that nobody listed, and every sample run again in its own runtime."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from compress.errors import MissingExtra, UserError
from compress.nn.batches import unnamed
from compress.zoo_index import (
    INDEX,
    Card,
    CardSample,
    DrawnSample,
    File,
    Indexed,
    digest,
    files_below,
    listed_entry,
    read_card,
    read_index,
)
from compress.zoo_samples import Limits, difference, limits_of

TOP_FILES = (INDEX, "index.html", "README.md")

Load = Callable[..., Callable[..., torch.Tensor]]  # load(path, threads=1), as exporters have it
Draw = Callable[[str, int], np.ndarray]  # a prompt and a seed to a picture [3, h, w] in [0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What verifying one file found; `problem` is empty where it is as listed."""

    entry: str
    file: str
    ok: bool
    problem: str = ""
    missing: bool = False  # nothing is known: the runtime is not installed, `problem` is the pip command


def verify(
    zoo: Path,
    name: str | None = None,
    *,
    runner: Callable[[str], Load],
    drawer: Callable[[Path], Draw] | None = None,
) -> tuple[Check, ...]:
    """Check digests, look for files that are not listed, and run the samples again.

    Args:
        zoo: the zoo's folder.
        name: one entry, or None for all of them.
        runner: format name -> that exporter's `load`.
        drawer: a bundle's folder -> what draws by it; None: pictures are not drawn again, which is a failed check.

    Raises:
        UserError: there is no zoo or no such entry, or the index cannot be read.
    """
    index = read_index(zoo)
    chosen = index if name is None else {name: listed_entry(index, name, zoo)}
    checks = [] if name is not None else _strays(zoo, index)
    for entry_name, listed in sorted(chosen.items()):
        files = [_file_check(zoo, entry_name, file, expected) for file, expected in sorted(listed.files.items())]
        checks += files
        extra = [file for file in files_below(zoo / entry_name) if file not in listed.files]
        checks += [Check(entry=entry_name, file=f, ok=False, problem=f"is not listed in {INDEX}") for f in extra]
        checks += _sample_checks(zoo / entry_name, entry_name, {c.file for c in files if c.ok}, runner, drawer)
    return tuple(checks)


def _file_check(zoo: Path, entry: str, file: str, expected: File) -> Check:
    path, problem = zoo / entry / file, ""
    if path.is_symlink() or not path.is_file():
        problem = "is missing, or is not a plain file"
    elif (found := digest(path)) != expected:
        problem = f"is not the listed file: {found.bytes} bytes for {expected.bytes}, another SHA-256; fetch it again"
    return Check(entry=entry, file=file, ok=problem == "", problem=problem)


def _strays(zoo: Path, index: Mapping[str, Indexed]) -> list[Check]:
    """Files outside of all entries: an add that was cut off, or somebody's own."""
    problem = "belongs to no listed entry: add that entry again, or delete the file"
    files = [f for f in files_below(zoo) if f not in TOP_FILES and not any(f.startswith(f"{name}/") for name in index)]
    return [Check(entry="", file=file, ok=False, problem=problem) for file in files]


def _sample_checks(
    folder: Path,
    entry: str,
    intact: set[str],
    runner: Callable[[str], Load],
    drawer: Callable[[Path], Draw] | None,
) -> Iterator[Check]:
    if "card.json" not in intact:
        yield Check(entry=entry, file="samples", ok=False, problem="were not run: card.json is not intact")
        return
    card = read_card(folder)
    for sample in card.samples:
        # a file, or every file of a folder
        needed = {name for name in card.files if name == sample.file or name.startswith(f"{sample.file}/")}
        if not needed or not needed | {sample.tensors} <= intact:
            yield Check(
                entry=entry, file=sample.tensors, ok=False, problem=f"not run: it or {sample.file} is not intact"
            )
            continue
        try:
            problem = _sample_problem(folder, sample, runner)
        except MissingExtra as error:
            yield Check(entry=entry, file=sample.tensors, ok=False, missing=True, problem=f"not run: {error}")
        else:
            yield Check(entry=entry, file=sample.tensors, ok=problem == "", problem=problem)
    if card.is_bundle:
        yield from _drawn_checks(folder, entry, card, intact, drawer)


def _sample_problem(folder: Path, sample: CardSample, runner: Callable[[str], Load]) -> str:
    try:
        tensors = load_tensors((folder / sample.tensors).read_bytes())
        found = runner(sample.format)(folder / sample.file, threads=1)(*unnamed(tensors))
    except SafetensorError as error:
        return f"cannot be read: {error}"
    except UserError as error:
        if isinstance(error, MissingExtra):
            raise
        return f"{sample.file} does not run: {error}"
    except ImportError as error:
        return f"not run: what runs {sample.format} is installed and cannot be imported ({error}); install it again"
    expected = tensors["output"]
    misfit = difference(found, expected, limits_of(sample))
    return f"{sample.file} {misfit}" if misfit else ""


def _drawn_checks(
    folder: Path, entry: str, card: Card, intact: set[str], drawer: Callable[[Path], Draw] | None
) -> Iterator[Check]:
    """Every kept picture of a bundle, drawn again by all of its files."""
    damaged = sorted(set(card.files) - intact)
    draw, missing, refused = None, False, ""
    if damaged:
        refused = f"not drawn: {', '.join(damaged)} {'is' if len(damaged) == 1 else 'are'} not intact"
    elif drawer is None:
        refused = "not drawn: nothing was given that draws"
    else:
        try:
            draw = drawer(folder)
        except UserError as error:
            missing, refused = isinstance(error, MissingExtra), f"not drawn: {error}"
    for sample in card.drawn:
        problem = refused
        if draw is not None:
            intact_picture = sample.picture in intact
            problem = _drawn_problem(folder, sample, draw) if intact_picture else "not drawn: it is not intact"
        yield Check(entry=entry, file=sample.picture, ok=problem == "", problem=problem, missing=missing)


def _drawn_problem(folder: Path, sample: DrawnSample, draw: Draw) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(folder / sample.picture) as opened:
            kept = np.asarray(opened.convert("RGB"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        return f"cannot be read: {error}"
    try:
        drawn = draw(sample.prompt, sample.seed)
    except UserError as error:
        return f"is not drawn again: {error}"
    rounded = (drawn.clip(0, 1) * 255).round() / 255  # as the kept one was; NaN stays NaN
    expected = torch.from_numpy(kept.astype(np.float32).transpose(2, 0, 1) / 255)
    limits = Limits(max_difference=None, min_psnr_db=sample.min_psnr_db, min_sqnr_db=None)
    misfit = difference(torch.from_numpy(np.ascontiguousarray(rounded, dtype=np.float32)), expected, limits)
    return f"'{sample.prompt}' with seed {sample.seed} {misfit}" if misfit else ""
