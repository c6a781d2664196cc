"""Put a new variant into the place of an entry: only past regression gates against that entry, which is kept.

The entry that makes room goes to archive/<name>/<number> in the same zoo, as it was, and can be promoted back.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress import standalone_gate, zoo_placing
from compress import zoo as zoos
from compress.errors import UserError
from compress.given import Given, planned_with
from compress.recipe import Recipe
from compress.runs import Emit, Event
from compress.written import Gate
from compress.zoo_entry import entry_from_run
from compress.zoo_index import read_card
from eval.gates import Verdict

# How much worse than the entry it replaces a variant may be where no gates file says; in the metric's own unit, or as
# a ratio. Below what a person sees side by side, above what another host's rounding changes.
REGRESSION: dict[str, tuple[str, float]] = {
    "psnr": ("max_drop", 0.1),
    "ssim": ("max_drop", 0.005),
    "ms_ssim": ("max_drop", 0.005),
    "lpips": ("max_rise", 0.005),
    "sqnr": ("max_drop", 0.5),
    "cosine": ("max_drop", 0.002),
    "latent_sqnr": ("max_drop", 1.0),
    "latency": ("max_ratio", 1.1),
    "peak_memory": ("max_ratio", 1.1),
    "size": ("max_ratio", 1.02),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What was judged, and what became of it."""

    name: str
    verdicts: tuple[Verdict, ...]
    place: Path | None  # None: a gate failed, and the zoo is as it was
    archived: Path | None  # where the entry that made room is now

    @property
    def passed(self) -> bool:
        """Whether the candidate has the place."""
        return self.place is not None


def promote(candidate: Path, zoo: Path, *, recipe: Recipe, given: Given, emit: Emit) -> Promotion:
    """Judge a candidate against the entry of its name, and replace that entry if every gate passes.

    Args:
        candidate: an entry's folder of any zoo (also of this one's archive), or a run that passed.
        zoo: where it is to go.
        recipe: whose component, photographs and gates to judge by; see `with_regression`.
        given: photographs or a checkpoint in the place of the recipe's.
        emit: told of everything that happens.

    Raises:
        UserError: the candidate is neither; or it is the entry already.
    """
    with tempfile.TemporaryDirectory(prefix="mdcompress-") as temporary:
        folder = _entry_folder(candidate, Path(temporary))
        name = read_card(folder).name
        place = zoo / name
        if place.exists() and zoo_placing.listing(place).files == zoo_placing.listing(folder).files:
            raise UserError(f"{candidate}: {place} is the same already, byte for byte; there is nothing to promote")
        old = place if place.exists() else None
        gates = recipe.gates if old else tuple(gate for gate in recipe.gates if gate.against != "baseline")
        standalone_gate.check_loads(folder)
        case = standalone_gate.prepare(planned_with(replace(recipe, gates=gates), given), emit)
        judged = standalone_gate.judge_path(folder, case, emit, old)
        verdicts = tuple(verdict for one in judged for verdict in one.verdicts)
        if not all(verdict.passed for verdict in verdicts):
            return Promotion(name=name, verdicts=verdicts, place=None, archived=None)
        with zoo_placing.beside(zoo, name) as fresh:
            zoo_placing.copy_listed(folder, fresh)
            place, archived = zoo_placing.settle(zoo, name, fresh, replace=True, keep_old=True)
        emit(Event(kind="added", name=name, text=str(place)))
        return Promotion(name=name, verdicts=verdicts, place=place, archived=archived)


def with_regression(recipe: Recipe) -> Recipe:
    """The recipe's gates, and one against the entry to be replaced for each metric that they name, and for size."""
    asked = dict.fromkeys((gate.metric, gate.net) for gate in recipe.gates if gate.of == "candidate")
    asked |= {("size", None): None}
    added = [_gate(metric, net) for metric, net in asked if metric in REGRESSION]
    return replace(recipe, gates=(*recipe.gates, *added))


def _gate(metric: str, net: str | None) -> Gate:
    kind, limit = REGRESSION[metric]
    written: dict[str, Any] = {"metric": metric, "against": "baseline", kind: limit} | ({"net": net} if net else {})
    return Gate.model_validate(written)


def _entry_folder(candidate: Path, temporary: Path) -> Path:
    if (candidate / "card.json").is_file():
        return candidate
    if (candidate / "status.json").is_file():
        return zoos.add(temporary, entry_from_run(candidate))
    raise UserError(f"{candidate}: nothing to promote; give an entry's folder (card.json) or a run that passed")
