"""The zoo: a plain directory of variants that passed their gates, with SHA-256 and samples to check them by.

    <zoo>/index.json            what there is: every file of every entry with its SHA-256 and size
    <zoo>/<entry name>/         artifact files, recipe.yaml, verdicts.json, card.json, README.md (made from card.json)
    <zoo>/<entry name>/samples/ inputs with the outputs that the artifacts gave (safetensors), preview.png

The same entry gives the same bytes: no clock, no machine, sorted keys. An entry is built in a hidden folder beside its
place and renamed into it, then index.json is replaced; killed in between, `verify` names what is not listed and adding
the entry again completes it. One writer at a time.
"""

import difflib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from compress.errors import MissingExtra, UserError
from compress.nn.batches import named, unnamed
from compress.records import Inputs
from compress.schema import Schema
from compress.zoo_card import readme
from compress.zoo_samples import Limits, difference

SCHEMA = 1
INDEX = "index.json"
WRITTEN = ("card.json", "README.md", "recipe.yaml", "verdicts.json", INDEX)  # names that no artifact may take
TOP_FILES = (INDEX, "index.html", "README.md")
MAX_DIFFERENCE = 2 / 255  # of a sample that is run again, in image units
MIN_PSNR_DB = 60.0

Load = Callable[..., Callable[..., torch.Tensor]]  # load(path, threads=1), as exporters have it


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
class Entry:
    """Everything that enters the zoo under one name. Facts hold numbers that were measured elsewhere."""

    name: str  # "decoder/d4_c50_kd_w8a8"
    component: str
    files: Mapping[str, Path]  # name in the entry -> where the file is now
    samples: tuple[Sample, ...]
    recipe: str
    verdicts: tuple[Mapping[str, Any], ...]
    facts: Mapping[str, int | float | str] = field(default_factory=dict)
    preview_png: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One line of the zoo's index."""

    name: str
    component: str
    bytes: int
    summary: Mapping[str, int | float | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What verifying one file found; `problem` is empty where it is as listed."""

    entry: str
    file: str
    ok: bool
    problem: str = ""


class _File(Schema):
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    bytes: int = Field(ge=0)


class _Indexed(Schema):
    component: str
    files: dict[str, _File]
    summary: dict[str, int | float | str]


class _CardSample(Schema):
    file: str
    format: str
    tensors: str
    max_difference: float | None = None
    min_psnr_db: float | None = None
    min_sqnr_db: float | None = None


class _Card(Schema):
    schema_version: Literal[1]
    name: str
    component: str
    files: dict[str, _File]
    samples: list[_CardSample]
    facts: dict[str, int | float | str]
    verdicts: list[dict[str, Any]]
    preview: str | None


def add(zoo: Path, entry: Entry, *, replace: bool = False) -> Path:
    """Put an entry into the zoo, which is made if it is not there; the same bytes again change nothing.

    Raises:
        UserError: a gate failed, a name is not allowed, a file is missing, or the name is taken by other bytes.
    """
    _checked_entry(entry)
    index = _read_index(zoo) if (zoo / INDEX).is_file() else {}
    _refuse_nesting(entry.name, index)
    place = zoo / entry.name
    beside = place.parent / f".{place.name}.{os.getpid()}.part"
    try:
        _build(beside, entry)
        listed = _Indexed(component=entry.component, files=_digests(beside), summary=dict(entry.facts))
        if not place.exists() or _replaceable(place, listed, replace):
            _move(beside, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    _write_index(zoo, index | {entry.name: listed})
    return place


def list_entries(zoo: Path) -> tuple[Listed, ...]:
    """Every entry, sorted by name.

    Raises:
        UserError: there is no zoo, or its index cannot be read.
    """
    return tuple(
        Listed(name=name, component=e.component, bytes=sum(f.bytes for f in e.files.values()), summary=e.summary)
        for name, e in sorted(_read_index(zoo).items())
    )


def show(zoo: Path, name: str) -> dict[str, Any]:
    """The card of one entry: name, component, files, samples, facts, verdicts.

    Raises:
        UserError: there is no zoo or no such entry, or the card cannot be read.
    """
    _indexed(_read_index(zoo), name, zoo)
    return _read_card(zoo / name).model_dump()


def verify(zoo: Path, name: str | None = None, *, runner: Callable[[str], Load]) -> tuple[Check, ...]:
    """Check digests, look for files that are not listed, and run the samples again.

    Args:
        zoo: the zoo's folder.
        name: one entry, or None for all of them.
        runner: format name -> that exporter's `load`.

    Raises:
        UserError: there is no zoo or no such entry, or the index cannot be read; MissingExtra for a sample's runtime.
    """
    index = _read_index(zoo)
    chosen = index if name is None else {name: _indexed(index, name, zoo)}
    checks = [] if name is not None else _strays(zoo, index)
    for entry_name, listed in sorted(chosen.items()):
        files = [_file_check(zoo, entry_name, file, expected) for file, expected in sorted(listed.files.items())]
        checks += files
        extra = [file for file in _files(zoo / entry_name) if file not in listed.files]
        checks += [Check(entry=entry_name, file=f, ok=False, problem=f"is not listed in {INDEX}") for f in extra]
        checks += _sample_checks(zoo / entry_name, entry_name, {c.file for c in files if c.ok}, runner)
    return tuple(checks)


def _checked_name(name: str, what: str) -> None:
    parts = name.split("/")
    printable = name.isprintable() and "\\" not in name and ":" not in name
    if not printable or any(part == "" or part.startswith(".") or part != part.strip() for part in parts):
        raise UserError(
            f"{what} {name!r} is not allowed: parts separated by '/', each without a leading dot, backslash or colon, "
            "such as 'decoder/d4_w8a8'"
        )


def _checked_entry(entry: Entry) -> None:
    _checked_name(entry.name, "entry name")
    for file, source in entry.files.items():
        _checked_name(file, "file name")
        if file in WRITTEN or file.split("/")[0] == "samples":
            raise UserError(f"file name {file!r} is taken by the zoo itself ({', '.join(WRITTEN)}, samples/)")
        if not source.is_file():
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
        if sample.file not in entry.files:
            raise UserError(f"a sample names {sample.file!r}, which is not among the files: {', '.join(entry.files)}")
        if all(limit is None for limit in _limits(sample)):
            raise UserError(f"{entry.name}: the sample of {sample.file} has no limit that another run could be held to")
        if not all(x.isfinite().all() for x in (*sample.inputs, sample.output)):
            raise UserError(f"{entry.name}: the sample of {sample.file} is not finite; export the variant again")


def _refuse_nesting(name: str, index: Mapping[str, _Indexed]) -> None:
    for other in index:
        if other.startswith(f"{name}/") or name.startswith(f"{other}/"):
            raise UserError(f"entry {name!r} and entry {other!r} would lie in one another; choose another name")


def _replaceable(place: Path, listed: _Indexed, replace: bool) -> bool:
    """Whether what is there must make room; false where it is the same."""
    if not (place / "card.json").is_file():
        raise UserError(f"{place}: is there and is no zoo entry (no card.json); move it away, or choose another name")
    if _digests(place) == listed.files:
        return False
    if not replace:
        raise UserError(f"{place}: an entry with other content is there; choose another name, or replace it")
    return True


def _build(folder: Path, entry: Entry) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for file, source in entry.files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / file)
    artifacts, samples = _digests(folder), []
    (folder / "samples").mkdir(parents=True)
    for number, sample in enumerate(entry.samples):
        tensors = f"samples/{number}.safetensors"
        content = {**named(sample.inputs), "output": sample.output.detach().contiguous()}
        (folder / tensors).write_bytes(save_tensors(content))
        samples.append(
            _CardSample(file=sample.file, format=sample.format, tensors=tensors, **_limits(sample)._asdict())
        )
    if entry.preview_png:
        (folder / "samples" / "preview.png").write_bytes(entry.preview_png)
    card = _Card(
        schema_version=1,
        name=entry.name,
        component=entry.component,
        files=artifacts,
        samples=samples,
        facts=dict(entry.facts),
        verdicts=[dict(v) for v in entry.verdicts],
        preview="samples/preview.png" if entry.preview_png else None,
    )
    (folder / "recipe.yaml").write_bytes(entry.recipe.encode())
    (folder / "verdicts.json").write_bytes(_json(card.verdicts))
    (folder / "card.json").write_bytes(_json(card.model_dump()))
    (folder / "README.md").write_bytes(readme(card.model_dump()).encode())


def _limits(sample: Sample | _CardSample) -> Limits:
    return Limits(*(getattr(sample, name) for name in Limits._fields))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _digest(path: Path) -> _File:
    with path.open("rb") as stream:
        return _File(sha256=hashlib.file_digest(stream, "sha256").hexdigest(), bytes=path.stat().st_size)


def _files(folder: Path) -> list[str]:
    """Every file and link below a folder."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())


def _digests(folder: Path) -> dict[str, _File]:
    return {name: _digest(folder / name) for name in _files(folder)}


def _move(new: Path, place: Path) -> None:
    """Rename `new` to `place`; what was there goes last."""
    old = new.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _write_index(zoo: Path, index: Mapping[str, _Indexed]) -> None:
    entries = {name: listed.model_dump() for name, listed in index.items()}
    beside = zoo / f".{INDEX}.{os.getpid()}.part"
    try:
        beside.write_bytes(_json({"schema": SCHEMA, "entries": entries}))
        beside.replace(zoo / INDEX)
    finally:
        beside.unlink(missing_ok=True)


def _read_index(zoo: Path) -> dict[str, _Indexed]:
    path = zoo / INDEX
    if not path.is_file():
        raise UserError(f"{zoo}: no zoo here (no {INDEX}); give a zoo's folder, or make one with mdcompress zoo add")
    try:
        raw = json.loads(path.read_bytes())
        version = raw["schema"]
        if isinstance(version, int) and version > SCHEMA:
            raise UserError(f"{path}: schema {version} is newer than {SCHEMA}, the newest known: update mdcompress")
        index = TypeAdapter(dict[str, _Indexed]).validate_python(raw["entries"], strict=True)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged index ({error}); fetch it again, or add the entries again") from error
    for name, listed in index.items():
        _checked_name(name, f"{path}: entry name")
        for file in listed.files:
            _checked_name(file, f"{path}: file name")
    return index


def _indexed(index: Mapping[str, _Indexed], name: str, zoo: Path) -> _Indexed:
    if name not in index:
        near = difflib.get_close_matches(name, index, n=2) or sorted(index)
        raise UserError(f"{zoo}: no entry {name!r}; there are: {', '.join(near) or 'none'}")
    return index[name]


def _read_card(folder: Path) -> _Card:
    try:
        return _Card.model_validate_json((folder / "card.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{folder / 'card.json'}: cannot be read ({error}); fetch or add the entry again") from error


def _file_check(zoo: Path, entry: str, file: str, expected: _File) -> Check:
    path, problem = zoo / entry / file, ""
    if path.is_symlink() or not path.is_file():
        problem = "is missing, or is not a plain file"
    elif (found := _digest(path)) != expected:
        problem = f"is not the listed file: {found.bytes} bytes for {expected.bytes}, another SHA-256; fetch it again"
    return Check(entry=entry, file=file, ok=problem == "", problem=problem)


def _strays(zoo: Path, index: Mapping[str, _Indexed]) -> list[Check]:
    """Files outside of all entries: an add that was cut off, or somebody's own."""
    problem = "belongs to no listed entry: add that entry again, or delete the file"
    files = [f for f in _files(zoo) if f not in TOP_FILES and not any(f.startswith(f"{name}/") for name in index)]
    return [Check(entry="", file=file, ok=False, problem=problem) for file in files]


def _sample_checks(folder: Path, entry: str, intact: set[str], runner: Callable[[str], Load]) -> Iterator[Check]:
    if "card.json" not in intact:
        yield Check(entry=entry, file="samples", ok=False, problem="were not run: card.json is not intact")
        return
    for sample in _read_card(folder).samples:
        run = {sample.file, sample.tensors} <= intact
        problem = _sample_problem(folder, sample, runner) if run else f"not run: it or {sample.file} is not intact"
        yield Check(entry=entry, file=sample.tensors, ok=problem == "", problem=problem)


def _sample_problem(folder: Path, sample: _CardSample, runner: Callable[[str], Load]) -> str:
    tensors = load_tensors((folder / sample.tensors).read_bytes())
    try:
        found = runner(sample.format)(folder / sample.file, threads=1)(*unnamed(tensors))
    except UserError as error:
        if isinstance(error, MissingExtra):
            raise
        return f"{sample.file} does not run: {error}"
    expected = tensors["output"]
    misfit = difference(found, expected, _limits(sample))
    return f"{sample.file} {misfit}" if misfit else ""
