"""A bundle in another one's place: only past gates against the pictures of the one that is there, which is kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from compress import zoo_placing
from compress.bundle_contest import Asked, as_baseline, contender, judged, reference_of
from compress.bundle_gates import BundleDemands, read_bundle_demands
from compress.errors import UserError
from compress.generation import threads_here
from compress.given import NOTHING, Given
from compress.runs import Emit, Event
from compress.written import Gate
from compress.zoo_index import read_card
from compress.zoo_promote import Promotion
from eval import gates

# How much worse than the bundle it replaces one may be where no gates file says, both to the float model's pictures.
# Wider than of a component (zoo_promote.REGRESSION): a picture drawn in many steps moves more than one decoded.
REGRESSION: dict[str, tuple[str, float]] = {
    "lpips": ("max_rise", 0.01),
    "psnr": ("max_drop", 0.5),
    "ssim": ("max_drop", 0.01),
    "ms_ssim": ("max_drop", 0.01),
    "latent_sqnr": ("max_drop", 1.0),
    "latency": ("max_ratio", 1.1),
    "size": ("max_ratio", 1.02),
}


def is_bundle(candidate: Path) -> bool:
    """Whether a folder is a zoo entry of a whole model."""
    return (candidate / "card.json").is_file() and read_card(candidate).is_bundle


def promote(
    candidate: Path, zoo: Path, *, gates_file: Path | None, reference: str | None, given: Given, tell: Emit
) -> Promotion:
    """Judge a bundle against the float model and against the bundle of its name, and replace that if all gates pass.

    Args:
        candidate: a bundle's folder, of any zoo (also of this one's archive).
        zoo: where it is to go.
        gates_file: None: the candidate's recipe.yaml, and a gate against the old one for each metric that it names.
        reference: the float model; None: the one that the gates file names.
        given: what stands in for a component's recipe; a bundle has none.
        tell: told of everything that happens.

    Raises:
        UserError: it is the entry already, or the entry is of a component; or as `zoo_bundle.bundle`.
    """
    if given != NOTHING:
        raise UserError("a bundle is compared with pictures that --reference draws; leave the other flags out")
    name = read_card(candidate).name
    place = zoo / name
    old = place if (place / "card.json").is_file() else None
    if old and zoo_placing.listing(old).files == zoo_placing.listing(candidate).files:
        raise UserError(f"{candidate}: {place} is the same already, byte for byte; there is nothing to promote")
    if old and not is_bundle(old):
        raise UserError(f"{place}: this entry is of one component; a bundle does not take its place")
    demands = read_bundle_demands(gates_file or candidate / "recipe.yaml", baseline=True)
    if gates_file is None:
        demands = with_regression(demands)
    if old is None:
        demands = replace(demands, gates=tuple(gate for gate in demands.gates if gate.against != "baseline"))
    verdicts = _judged(candidate, old, demands, reference=reference, tell=tell)
    if not all(verdict.passed for verdict in verdicts):
        return Promotion(name=name, verdicts=verdicts, place=None, archived=None)
    with zoo_placing.beside(zoo, name) as fresh:
        zoo_placing.copy_listed(candidate, fresh)
        place, archived = zoo_placing.settle(zoo, name, fresh, replace=True, keep_old=True)
    tell(Event(kind="added", name=name, text=str(place)))
    return Promotion(name=name, verdicts=verdicts, place=place, archived=archived)


def with_regression(demands: BundleDemands) -> BundleDemands:
    """The gates, and one against the bundle to be replaced for each metric that they name, and for size."""
    asked = dict.fromkeys((gate.metric, gate.net) for gate in demands.gates) | {("size", None): None}
    added = [_gate(metric, net) for metric, net in asked if metric in REGRESSION]
    return replace(demands, gates=(*demands.gates, *added))


def _gate(metric: str, net: str | None) -> Gate:
    kind, limit = REGRESSION[metric]
    written: dict[str, Any] = {"metric": metric, "against": "baseline", kind: limit} | ({"net": net} if net else {})
    return Gate.model_validate(written)


def _judged(
    candidate: Path, old: Path | None, demands: BundleDemands, *, reference: str | None, tell: Emit
) -> tuple[gates.Verdict, ...]:
    threads = threads_here()
    asked = Asked(model=str(candidate), reference=reference, threads=threads)
    ours = contender(asked, demands)
    theirs = reference_of(asked, demands, ours, tell)
    stored = None
    if old is not None:
        own_way = demands.sampling.model_copy(update={"steps": None, "guidance": None, "solver": None})
        before = contender(replace(asked, model=str(old)), replace(demands, sampling=own_way))
        stored = as_baseline(before, theirs, demands, tell, threads=threads)
    return judged(ours, theirs, demands, tell, threads=threads, baseline=stored).verdicts
