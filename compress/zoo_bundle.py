"""A whole text-to-image model as one zoo entry: its three files and settings, judged end to end before it enters."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import bundle_judging as judging
from compress import bundle_pictures
from compress import zoo as zoos
from compress.bundle_contest import Asked, Contender, Reference, contender, judged, reference_of
from compress.bundle_gates import BundleDemands, as_text
from compress.bundle_parts import INTEGERS_DB, TORCH, WHOLE_DB
from compress.comparable import EVALUATED
from compress.errors import UserError
from compress.files import write_json
from compress.generation import OWN_SETTINGS
from compress.runs import Emit, Event
from compress.zoo_entry import tools_of
from compress.zoo_index import INDEX, check_name, read_index
from eval import compare, gates
from eval.metrics import latency

SAMPLES = 4  # prompts whose pictures are kept, and drawn again by `zoo verify`


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundled:
    """What was judged, and where the entry is; None: a gate failed, and the zoo is as it was."""

    judged: judging.Judged
    notes: tuple[str, ...]
    place: Path | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """All that an entry is made of."""

    ours: Contender
    reference: Reference
    demands: BundleDemands
    judged: judging.Judged


def bundle(
    name: str,
    asked: Asked,
    zoo: Path,
    demands: BundleDemands,
    tell: Emit,
    *,
    seconds: bool = True,
    replace: bool = False,
) -> Bundled:
    """Judge three parts end to end and put them into the zoo as one entry if every gate passes.

    Args:
        name: of the entry.
        asked: the parts, and what they are compared with.
        zoo: made if it is not there.
        demands: prompts, how they are drawn, and gates.
        tell: told of everything that happens.
        seconds: whether the card says how long a picture takes here; without, the same parts give the same bytes.
        replace: whether an entry of this name and other contents makes room.

    Raises:
        UserError: the name is taken or not allowed, parts are missing or do not fit each other.
        MissingExtra: a runtime is not installed.
        EvalError: a metric or the weights of its net are missing.
    """
    check_name(name, "entry name")
    _refuse_taken(zoo, name, replace=replace)
    ours = contender(asked, demands)
    reference = reference_of(asked, demands, ours, tell)
    found = judged(ours, reference, demands, tell, threads=asked.threads)
    notes = (*ours.model.notes, *found.candidate.notes)
    if not found.passed:
        return Bundled(judged=found, notes=notes, place=None)
    outcome = Outcome(ours=ours, reference=reference, demands=demands, judged=found)
    with tempfile.TemporaryDirectory(prefix="mdcompress-") as temporary:
        place = zoos.add(zoo, _entry(name, outcome, Path(temporary), seconds=seconds), replace=replace)
    tell(Event(kind="added", name=name, text=str(place)))
    return Bundled(judged=found, notes=notes, place=place)


def _refuse_taken(zoo: Path, name: str, *, replace: bool) -> None:
    """Say before minutes of drawing what `add` would say after them."""
    if not replace and (zoo / INDEX).is_file() and name in read_index(zoo):
        raise UserError(f"{zoo / name}: an entry of this name is there; choose another name, or give --replace")


def _entry(name: str, outcome: Outcome, temporary: Path, *, seconds: bool) -> zoos.Entry:
    ours, reference, found = outcome.ours, outcome.reference, outcome.judged
    parts, usual = ours.parts, ours.usual
    sampling = {key: getattr(usual, key) for key in ("pixels", "steps", "guidance", "solver")}
    write_json(temporary / "sampling.json", sampling)
    files = {setting: ours.folder / setting for setting in OWN_SETTINGS}
    files |= {"sampling.json": temporary / "sampling.json"}
    for leaf, part in parts.parts.items():
        files |= part.files(leaf, parts.format)
    tools = {package: version for part in parts.parts.values() for package, version in part.tools.items()}
    return zoos.Entry(
        name=name,
        component=f"{reference.name}/text-to-image",
        files=files,
        samples=(),
        recipe=as_text(outcome.demands, reference=reference.name, ways=(ours.way, reference.way), usual=usual),
        verdicts=tuple(gates.to_json(verdict) for verdict in found.verdicts),
        facts=_facts(outcome) | (_seconds(outcome) if seconds else {}),
        licence=parts.licence,
        tools=tools | tools_of([extra for extra in (parts.format, "generate") if extra != TORCH]),
        preview_png=bundle_pictures.sheet(reference.drawn.images, found.candidate.images),
        drawn=_samples(outcome),
        measurements=_rows(outcome),
    )


def _samples(outcome: Outcome) -> tuple[zoos.Picture, ...]:
    """The first prompts with their pictures."""
    parts, way = outcome.ours.parts, outcome.ours.way
    limit = WHOLE_DB if all(part.whole for part in parts.parts.values()) else INTEGERS_DB
    return tuple(
        zoos.Picture(
            prompt=prompt,
            seed=way.seed + index,
            format=parts.format,
            png=bundle_pictures.png(outcome.judged.candidate.images[index]),
            min_psnr_db=limit,
        )
        for index, prompt in enumerate(outcome.demands.prompts[:SAMPLES])
    )


def _facts(outcome: Outcome) -> dict[str, int | float | str]:
    way, theirs, found = outcome.ours.way, outcome.reference.way, outcome.judged
    prompts, pixels = outcome.demands.prompts, outcome.ours.usual.pixels
    facts: dict[str, int | float | str] = {
        "bytes": found.sizes.candidate_bytes,
        "bytes_of_reference": found.sizes.reference_bytes,
        "image_size": pixels,
        "prompts": len(prompts),
        "sampling": f"{way.steps} steps of {way.solver}, guidance {way.guidance:g}",
        "sampling_of_reference": f"{theirs.steps} steps of {theirs.solver}, guidance {theirs.guidance:g}",
        EVALUATED: judging.digest_of(prompts, theirs, pixels),
    }
    facts |= {f"{leaf}_from": part.origin for leaf, part in outcome.ours.parts.parts.items()}
    for one in found.measurements:
        mean = sum(one.values) / len(one.values)
        if math.isfinite(mean):
            said = one.definition + (f", net {one.net}" if one.net else "")
            facts |= {f"{one.metric}_to_reference_mean": round(mean, 4), f"{one.metric}_to_reference_definition": said}
    if found.latency is not None:
        facts |= {"latency_ratio": round(found.latency.ratio, 4), "latency_host": found.latency.host}
        facts |= {"latency_runtime": found.latency.runtime}
    return facts


def _seconds(outcome: Outcome) -> dict[str, int | float | str]:
    """Plain medians of wall time, on the host that is named."""
    return {
        "seconds_per_picture": round(outcome.judged.candidate.seconds, 3),
        "seconds_per_picture_of_reference": round(outcome.reference.drawn.seconds, 3),
        "seconds_host": latency.host(),
    }


def _rows(outcome: Outcome) -> dict[str, Any]:
    """Every prompt with its seed and numbers."""
    prompts, seed = outcome.demands.prompts, outcome.ours.way.seed
    return {
        "schema": 1,
        "prompts": list(prompts),
        "seeds": [seed + index for index in range(len(prompts))],
        "measurements": [compare.to_json(one) for one in outcome.judged.measurements],
    }
