"""Gates on something that already exists: a variant folder, a run, an exported file, a zoo entry."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from compress import drawn, evaluation, registry
from compress.components import load_variant
from compress.errors import UserError
from compress.export_stage import artifact_with, format_of, is_artifact, measures_latency, teacher_file, timed
from compress.files import read_json, sha256, size_of, write_tensors
from compress.nn import cost
from compress.nn.batches import named, outputs, take
from compress.plan import Plan
from compress.records import Inputs, Variant
from compress.runs import Emit, Event
from compress.store import Store, default_root
from eval import baseline as baselines
from eval import compare, gates
from eval.metrics import latency, peak_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What candidates are judged against, run and measured once."""

    plan: Plan
    teacher: Variant
    basis: evaluation.Basis
    specs: tuple[gates.GateSpec, ...]
    of_teacher: tuple[compare.Measurement, ...]

    @property
    def example(self) -> Inputs:
        """The inputs of one call."""
        return take(self.basis.inputs, 0, 1)

    @property
    def conditions(self) -> baselines.Conditions:
        """What the numbers depend on besides the candidate."""
        return baselines.Conditions(
            data=self.basis.digest,
            resolution=self.basis.shape,
            reference=self.plan.teacher_key,
            host=latency.host(),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taken:
    """One candidate, run and measured."""

    subject: str  # "variant", "onnx"
    path: Path
    outputs: torch.Tensor  # [n, ...]
    measurements: tuple[compare.Measurement, ...]
    latency: latency.LatencyRatio | None  # None: no gate asks for it
    sizes: gates.Sizes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """One candidate and what its gates say."""

    taken: Taken
    now: baselines.Baseline
    verdicts: tuple[gates.Verdict, ...]
    before: baselines.Baseline | None = None  # what it was compared with, where a gate asks for that

    def without_baseline(self) -> "Judged":
        """The same without the gates against a baseline, for when it is about to be replaced."""
        return replace(self, verdicts=tuple(v for v in self.verdicts if v.against != "baseline"))


def prepare(plan: Plan, tell: Emit) -> Case:
    """Run the teacher on the evaluation samples and measure what it makes."""
    tell(Event(kind="started", name="running the teacher"))
    teacher = load_variant(plan.teacher, plan.recipe.component, origins=plan.origins)
    basis = evaluation.prepare(plan, evaluation.feed_of(plan), teacher.module)
    specs = evaluation.specs(plan.recipe.gates)
    of_teacher = evaluation.measure(basis, basis.reference, evaluation.own_metrics(basis, specs))
    return Case(plan=plan, teacher=teacher, basis=basis, specs=specs, of_teacher=of_teacher)


def check_loads(path: Path) -> None:
    """Load every file at `path` in its runtime: what is broken or not installed is known before the teacher runs.

    Raises:
        UserError: nothing there that can be judged, or a file that its runtime cannot load.
        MissingExtra: the runtime is not installed.
    """
    for target in filter(is_artifact, candidates(path)):
        registry.load(f"export.{format_of(target)}").load(target, threads=1)


def judge_path(path: Path, case: Case, tell: Emit, baseline: Path | None = None) -> tuple[Judged, ...]:
    """Verdicts on whatever is at `path`: one candidate, or every file of a zoo entry.

    Args:
        path: A variant folder, a run directory, an exported file or a zoo entry.
        case: What it is judged against.
        tell: Told of everything that happens.
        baseline: A baseline file or a zoo entry, for gates against a baseline.

    Raises:
        UserError: nothing there that can be judged; says what can. A zoo entry's file is not the one listed.
        EvalError: the baseline cannot be read.
    """
    taken = [take_path(target, case, tell) for target in candidates(path)]
    wanted = any(spec.against == "baseline" for spec in case.specs)
    stored = stored_baselines(baseline, case, tell) if wanted and baseline is not None else {}
    return tuple(_judged(case, one, stored) for one in taken)


def _judged(case: Case, taken: Taken, stored: dict[str, baselines.Baseline]) -> Judged:
    conditions, before = case.conditions, stored.get(taken.subject)
    comparison = None if before is None else baselines.Comparison(stored=before, now=conditions)
    verdicts = gates.judge(
        case.specs,
        taken.measurements,
        subject=taken.subject,
        latency=taken.latency,
        sizes=taken.sizes,
        baseline=comparison,
    )
    now = baselines.of_now(conditions, taken.measurements, latency=taken.latency, sizes=taken.sizes)
    return Judged(taken=taken, now=now, verdicts=verdicts, before=before)


def stored_baselines(path: Path, case: Case, tell: Emit) -> dict[str, baselines.Baseline]:
    """The baselines in a file; or those of a zoo entry, whose files are measured here and now.

    Raises:
        UserError, EvalError: it cannot be read.
    """
    if not path.is_dir():
        return baselines.read(path)
    taken = [take_path(target, case, tell) for target in candidates(path)]
    return {
        one.subject: baselines.of_now(case.conditions, one.measurements, latency=one.latency, sizes=one.sizes)
        for one in taken
    }


def candidates(path: Path) -> tuple[Path, ...]:
    """The folder or files that a path stands for.

    Raises:
        UserError: there is nothing that can be judged; or a file of a zoo entry is not the one that it lists.
    """
    if (path / "card.json").exists():
        card = read_json(path / "card.json")
        if card.get("drawn"):
            raise UserError(
                f"{path}: a bundle, a whole model, where one component is judged; give one of its files, or judge the "
                "whole with: mdcompress zoo bundle NAME --model FOLDER"
            )
        files = sorted(card["files"].items())
        return tuple(dict.fromkeys(artifact_with(_listed(path, name, entry), path) for name, entry in files))
    folder = path / "variant" if (path / "variant" / "arch.json").exists() else path
    if not (folder / "arch.json").exists() and not is_artifact(path):
        raise UserError(
            f"{path}: nothing to judge; give a variant folder (arch.json), a run directory, an exported file, or a zoo "
            "entry (card.json)"
        )
    return (folder,)


def _listed(entry: Path, name: str, listed: dict[str, object]) -> Path:
    path = entry / name
    if not path.is_file() or sha256(path) != listed["sha256"]:
        raise UserError(
            f"{path} is missing or stale: it is not the file that {entry / 'card.json'} lists; pull it again"
        )
    return path


def take_path(path: Path, case: Case, tell: Emit) -> Taken:
    """Run and measure one candidate: a component folder in torch, a file in its own runtime."""
    tell(Event(kind="started", name=f"measuring {path.name}"))
    taken = _take_file(path, case) if is_artifact(path) else _take_variant(path, case)
    if not _asked(case.specs, "peak_memory"):
        return taken
    tell(Event(kind="started", name="measuring memory in processes of their own"))
    return _with_peaks(taken, case)


def _asked(specs: Sequence[gates.GateSpec], metric: str) -> bool:
    return any(spec.metric == metric for spec in specs)


def _take_variant(folder: Path, case: Case) -> Taken:
    variant = load_variant(folder, origins=case.plan.origins)
    pictures = outputs(variant.module, case.basis.inputs)
    by_variant = evaluation.drawn_by(case.basis, variant.module, drawn.AT_ONCE, case.specs)
    taken = None
    if _asked(case.specs, "latency"):
        seconds = evaluation.JUDGED_LATENCY_SECONDS
        taken = evaluation.torch_latency(case.teacher.module, variant.module, case.example, seconds)
    return Taken(
        subject="variant",
        path=folder,
        outputs=pictures,
        measurements=evaluation.complete(case.basis, pictures, case.specs, case.of_teacher) + by_variant.measurements,
        latency=taken,
        sizes=gates.Sizes(
            candidate_bytes=cost.measure(variant.module, case.example).weight_bytes,
            reference_bytes=cost.measure(case.teacher.module, case.example).weight_bytes,
        ),
    )


def _take_file(path: Path, case: Case) -> Taken:
    name = format_of(path)
    exporter = registry.load(f"export.{name}")
    reference = _teacher_file(case, name)
    run = exporter.load(path, threads=torch.get_num_threads())
    pictures = outputs(run, case.basis.inputs, 1)
    by_file = evaluation.drawn_by(case.basis, run, 1, case.specs)
    taken = None
    if _asked(case.specs, "latency") and measures_latency(exporter):
        limits = gates.latency_limits(case.specs)
        taken = timed(exporter, path, reference, case.example, evaluation.JUDGED_LATENCY_SECONDS, limits)
    return Taken(
        subject=name,
        path=path,
        outputs=pictures,
        measurements=evaluation.complete(case.basis, pictures, case.specs, case.of_teacher) + by_file.measurements,
        latency=taken,
        sizes=gates.Sizes(candidate_bytes=size_of(path), reference_bytes=size_of(reference)),
    )


def _teacher_file(case: Case, format_name: str) -> Path:
    return teacher_file(case.plan, Store(default_root()), format_name, case.teacher, case.example)


def _with_peaks(taken: Taken, case: Case) -> Taken:
    """The memory of both at their peaks, each in a process of its own."""
    file = is_artifact(taken.path)
    function = f"compress.memory_child:{'artifact' if file else 'variant'}"
    reference = _teacher_file(case, taken.subject) if file else case.plan.teacher
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.safetensors"
        write_tensors(inputs, named(case.example))
        ours, theirs = (
            peak_memory.measured(function, [str(model.resolve()), str(inputs)]).added
            for model in (taken.path, reference)
        )
    return replace(taken, sizes=taken.sizes._replace(candidate_peak=ours, reference_peak=theirs))
