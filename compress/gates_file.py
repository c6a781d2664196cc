"""A gates file: what a variant or a file must pass, without a recipe of how to make one.

    schema: 1
    component: md-tiny/decoder
    evaluation: {source: photographs, count: 16, size: 256}
    baseline: baselines/decoder.json        # a baseline file or a zoo entry, from here; only for against: baseline
    gates:
      - {metric: psnr, max_drop: 0.5}

A recipe serves as well: its component, evaluation photographs and gates are taken.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from compress.located import RecipeError, read_document
from compress.recipe import Reading, Recipe, find, read_recipe
from compress.schema import Schema
from compress.written import Data, Drawn, Gate, Pictures, Word


class WholeGates(Schema):
    """The file as written, before its gates have been looked at."""

    version: Literal[1] = Field(alias="schema", description="of gates files; this is version 1")
    component: Word = Field(description="the reference: a preset such as md-tiny/decoder, or a checkpoint's component")
    seed: int = Field(0, ge=0, lt=2**32)
    evaluation: Pictures = Field(description="the photographs to judge on")
    drawn: Drawn | None = Field(None, description="pictures, for gates on pictures of what makes none itself")
    baseline: Word | None = Field(None, description="a baseline file or a zoo entry, relative to this file")
    gates: list[Any] = Field(min_length=1, description="what must be passed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What is asked, as a recipe without stages; and where the baseline is."""

    recipe: Recipe
    baseline: Path | None


def read_demands(name_or_path: str, *, baseline_given: bool = False) -> Demands:
    """Read a gates file, or take the gates of a recipe; every mistake at once.

    Args:
        name_or_path: the file, or the name of a recipe that comes with mdcompress.
        baseline_given: whether something else than the file says what the baseline is.

    Raises:
        RecipeError: the message has every mistake, one a line.
        UserError: neither a file nor a recipe's name.
    """
    path = find(name_or_path)
    document = read_document(path)
    if "stages" in document.data:
        return Demands(recipe=read_recipe(path), baseline=None)
    reading = Reading(document)
    whole = reading.validated(WholeGates, reading.written, ())
    gates = [reading.validated(Gate, entry, ("gates", index)) for index, entry in enumerate(reading.listed("gates"))]
    if reading.written.get("baseline") is None and not baseline_given:
        for index, gate in enumerate(gates):
            if gate and gate.against == "baseline":
                reading.note(("gates", index, "against"), "there is no baseline; name it: baseline: FILE")
    if reading.mistakes or whole is None:
        raise RecipeError(path, reading.mistakes)
    recipe = Recipe(
        name=path.stem,
        component=whole.component,
        seed=whole.seed,
        data=Data(
            calibration=Pictures(source=whole.evaluation.source, count=1, size=whole.evaluation.size),
            evaluation=whole.evaluation,
            drawn=whole.drawn,
        ),
        stages=(),
        gates=tuple(gate for gate in gates if gate),
    )
    return Demands(recipe=recipe, baseline=None if whole.baseline is None else path.parent / whole.baseline)
