"""Evaluation samples through teacher and variant, measured: what the gates then judge.

Pictures are measured against the photographs, and where a gate asks for it against the teacher's pictures. Of any other
tensor (latents, predictions, hidden states) there is no other truth than the teacher's; where the recipe says so, its
model draws pictures with it, which are measured against those that the teacher draws.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from compress import drawn, feeds
from compress.components import kind_of, load_variant, read_arch
from compress.errors import UserError
from compress.nn.batches import Run, outputs
from compress.nn.cost import Cost
from compress.nn.surgery import float_twin
from compress.plan import Plan
from compress.recipe import Gate
from compress.records import Feed, Inputs, Variant
from compress.runs import Emit, RunFolder
from compress.store import ROOT, Store, key_of
from eval import compare, gates, metrics
from eval.metrics import latency

BATCH = 2  # samples measured at once
PICTURES = (compare.Metric(name="psnr"),)  # measured whatever the gates ask
MAPS = (compare.Metric(name="sqnr"),)  # of latents and predictions [n, c, h, w]
VECTORS = (*MAPS, compare.Metric(name="cosine"))  # of hidden states [n, t, c]
JUDGED_LATENCY_SECONDS = 12.0  # per comparison that a gate judges


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What candidates are judged on: the evaluation samples, and what the teacher makes of them."""

    names: tuple[str, ...]
    truth: torch.Tensor | None  # [n, 3, h, w] in [0, 1] of a component that makes pictures
    inputs: Inputs  # of the component, e.g. latents [n, z, h/8, w/8]
    reference: torch.Tensor  # [n, 3, h, w], or whatever tensors the component makes
    digest: str
    sheet: drawn.Sheet | None = None  # what the teacher draws in its model

    @property
    def takes(self) -> Literal["images", "tensors"]:
        """What metrics of its outputs are measured of."""
        return "tensors" if self.truth is None else "images"

    @property
    def usual(self) -> tuple[compare.Metric, ...]:
        """What is measured of every stage."""
        if self.truth is not None:
            return PICTURES
        return VECTORS if self.reference.dim() == 3 else MAPS

    @property
    def shape(self) -> str:
        """Of one sample: "256x256" of pictures, the first input's axes of anything else."""
        sizes = self.inputs[0].shape[1:] if self.truth is None else reversed(self.truth.shape[2:])
        return "x".join(map(str, sizes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A plan on its way: where its results go and who is told."""

    plan: Plan
    store: Store
    run: RunFolder
    teacher: Variant
    feed: Feed
    tell: Emit
    latencies: bool = True  # whether they are measured; a gate on one fails otherwise


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
    drawn: torch.Tensor | None = None  # pictures of the last stage's variant, where pictures are drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured of the teacher and after each stage; the last stage is the variant."""

    basis: Basis
    stages: tuple[StageSummary, ...]
    made: torch.Tensor  # what the variant, in torch, makes of the evaluation samples

    @property
    def final(self) -> StageSummary:
        """The variant."""
        return self.stages[-1]


def feed_of(plan: Plan) -> Feed:
    """The feed of the plan's component, its companions loaded."""
    kind = kind_of(read_arch(plan.teacher, plan.origins).kind)

    def load(companion: str) -> nn.Module:
        folder = plan.teacher if companion == feeds.ITSELF else plan.source.companions[companion]
        return load_variant(folder, origins=plan.origins).module

    return cast("Feed", feeds.of(kind).feed(plan.source, load))


def prepare(plan: Plan, feed: Feed, teacher: nn.Module) -> Basis:
    """Load the evaluation samples, and run the teacher on them."""
    found, part, data = feed.evaluation(), plan.recipe.component.rpartition("/")[2], plan.source.data
    family, seed, wanted = plan.teacher.parent, plan.recipe.seed, specs(plan.recipe.gates)
    return Basis(
        names=found.names,
        truth=found.truth,
        inputs=found.inputs,
        reference=outputs(teacher, found.inputs),
        digest=found.digest,
        sheet=drawn.draw_teacher(
            part, teacher, plan.drawn, family, data, seed, as_asked=bool(gates.metrics_of(wanted, takes="asked"))
        )
        if data.drawn
        else None,
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
        basis: What it was run on.
        candidate: What it made [n, ...].
        wanted: The gates.
        teacher: The teacher's own measurements (`own_metrics`).
        to_truth: The candidate's, where they were taken before.
    """
    ours = tuple(to_truth) or measure(basis, candidate, own_metrics(basis, wanted))
    if basis.truth is None:
        return ours
    tensors = gates.metrics_of(wanted, takes="tensors")
    direct = [spec for spec in wanted if (spec.of, spec.against) == ("candidate", "reference") and _absolute(spec)]
    to_teacher = measure(basis, candidate, gates.metrics_of(direct), "reference") if direct else ()
    as_tensors = _to_teacher(basis, candidate, tensors) if tensors else ()
    return (*ours, *(replace(m, of="reference") for m in teacher), *to_teacher, *as_tensors)


def drawn_by(basis: Basis, run: Run, batch: int, wanted: Sequence[gates.GateSpec]) -> drawn.Drawing:
    """What the model draws with a candidate, against what it draws with the teacher; nothing where none is asked.

    Args:
        basis: What the teacher drew.
        run: The candidate: a module, or a file in its runtime.
        batch: How many samples it takes at once.
        wanted: The gates.
    """
    if basis.sheet is None:
        return drawn.Drawing(images=torch.empty(0), measurements=())
    takes: tuple[metrics.Takes, ...] = ("images", "latents", "asked")
    asked = (*PICTURES, *(one for what in takes for one in gates.metrics_of(wanted, takes=what)))
    return drawn.measure(basis.sheet, run, batch, tuple(dict.fromkeys(asked)))


def _absolute(spec: gates.GateSpec) -> bool:
    return spec.min is not None or spec.max is not None


def own_metrics(basis: Basis, wanted: Sequence[gates.GateSpec]) -> tuple[compare.Metric, ...]:
    """The usual ones and every metric of such outputs that a gate names, once each."""
    return tuple(dict.fromkeys((*basis.usual, *gates.metrics_of(wanted, takes=basis.takes))))


def measure(
    basis: Basis,
    candidate: torch.Tensor,
    metrics: Sequence[compare.Metric],
    against: compare.Against = "ground_truth",
) -> tuple[compare.Measurement, ...]:
    """The candidate's pictures against the photographs or the teacher's; its other outputs against the teacher's."""
    if basis.truth is None:
        return _to_teacher(basis, candidate, metrics)
    pairs: list[tuple[compare.Of, compare.Against]] = [("candidate", against)]
    return compare.joined(
        compare.compare(ground_truth=truth, reference=reference, candidate=mine, metrics=metrics, pairs=pairs)
        for truth, reference, mine in zip(
            basis.truth.split(BATCH), basis.reference.split(BATCH), candidate.split(BATCH), strict=True
        )
    )


def _to_teacher(
    basis: Basis, candidate: torch.Tensor, metrics: Sequence[compare.Metric]
) -> tuple[compare.Measurement, ...]:
    return compare.joined(
        compare.compare_tensors(reference, mine, metrics)
        for reference, mine in zip(basis.reference.split(BATCH), candidate.split(BATCH), strict=True)
    )


def measured_once(
    store: Store,
    keys: tuple[str, str],
    basis: Basis,
    metrics: Sequence[compare.Metric],
    made: Callable[[], torch.Tensor],
) -> tuple[compare.Measurement, ...]:
    """`measure`, kept in the store under what was measured, on what, by which code; else `made` is called."""
    key, teacher = keys
    code = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "eval").rglob("*.py"))
        if "report" not in path.parts
    }
    stored = key_of(
        {
            "measured": key,
            "samples": basis.digest,
            "reference": None if basis.truth is not None else teacher,
            "metrics": [[m.name, m.net] for m in metrics],
            "code": code,
            "torch": torch.__version__,
        }
    )

    def build(folder: Path) -> None:
        rows = [compare.to_json(m) for m in measure(basis, made(), metrics)]
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
