"""A whole text-to-image model as one zoo entry: its three files and settings, judged end to end before it enters."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import bundle_judging as judging
from compress import bundle_pictures, generation
from compress import zoo as zoos
from compress.bundle_gates import BundleDemands, as_text, sampled
from compress.bundle_parts import INTEGERS_DB, TORCH, WHOLE_DB, BundleParts, chosen, float32_bytes
from compress.comparable import EVALUATED
from compress.errors import UserError
from compress.files import write_json
from compress.generation import LEAVES, Leaf, Model, Usual
from compress.runs import Emit, Event
from compress.sampling.generator import Way
from compress.zoo_entry import tools_of
from compress.zoo_index import INDEX, check_name, read_index
from eval import compare, gates
from eval.metrics import latency

SAMPLES = 4  # prompts whose pictures are kept, and drawn again by `zoo verify`
SETTINGS = ("tokenizer.json", "scheduler.json", "latents.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What goes into a bundle, and what it is compared with."""

    name: str
    model: str  # whose settings
    given: Mapping[Leaf, str | None]  # parts in the place of the model's own
    reference: str | None  # None: the gates file's, or the model itself
    flags: Mapping[str, Any]  # how to draw, where the command line says
    reference_flags: Mapping[str, Any]  # the same, of the reference alone: a UNet whose steps were distilled differs
    format: str | None = None
    threads: int = 1
    seconds: bool = True  # whether the card says how long a picture takes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundled:
    """What was judged, and where the entry is; None: a gate failed, and the zoo is as it was."""

    judged: judging.Judged
    notes: tuple[str, ...]
    place: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Both models opened, and how each draws."""

    folder: Path
    parts: BundleParts
    model: Model
    way: Way
    usual: Usual
    reference: Model
    reference_name: str
    reference_way: Way
    reference_bytes: int


def bundle(asked: Asked, zoo: Path, demands: BundleDemands, tell: Emit, *, replace: bool = False) -> Bundled:
    """Judge three parts end to end and put them into the zoo as one entry if every gate passes.

    Raises:
        UserError: the name is taken or not allowed, parts are missing or do not fit each other.
        MissingExtra: a runtime is not installed.
        EvalError: a metric or the weights of its net are missing.
    """
    check_name(asked.name, "entry name")
    refuse_taken(zoo, asked.name, replace=replace)
    contest = opened(asked, demands)
    judged = judged_end_to_end(contest, demands, tell, threads=asked.threads)
    notes = (*contest.model.notes, *judged.candidate.notes)
    if not judged.passed:
        return Bundled(judged=judged, notes=notes, place=None)
    with tempfile.TemporaryDirectory(prefix="mdcompress-") as temporary:
        entry = _entry(asked, contest, demands, judged, Path(temporary))
        place = zoos.add(zoo, entry, replace=replace)
    tell(Event(kind="added", name=asked.name, text=str(place)))
    return Bundled(judged=judged, notes=notes, place=place)


def refuse_taken(zoo: Path, name: str, *, replace: bool) -> None:
    """Say before minutes of drawing what `add` would say after them.

    Raises:
        UserError: an entry of this name is there.
    """
    if not replace and (zoo / INDEX).is_file() and name in read_index(zoo):
        raise UserError(f"{zoo / name}: an entry of this name is there; choose another name, or give --replace")


def opened(asked: Asked, demands: BundleDemands) -> Contest:
    """Both models, every part of them looked at.

    Raises:
        UserError, MissingExtra: as `bundle`.
    """
    folder = generation.model_folder(asked.model)
    parts = chosen(folder, asked.given, asked.format)
    way, usual = sampled(demands, generation.usual_of(folder), asked.flags)
    places: dict[Leaf, str | None] = {leaf: str(parts.parts[leaf].place) for leaf in LEAVES}
    model = generation.open_model(asked.model, places, pixels=usual.pixels, threads=asked.threads)
    name, theirs = _reference(asked, demands)
    floats = chosen(theirs, {}, TORCH)
    size = float32_bytes(floats)
    where: dict[Leaf, str | None] = {leaf: str(floats.parts[leaf].place) for leaf in LEAVES}
    reference = generation.open_model(name, where, pixels=usual.pixels, threads=asked.threads)
    reference_way, _ = sampled(demands, usual, {**asked.flags, **asked.reference_flags})
    return Contest(
        folder=folder,
        parts=parts,
        model=model,
        way=way,
        usual=usual,
        reference=reference,
        reference_name=theirs.name,
        reference_way=reference_way,
        reference_bytes=size,
    )


def judged_end_to_end(
    contest: Contest, demands: BundleDemands, tell: Emit, *, threads: int, baseline: Any = None
) -> judging.Judged:
    """Draw every prompt by both and judge.

    Raises:
        UserError: the reference itself draws nothing.
        EvalError: a metric or the weights of its net are missing.
    """
    reference = judging.draw_all(contest.reference, demands.prompts, contest.reference_way, tell, "reference")
    judging.require_sound(reference)
    candidate = judging.draw_all(contest.model, demands.prompts, contest.way, tell, contest.parts.format)
    ratio = None
    if not candidate.broken:
        theirs, ours = (contest.reference, contest.reference_way), (contest.model, contest.way)
        ratio = judging.timed(theirs, ours, demands.prompts[0], demands.gates, threads=threads)
    return judging.judge(
        reference,
        candidate,
        demands.gates,
        subject=contest.parts.format,
        sizes=gates.Sizes(contest.parts.bytes, contest.reference_bytes),
        ratio=ratio,
        baseline=baseline,
    )


def _reference(asked: Asked, demands: BundleDemands) -> tuple[str, Path]:
    """The float model's name and folder: the command line's, else the gates file's, else the model itself."""
    if asked.reference is not None:
        return asked.reference, generation.model_folder(asked.reference)
    if demands.reference is not None:
        try:
            return demands.reference, generation.model_folder(demands.reference)
        except UserError as error:
            raise UserError(
                f"the gates file's reference, '{demands.reference}', is no preset and no folder from here; give "
                "--reference FOLDER"
            ) from error
    folder = generation.model_folder(asked.model)
    if not (folder / "unet" / "arch.json").is_file():
        raise UserError(
            f"{asked.model} has no torch variants to compare with; name the float model: --reference FOLDER_OR_PRESET"
        )
    return asked.model, folder


def _entry(
    asked: Asked, contest: Contest, demands: BundleDemands, judged: judging.Judged, temporary: Path
) -> zoos.Entry:
    parts = contest.parts
    write_json(
        temporary / "sampling.json",
        {name: getattr(contest.usual, name) for name in ("pixels", "steps", "guidance", "solver")},
    )
    files = {name: contest.folder / name for name in SETTINGS} | {"sampling.json": temporary / "sampling.json"}
    for leaf, part in parts.parts.items():
        files |= part.files(leaf, parts.format)
    whole = all(part.whole for part in parts.parts.values())
    tools = {k: v for part in parts.parts.values() for k, v in part.tools.items()} | tools_of(
        [f for f in (parts.format, "generate") if f != TORCH]
    )
    pictures = judged.candidate.images
    return zoos.Entry(
        name=asked.name,
        component=f"{contest.reference_name}/text-to-image",
        files=files,
        samples=(),
        recipe=as_text(demands, reference=contest.reference_name, way=contest.way, usual=contest.usual),
        verdicts=tuple(gates.to_json(verdict) for verdict in judged.verdicts),
        facts=_facts(contest, demands, judged) | (_seconds(judged) if asked.seconds else {}),
        licence=parts.licence,
        tools=tools,
        preview_png=bundle_pictures.sheet(judged.reference.images, pictures),
        drawn=tuple(
            zoos.Picture(
                prompt=prompt,
                seed=contest.way.seed + index,
                format=parts.format,
                png=bundle_pictures.png(pictures[index]),
                min_psnr_db=WHOLE_DB if whole else INTEGERS_DB,
            )
            for index, prompt in enumerate(demands.prompts[:SAMPLES])
        ),
        measurements=_rows(demands, contest, judged),
    )


def _facts(contest: Contest, demands: BundleDemands, judged: judging.Judged) -> dict[str, int | float | str]:
    way, theirs, usual = contest.way, contest.reference_way, contest.usual
    facts: dict[str, int | float | str] = {
        "bytes": judged.sizes.candidate_bytes,
        "bytes_of_reference": judged.sizes.reference_bytes,
        "image_size": usual.pixels,
        "prompts": len(demands.prompts),
        "sampling": f"{way.steps} steps of {way.solver}, guidance {way.guidance:g}",
        "sampling_of_reference": f"{theirs.steps} steps of {theirs.solver}, guidance {theirs.guidance:g}",
        EVALUATED: judging.digest_of(demands.prompts, theirs, usual.pixels),
    }
    facts |= {f"{leaf}_from": part.origin for leaf, part in contest.parts.parts.items()}
    for one in judged.measurements:
        mean = sum(one.values) / len(one.values)
        key = f"{one.metric}_to_reference"
        if math.isfinite(mean):
            facts |= {
                f"{key}_mean": round(mean, 4),
                f"{key}_definition": one.definition + (f", net {one.net}" if one.net else ""),
            }
    if judged.latency is not None:
        facts |= {"latency_ratio": round(judged.latency.ratio, 4), "latency_host": judged.latency.host}
        facts |= {"latency_runtime": judged.latency.runtime}
    return facts


def _seconds(judged: judging.Judged) -> dict[str, int | float | str]:
    """Plain medians of wall time, on the host that is named."""
    return {
        "seconds_per_picture": round(judged.candidate.seconds, 3),
        "seconds_per_picture_of_reference": round(judged.reference.seconds, 3),
        "seconds_host": latency.host(),
    }


def _rows(demands: BundleDemands, contest: Contest, judged: judging.Judged) -> dict[str, Any]:
    """Every prompt with its seed and numbers."""
    return {
        "schema": 1,
        "prompts": list(demands.prompts),
        "seeds": [contest.way.seed + index for index in range(len(demands.prompts))],
        "measurements": [compare.to_json(one) for one in judged.measurements],
    }
