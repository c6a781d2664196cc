"""The two sides of a bundle's judgement: the files that are to enter a zoo, and the float model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress import bundle_judging as judging
from compress import generation
from compress.bundle_gates import BundleDemands, sampled
from compress.bundle_parts import TORCH, BundleParts, chosen, float32_bytes
from compress.errors import UserError
from compress.generation import LEAVES, Leaf, Model, Usual
from compress.runs import Emit
from compress.sampling.generator import Way
from eval import baseline as baselines
from eval import gates
from eval.metrics import latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What goes into a bundle, and what it is compared with."""

    model: str  # whose settings
    given: Mapping[Leaf, str | None] = field(default_factory=dict)  # parts in the place of the model's own
    reference: str | None = None  # None: the gates file's, or the model itself
    flags: Mapping[str, Any] = field(default_factory=dict)  # how to draw, where the command line says
    format: str | None = None
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A bundle's parts opened, and how they draw."""

    folder: Path  # with the settings
    parts: BundleParts
    model: Model
    way: Way
    usual: Usual  # the same as its sampling.json


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """The float model, and what it drew."""

    name: str
    model: Model
    way: Way
    bytes: int  # of its weights in float32
    drawn: judging.Drawn


def contender(asked: Asked, demands: BundleDemands) -> Contender:
    """A bundle's parts, every one of them looked at.

    Raises:
        UserError: parts are missing or do not fit each other.
        MissingExtra: a runtime is not installed.
    """
    folder = generation.model_folder(asked.model)
    parts = chosen(folder, asked.given, asked.format)
    way, usual = sampled(generation.usual_of(folder), demands.sampling.said(), asked.flags)
    places: dict[Leaf, str | None] = {leaf: str(parts.parts[leaf].place) for leaf in LEAVES}
    model = generation.open_model(asked.model, places, pixels=usual.pixels, threads=asked.threads)
    return Contender(folder=folder, parts=parts, model=model, way=way, usual=usual)


def reference_of(asked: Asked, demands: BundleDemands, ours: Contender, tell: Emit) -> Reference:
    """The float model with its pictures; drawn as the contender draws, but for what is asked of the reference alone.

    Raises:
        UserError: there is none, it is quantized, or it draws nothing itself.
    """
    name, folder = _named(asked, demands)
    floats = chosen(folder, {}, TORCH)
    size = float32_bytes(floats)
    places: dict[Leaf, str | None] = {leaf: str(floats.parts[leaf].place) for leaf in LEAVES}
    model = generation.open_model(name, places, pixels=ours.usual.pixels, threads=asked.threads)
    way, _ = sampled(ours.usual, {"seed": ours.way.seed}, demands.reference_sampling.said())
    drawn = judging.draw_all(model, demands.prompts, way, tell, "reference")
    judging.require_sound(drawn)
    return Reference(name=folder.name, model=model, way=way, bytes=size, drawn=drawn)


def judged(
    ours: Contender,
    reference: Reference,
    demands: BundleDemands,
    tell: Emit,
    *,
    threads: int,
    baseline: baselines.Baseline | None = None,
) -> judging.Judged:
    """Draw every prompt and judge the pictures.

    Raises:
        EvalError: a metric or the weights of its net are missing.
    """
    comparison = None
    if baseline is not None:
        comparison = baselines.Comparison(stored=baseline, now=conditions(ours, reference, demands.prompts))
    candidate = judging.draw_all(ours.model, demands.prompts, ours.way, tell, ours.parts.format)
    return judging.judge(
        reference.drawn,
        candidate,
        demands.gates,
        subject=ours.parts.format,
        sizes=gates.Sizes(ours.parts.bytes, reference.bytes),
        ratio=_ratio(ours, reference, candidate, demands, threads),
        baseline=comparison,
    )


def as_baseline(
    before: Contender, reference: Reference, demands: BundleDemands, tell: Emit, *, threads: int
) -> baselines.Baseline:
    """What a bundle draws now, for another one to be compared with."""
    drawn = judging.draw_all(before.model, demands.prompts, before.way, tell, "the bundle to be replaced")
    return baselines.of_now(
        conditions(before, reference, demands.prompts),
        judging.measured(reference.drawn, drawn, demands.gates),
        latency=_ratio(before, reference, drawn, demands, threads),
        sizes=gates.Sizes(before.parts.bytes, reference.bytes),
    )


def conditions(ours: Contender, reference: Reference, prompts: Sequence[str]) -> baselines.Conditions:
    """What the numbers depend on besides the bundle."""
    pixels = ours.usual.pixels
    return baselines.Conditions(
        data=judging.digest_of(prompts, reference.way, pixels),
        resolution=f"{pixels}x{pixels}",
        reference=reference.name,
        host=latency.host(),
    )


def _ratio(
    ours: Contender, reference: Reference, drawn: judging.Drawn, demands: BundleDemands, threads: int
) -> latency.LatencyRatio | None:
    if drawn.broken:
        return None
    sides = (reference.model, reference.way), (ours.model, ours.way)
    return judging.timed(*sides, demands.prompts[0], demands.gates, threads=threads)


def _named(asked: Asked, demands: BundleDemands) -> tuple[str, Path]:
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
