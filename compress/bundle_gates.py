"""What a bundle is judged by: prompts, how they are drawn, and gates; from a file, or those that stand here.

    schema: 1
    reference: md-tiny                      # the float model: a preset or a folder (may be left out)
    sampling: {steps: 20, guidance: 3.0, solver: dpm_solver, seed: 0, pixels: 128}      # each may be left out
    reference_sampling: {steps: 20}         # where the reference draws otherwise: steps, guidance, solver
    prompts: [red apple, cat face]          # may be left out
    gates:
      - {metric: lpips, max: 0.15}

There is no photograph of what words mean, so everything is compared with the reference's pictures of the same prompts
and seeds. An entry's recipe.yaml is such a file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from compress.errors import UserError
from compress.generation import Usual
from compress.located import RecipeError, read_document
from compress.recipe import Reading
from compress.sampling.generator import Way
from compress.schema import Schema
from compress.written import RELATIVE_LIMITS, Gate, Solver, Word

# Set before a bundle was ever measured, from published figures to the 16-bit pictures of the same seeds (SVDQuant,
# arXiv:2411.05007): 8 bits LPIPS 0.09 to 0.11 and PSNR 24 to 27 dB, 4 bits 0.22 to 0.32 and 18 to 21 dB. A
# bundle lies on the side of 8 bits, and is not larger than what it was made from but for a file's own headers.
DEFAULT_GATES: tuple[Mapping[str, Any], ...] = (
    {"metric": "lpips", "net": "st-alex", "max": 0.15},
    {"metric": "psnr", "min": 20.0},
    {"metric": "size", "max_ratio": 1.05},
)
DEFAULT_PROMPTS = (
    "red apple", "cat face", "blue heart", "slice of pizza", "yellow sun", "green tree", "dog face", "red car",
    "white house", "cup of coffee", "rocket", "guitar", "blue fish", "strawberry", "smiling face", "orange umbrella",
)  # fmt: skip


class Drawing(Schema):
    """How the reference draws; what is left out is as the bundle does."""

    steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=0)
    solver: Solver | None = None

    def said(self) -> dict[str, Any]:
        """What was not left out."""
        return self.model_dump(exclude_none=True)


class Sampling(Drawing):
    """How prompts are drawn; what is left out is the model's own."""

    pixels: int | None = Field(None, ge=8)
    seed: int | None = Field(None, ge=0)


AS_THE_MODEL = Sampling.model_validate({})
AS_THE_BUNDLE = Drawing.model_validate({})


class WholeBundle(Schema):
    """The file as written, before its gates have been looked at."""

    version: Literal[1] = Field(alias="schema", description="of bundles' gates files; this is version 1")
    reference: Word | None = None
    sampling: Sampling = AS_THE_MODEL
    reference_sampling: Drawing = AS_THE_BUNDLE
    prompts: list[str] | None = Field(None, min_length=1)
    gates: list[Any] = Field(min_length=1, description="what must be passed")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleDemands:
    """What is asked of a bundle."""

    gates: tuple[Gate, ...]
    prompts: tuple[str, ...] = DEFAULT_PROMPTS
    sampling: Sampling = AS_THE_MODEL
    reference_sampling: Drawing = AS_THE_BUNDLE
    reference: str | None = None


def default_demands() -> BundleDemands:
    """The gates and prompts that stand here."""
    return BundleDemands(gates=tuple(Gate.model_validate(dict(gate)) for gate in DEFAULT_GATES))


def read_bundle_demands(path: Path, *, baseline: bool = False) -> BundleDemands:
    """Read a file, every mistake at once.

    Args:
        path: the file.
        baseline: whether there is an entry to compare with, which gates against a baseline need.

    Raises:
        RecipeError: the message has every mistake, one a line.
        UserError: it is a file for one component.
    """
    document = read_document(path)
    if {"component", "stages"} & set(document.data):
        raise UserError(
            f"{path} is for one component; a bundle's gates file has schema, gates, and maybe prompts, sampling and "
            "reference (docs/zoo.md)"
        )
    reading = Reading(document)
    whole = reading.validated(WholeBundle, reading.written, ())
    gates = [reading.validated(Gate, entry, ("gates", index)) for index, entry in enumerate(reading.listed("gates"))]
    for index, gate in enumerate(gates):
        problem = _unjudged(gate, baseline=baseline) if gate else ""
        if problem:
            reading.note(("gates", index), problem)
    if reading.mistakes or whole is None:
        raise RecipeError(path, reading.mistakes)
    return BundleDemands(
        gates=tuple(gate for gate in gates if gate),
        prompts=DEFAULT_PROMPTS if whole.prompts is None else tuple(whole.prompts),
        sampling=whole.sampling,
        reference_sampling=whole.reference_sampling,
        reference=whole.reference,
    )


def _unjudged(gate: Gate, *, baseline: bool) -> str:
    """Why a gate says nothing of a bundle; "" where it does."""
    relative = [limit for limit in RELATIVE_LIMITS[:2] if getattr(gate, limit) is not None]
    if gate.metric == "peak_memory":
        return "peak_memory is not measured of a bundle; gate its components"
    if gate.metric in ("sqnr", "cosine"):
        return f"{gate.metric} is of one component's tensors; latent_sqnr is of a bundle's latents, step by step"
    if gate.metric == "task_score":
        return "task_score looks among captioned pictures, of which a bundle has none: gate its UNet (data.drawn)"
    if gate.against == "ground_truth" or gate.of == "reference" or (relative and gate.against == "reference"):
        return "there is no photograph of what words mean: use min or max, which are to the reference's pictures"
    if gate.against == "baseline" and not baseline:
        return "there is no entry to compare with; 'mdcompress zoo promote' has one"
    return ""


def read_prompts(name: str) -> tuple[str, ...]:
    """Prompts of a text file, one a line, empty lines left out; or "defaults".

    Raises:
        UserError: no such file, not UTF-8, or nothing in it.
    """
    if name == "defaults":
        return DEFAULT_PROMPTS
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {name}: no UTF-8 text file of one prompt a line ({error})") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise UserError(f"--prompts {name}: no prompt in it; one a line")
    return found


def as_text(demands: BundleDemands, *, reference: str, ways: tuple[Way, Way], usual: Usual) -> str:
    """The file that judges again as it was judged; every value is written as JSON, which YAML reads.

    Args:
        demands: prompts and gates.
        reference: its name.
        ways: how the bundle drew, and how the reference did.
        usual: the first, as sampling.json has it.
    """
    way, theirs = ways
    sampling = {"pixels": usual.pixels, "steps": way.steps, "guidance": way.guidance, "solver": way.solver}
    lines = ["schema: 1", f"reference: {_json(reference)}", f"sampling: {_json(sampling | {'seed': way.seed})}"]
    other = {key: getattr(theirs, key) for key in ("steps", "guidance", "solver")}
    if any(sampling[key] != value for key, value in other.items()):
        lines.append(f"reference_sampling: {_json(other)}")
    lines += ["prompts:", *(f"  - {_json(prompt)}" for prompt in demands.prompts), "gates:"]
    lines += [f"  - {_json(_written(gate))}" for gate in demands.gates]
    return "\n".join(lines) + "\n"


def sampled(usual: Usual, *said: Mapping[str, Any]) -> tuple[Way, Usual]:
    """How to draw: the model's own way, but for what is said, the last first; and the same as its sampling.json."""
    chosen = {name: getattr(usual, name) for name in ("pixels", "steps", "guidance", "solver")} | {"seed": 0}
    for one in said:
        chosen |= {name: value for name, value in one.items() if value is not None}
    seed = chosen.pop("seed")
    settled = Usual(**chosen)
    return Way(solver=settled.solver, steps=settled.steps, guidance=settled.guidance, seed=seed), settled


def _written(gate: Gate) -> dict[str, Any]:
    """A gate as somebody would write it, its net by name."""
    return gate.model_dump(exclude_defaults=True, exclude_none=True)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
