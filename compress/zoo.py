"""The zoo: a plain directory of variants that passed their gates, with SHA-256 and samples to check them by.

`add` is the only way in for what was made here; `zoo_pull` brings entries of another zoo, `zoo_promote` replaces one.
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from compress import zoo_placing as placing
from compress.errors import UserError
from compress.nn.batches import named
from compress.records import Inputs
from compress.zoo_card import readme
from compress.zoo_index import (
    WRITTEN,
    Card,
    CardSample,
    DrawnSample,
    check_name,
    digests,
    listed_entry,
    read_card,
    read_index,
    to_bytes,
)
from compress.zoo_samples import limits_of

MAX_DIFFERENCE = 2 / 255  # of a sample that is run again, in image units
MIN_PSNR_DB = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An input and what an artifact made of it in its own runtime, with the tolerances for another machine."""

    file: str  # the artifact's name in the entry
    format: str  # the exporter that can load it: "onnx"
    inputs: Inputs
    output: torch.Tensor
    max_difference: float | None = MAX_DIFFERENCE  # of pictures
    min_psnr_db: float | None = MIN_PSNR_DB
    min_sqnr_db: float | None = None  # of tensors whose range is their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A prompt, and the picture that a bundle's files drew of it."""

    prompt: str
    seed: int
    format: str  # of all three files: "onnx", "torch"
    png: bytes
    min_psnr_db: float  # of the picture drawn again elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Everything that enters the zoo under one name. Facts hold numbers that were measured elsewhere."""

    name: str  # "decoder/d4_c50_kd_w8a8"
    component: str
    files: Mapping[str, Path]  # name in the entry -> where the file is now
    samples: tuple[Sample, ...]
    recipe: str
    verdicts: tuple[Mapping[str, Any], ...]
    facts: Mapping[str, int | float | str] = field(default_factory=dict)
    licence: str = "unknown"  # of the weights that it was made from, as model hubs name it: "apache-2.0"
    tools: Mapping[str, str] = field(default_factory=dict)  # package -> version, of whatever made the files
    preview_png: bytes | None = None
    drawn: tuple[Picture, ...] = ()  # of a bundle: its samples
    measurements: Mapping[str, Any] | None = None  # of a bundle: every prompt's numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One line of the zoo's index."""

    name: str
    component: str
    bytes: int
    summary: Mapping[str, int | float | str]


def add(zoo: Path, entry: Entry, *, replace: bool = False) -> Path:
    """Put an entry into the zoo, which is made if it is not there; the same bytes again change nothing.

    Raises:
        UserError: a gate failed, a name is not allowed, a file is missing, or the name is taken by other bytes.
    """
    _checked_entry(entry)
    with placing.beside(zoo, entry.name) as folder:
        _build(folder, entry)
        return placing.settle(zoo, entry.name, folder, replace=replace)[0]


def list_entries(zoo: Path) -> tuple[Listed, ...]:
    """Every entry, sorted by name.

    Raises:
        UserError: there is no zoo, or its index cannot be read.
    """
    return tuple(
        Listed(name=name, component=e.component, bytes=sum(f.bytes for f in e.files.values()), summary=e.summary)
        for name, e in sorted(read_index(zoo).items())
    )


def show(zoo: Path, name: str) -> dict[str, Any]:
    """The card of one entry: name, component, files, samples, facts, verdicts.

    Raises:
        UserError: there is no zoo or no such entry, or the card cannot be read.
    """
    listed_entry(read_index(zoo), name, zoo)
    return read_card(zoo / name).record()


def _checked_entry(entry: Entry) -> None:
    check_name(entry.name, "entry name")
    for file, source in entry.files.items():
        check_name(file, "file name")
        if file in WRITTEN or file.split("/")[0] == "samples":
            raise UserError(f"file name {file!r} is taken by the zoo itself ({', '.join(WRITTEN)}, samples/)")
        if not source.exists():
            raise UserError(f"{source}: no such file; export the variant again before adding it to the zoo")
    failed = [v for v in entry.verdicts if v.get("passed") is not True]
    if failed or not entry.verdicts:
        named = ", ".join(f"{v.get('metric')} {v.get('statistic', '')}".strip() for v in failed) or "none was judged"
        raise UserError(f"{entry.name} does not enter the zoo: gates not passed: {named}")
    broken = [key for key, value in entry.facts.items() if isinstance(value, float) and not math.isfinite(value)]
    if broken:
        raise UserError(f"{entry.name}: facts that are not finite numbers: {', '.join(broken)}")
    _checked_samples(entry)


def _checked_samples(entry: Entry) -> None:
    for sample in entry.samples:
        if not any(file == sample.file or file.startswith(f"{sample.file}/") for file in entry.files):
            raise UserError(f"a sample names {sample.file!r}, which is not among the files: {', '.join(entry.files)}")
        if all(limit is None for limit in limits_of(sample)):
            raise UserError(f"{entry.name}: the sample of {sample.file} has no limit that another run could be held to")
        if not all(x.isfinite().all() for x in (*sample.inputs, sample.output)):
            raise UserError(f"{entry.name}: the sample of {sample.file} is not finite; export the variant again")


def _build(folder: Path, entry: Entry) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for file, source in entry.files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, folder / file)
        else:
            shutil.copyfile(source, folder / file)
    artifacts, samples = digests(folder), []
    (folder / "samples").mkdir(parents=True)
    for number, sample in enumerate(entry.samples):
        tensors = f"samples/{number}.safetensors"
        content = {**named(sample.inputs), "output": sample.output.detach().contiguous()}
        (folder / tensors).write_bytes(save_tensors(content))
        limits = limits_of(sample)._asdict()
        samples.append(CardSample(file=sample.file, format=sample.format, tensors=tensors, **limits))
    for number, picture in enumerate(entry.drawn):
        (folder / "samples" / f"{number}.png").write_bytes(picture.png)
    if entry.measurements is not None:
        (folder / "samples" / "measurements.json").write_bytes(to_bytes(dict(entry.measurements)))
    if entry.preview_png:
        (folder / "samples" / "preview.png").write_bytes(entry.preview_png)
    card = Card(
        schema_version=1,
        name=entry.name,
        component=entry.component,
        licence=entry.licence,
        tools=dict(entry.tools),
        files=artifacts,
        samples=samples,
        facts=dict(entry.facts),
        verdicts=[dict(v) for v in entry.verdicts],
        preview="samples/preview.png" if entry.preview_png else None,
        drawn=tuple(_drawn_sample(number, picture) for number, picture in enumerate(entry.drawn)),
    )
    (folder / "recipe.yaml").write_bytes(entry.recipe.encode())
    (folder / "verdicts.json").write_bytes(to_bytes(card.verdicts))
    (folder / "card.json").write_bytes(to_bytes(card.record()))
    (folder / "README.md").write_bytes(readme(card.record()).encode())


def _drawn_sample(number: int, picture: Picture) -> DrawnSample:
    return DrawnSample(
        prompt=picture.prompt,
        seed=picture.seed,
        format=picture.format,
        picture=f"samples/{number}.png",
        min_psnr_db=picture.min_psnr_db,
    )
