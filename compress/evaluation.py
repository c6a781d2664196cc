"""Photographs through teacher and variant, measured: what the gates then judge."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from compress import feeds
from compress.components import kind_of, load_variant, read_arch
from compress.errors import UserError
from compress.nn.batches import outputs
from compress.nn.cost import Cost
from compress.nn.surgery import float_twin
from compress.plan import Plan
from compress.recipe import Gate
from compress.records import Feed, Inputs, Variant
from compress.runs import Emit, RunFolder
from compress.store import ROOT, Store, key_of
from eval import compare, gates
from eval.metrics import latency

BATCH = 2  # photographs measured at once
ALWAYS = compare.Metric(name="psnr")
JUDGED_LATENCY_SECONDS = 12.0  # per comparison that a gate judges


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What candidates are judged on: the evaluation samples, and what the teacher makes of them."""

    names: tuple[str, ...]
    truth: torch.Tensor  # [n, 3, h, w] in [0, 1]
    inputs: Inputs  # of the component, e.g. latents [n, z, h/8, w/8]
    reference: torch.Tensor  # [n, 3, h, w]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A plan on its way: where its results go and who is told."""

    plan: Plan
    store: Store
    run: RunFolder
    teacher: Variant
    feed: Feed
    tell: Emit


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """The variant as one stage left it; the first summary is the teacher."""

    method: str
    config: str
    seconds: float | None
    cached: bool
    cost: Cost
    measurements: tuple[compare.Measurement, ...]
    latency: latency.LatencyRatio | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured of the teacher and after each stage; the last stage is the variant."""

    basis: Basis
    stages: tuple[StageSummary, ...]

    @property
    def final(self) -> StageSummary:
        """The variant."""
        return self.stages[-1]


def feed_of(plan: Plan) -> Feed:
    """The feed of the plan's component, its companions loaded."""
    kind = kind_of(read_arch(plan.teacher, plan.origins).kind)

    def load(companion: str) -> nn.Module:
        return load_variant(plan.companions[companion], origins=plan.origins).module

    return cast("Feed", feeds.of(kind).feed(plan.recipe.data, load, plan.recipe.seed))


def prepare(feed: Feed, teacher: nn.Module) -> Basis:
    """Load and encode the evaluation photographs, and run the teacher on them."""
    found = feed.evaluation()
    if found.truth is None:
        raise UserError("only components that make pictures can be judged so far")
    return Basis(
        names=found.names,
        truth=found.truth,
        inputs=found.inputs,
        reference=outputs(teacher, found.inputs),
        digest=found.digest,
    )


def specs(recipe_gates: Sequence[Gate]) -> tuple[gates.GateSpec, ...]:
    """The recipe's gates as the judge takes them."""
    names = (
        "metric",
        "net",
        "against",
        "of",
        "statistic",
        "min",
        "max",
        "max_drop",
        "max_rise",
        "max_ratio",
        "max_gain",
        "undecided",
    )
    return tuple(gates.GateSpec(**{name: getattr(gate, name) for name in names}) for gate in recipe_gates)


def complete(
    basis: Basis,
    candidate: torch.Tensor,
    wanted: Sequence[gates.GateSpec],
    teacher: Sequence[compare.Measurement],
    to_truth: Sequence[compare.Measurement] = (),
) -> tuple[compare.Measurement, ...]:
    """Everything that the gates ask of a candidate: to the photographs, the teacher to them, and to the teacher.

    Args:
        basis: What was decoded.
        candidate: The candidate's pictures [n, 3, h, w].
        wanted: The gates.
        teacher: The teacher's own measurements against the photographs.
        to_truth: The candidate's, where they were taken before.
    """
    metrics = image_metrics(wanted)
    ours = tuple(to_truth) or measure(basis, candidate, metrics, "ground_truth")
    direct = [spec for spec in wanted if (spec.of, spec.against) == ("candidate", "reference") and _absolute(spec)]
    to_teacher = measure(basis, candidate, gates.metrics_of(direct), "reference") if direct else ()
    return (*ours, *(replace(m, of="reference") for m in teacher), *to_teacher)


def _absolute(spec: gates.GateSpec) -> bool:
    return spec.min is not None or spec.max is not None


def image_metrics(wanted: Sequence[gates.GateSpec]) -> tuple[compare.Metric, ...]:
    """PSNR and every image metric that a gate names, once each."""
    return tuple(dict.fromkeys((ALWAYS, *gates.metrics_of(wanted))))


def measure(
    basis: Basis, candidate: torch.Tensor, metrics: Sequence[compare.Metric], against: compare.Against
) -> tuple[compare.Measurement, ...]:
    """The candidate's pictures against the photographs, or against the teacher's pictures."""
    pairs: list[tuple[compare.Of, compare.Against]] = [("candidate", against)]
    return compare.joined(
        compare.compare(ground_truth=truth, reference=reference, candidate=mine, metrics=metrics, pairs=pairs)
        for truth, reference, mine in zip(
            basis.truth.split(BATCH), basis.reference.split(BATCH), candidate.split(BATCH), strict=True
        )
    )


def measured_once(
    store: Store, key: str, basis: Basis, metrics: Sequence[compare.Metric], module: nn.Module
) -> tuple[compare.Measurement, ...]:
    """`measure` against the photographs, kept in the store under what was measured, on what, by which code."""
    code = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "eval").rglob("*.py"))
        if "report" not in path.parts
    }
    stored = key_of(
        {
            "measured": key,
            "photographs": basis.digest,
            "metrics": [[m.name, m.net] for m in metrics],
            "code": code,
            "torch": torch.__version__,
        }
    )

    def build(folder: Path) -> None:
        decoded = outputs(module, basis.inputs)
        rows = [compare.to_json(m) for m in measure(basis, decoded, metrics, "ground_truth")]
        (folder / "measurements.json").write_text(json.dumps(rows, allow_nan=False), encoding="utf-8")

    folder = store.get(stored) or store.put(stored, build)
    rows = json.loads((folder / "measurements.json").read_text(encoding="utf-8"))
    return tuple(compare.from_json(row) for row in rows)


def torch_latency(teacher: nn.Module, module: nn.Module, example: Inputs, seconds: float) -> latency.LatencyRatio:
    """Structure against structure in torch: quantized layers run in float here, so integers gain nothing."""
    structure = float_twin(module)

    def timed(m: nn.Module) -> Callable[[], object]:
        def work() -> object:
            with torch.no_grad():
                return m(*example)

        return work

    return latency.paired_ratio(
        timed(teacher),
        timed(structure),
        sampling=latency.Sampling(seconds=seconds, min_pairs=7),
        runtime="torch float32",
    )


def check_finite(module: nn.Module, name: str) -> None:
    """Refuse a stage's result that holds NaN or Inf.

    Raises:
        UserError: names the stage and the tensors.
    """
    bad = [n for n, t in module.state_dict().items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise UserError(
            f"{name} left NaN or Inf in {', '.join(bad[:5])}; lower its learning rate, or exclude these layers"
        )
