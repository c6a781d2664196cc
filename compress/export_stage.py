"""The passed variant -> one file per format, each loaded by its own runtime and gated again before it may ship."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from compress import evaluation, registry
from compress.components import kind_of
from compress.errors import UserError
from compress.evaluation import Basis, Job, Measured
from compress.export._labels import described
from compress.files import copy_artifact, size_of
from compress.nn.batches import central_crop, outputs, take
from compress.nn.qmodules import quantized
from compress.plan import Plan
from compress.recipe import PlannedExport
from compress.records import Inputs, Variant
from compress.runs import Event
from compress.store import Store, code_digest, key_of
from compress.verdicts import tally
from eval import compare, gates
from eval.metrics import latency

# An integer kernel and its float simulation round ties apart, and normalisation spreads the difference; what the file
# loses in quality is for the recipe's own gates, this one is for a wrong graph. In dB, on the worst sample.
PARITY_OF_PICTURES = gates.GateSpec(metric="psnr", against="reference", statistic="worst", min=30.0)
PARITY_OF_TENSORS = gates.GateSpec(metric="sqnr", against="reference", statistic="worst", min=20.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """One artifact: the file, what its own runtime makes of the samples, and what the gates say of that."""

    format: str
    path: Path
    outputs: torch.Tensor  # [n, ...], of this file in its runtime
    measurements: tuple[compare.Measurement, ...]
    latency: latency.LatencyRatio | None  # None: what runs the file here is not what will run it
    sizes: gates.Sizes
    verdicts: tuple[gates.Verdict, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a file is made from."""

    variant: Variant
    key: str
    metadata: dict[str, str]


def export_and_gate(job: Job, variant: Variant, measured: Measured) -> tuple[Exported, ...]:
    """Every format of the recipe, one after the other."""
    return tuple(one_format(job, item, variant, measured) for item in job.plan.recipe.export)


def one_format(job: Job, item: PlannedExport, variant: Variant, measured: Measured) -> Exported:
    """Write one format of the recipe, run it in its own runtime and judge it.

    Raises:
        UserError: the format cannot hold the variant, or its runtime cannot run the file.
    """
    started, plan, basis = time.monotonic(), job.plan, measured.basis
    name = f"export {item.format}"
    job.tell(Event(kind="started", name=name))
    job.tell(Event(kind="progress", name=name, text="writing the variant", done=0, total=3))
    made = variant_file(plan, job.store, item, variant, take(basis.inputs, 0, 1))
    path = job.run.root / "artifacts" / made.name
    copy_artifact(made, path)
    job.tell(Event(kind="progress", name=name, text="writing the teacher, for comparison", done=1, total=3))
    theirs = teacher_file(plan, job.store, item.format, job.teacher, take(basis.inputs, 0, 1))
    job.tell(Event(kind="progress", name=name, text="running, measuring and timing the file", done=2, total=3))
    of_teacher = measured.stages[0].measurements
    judged = judge_file(plan, path, theirs, basis, of_teacher, latencies=job.latencies)
    parity = PARITY_OF_TENSORS if basis.truth is None else PARITY_OF_PICTURES
    in_torch = replace(basis, reference=measured.made)
    same = evaluation.measure(in_torch, judged.outputs, gates.metrics_of((parity,), takes=in_torch.takes), "reference")
    exporter = registry.load(f"export.{item.format}")
    verdicts = (
        *judged.verdicts,
        *gates.judge((parity,), same, subject=f"{item.format} to torch"),
        *_at_another_size(exporter, item, path, variant, basis),
        _integers_kept(exporter, path, variant, item.format),
    )
    seconds = round(time.monotonic() - started, 1)
    job.tell(Event(kind="exported", name=name, text=path.name, seconds=seconds))
    job.tell(Event(kind="judged", name=item.format, text=tally(verdicts)))
    return replace(judged, verdicts=verdicts)


def _at_another_size(
    exporter: Any, item: PlannedExport, path: Path, variant: Variant, basis: Basis
) -> tuple[gates.Verdict, ...]:
    """Where height and width are free: parity on the middle of one sample too, half as large."""
    sides = [x.shape[-1] for x in basis.inputs if x.dim() == 4]
    if not getattr(item.config, "dynamic", False) or not sides or sides[0] < 2:
        return ()
    smaller = central_crop(take(basis.inputs, 0, 1), sides[0] // 2)
    expected = outputs(variant.module, smaller)
    made = outputs(exporter.load(path, threads=torch.get_num_threads()), smaller, 1)
    truth = None if basis.truth is None else expected  # what counts here is the file against torch
    half = replace(basis, names=basis.names[:1], inputs=smaller, reference=expected, truth=truth)
    parity = PARITY_OF_TENSORS if truth is None else PARITY_OF_PICTURES
    same = evaluation.measure(half, made, gates.metrics_of((parity,), takes=half.takes), "reference")
    return gates.judge((parity,), same, subject=f"{item.format} to torch, half the size")


def judge_file(
    plan: Plan,
    path: Path,
    reference: Path,
    basis: Basis,
    of_teacher: tuple[compare.Measurement, ...],
    *,
    latencies: bool = True,
) -> Exported:
    """A file in its own runtime, by the recipe's gates.

    Args:
        plan: Whose gates.
        path: The file to judge; its suffix names the format.
        reference: The teacher in the same format.
        basis: What it is run on.
        of_teacher: The teacher's own measurements.
        latencies: Whether they are measured. Without it, a gate on latency fails.
    """
    name = format_of(path)
    exporter, threads = registry.load(f"export.{name}"), torch.get_num_threads()
    run = exporter.load(path, threads=threads)
    made = outputs(run, basis.inputs, 1)
    specs, example = evaluation.specs(plan.recipe.gates), take(basis.inputs, 0, 1)
    measurements = evaluation.complete(basis, made, specs, of_teacher)
    measurements += evaluation.drawn_by(basis, run, 1, specs).measurements
    taken, apart = None, unmeasured(plan, exporter, name)
    if latencies and measures_latency(exporter):
        limits = gates.latency_limits(specs)
        taken = timed(exporter, path, reference, example, evaluation.JUDGED_LATENCY_SECONDS, limits)
    judged = [spec for spec in specs if measures_latency(exporter) or spec.metric != "latency"]
    sizes = gates.Sizes(candidate_bytes=size_of(path), reference_bytes=size_of(reference))
    return Exported(
        format=name,
        path=path,
        outputs=made,
        measurements=measurements,
        latency=taken,
        sizes=sizes,
        verdicts=(*gates.judge(judged, measurements, subject=name, latency=taken, sizes=sizes), *apart),
    )


def measures_latency(exporter: Any) -> bool:
    """Whether a format is run here by what runs it where it ships, so that its speed means something."""
    return getattr(exporter, "MEASURES_LATENCY", True)


def unmeasured(plan: Plan, exporter: Any, name: str) -> tuple[gates.Verdict, ...]:
    """A row for each latency gate that nothing here can judge for this format: passed only if another one judges it."""
    if measures_latency(exporter):
        return ()
    formats = [item.format for item in plan.recipe.export]
    others = [other for other in formats if measures_latency(registry.load(f"export.{other}"))]
    why = f"not measured: {exporter.RUNTIME} runs the file here, whose speed is not a phone's"
    return tuple(
        gates.Verdict(
            subject=name,
            metric="latency",
            net=None,
            statistic="median ratio",
            of="candidate",
            against="reference",
            kind="max" if spec.max_ratio is None else "max_ratio",
            value=None,
            limit=float(spec.max_ratio or spec.max or 0.0),
            passed=bool(others),
            elsewhere=bool(others),
            unit="ratio",
            reason=f"{why}; judged on {', '.join(others)}"
            if others
            else f"failed: {why}; export a format with a runtime of its own beside it, or leave the latency gate out",
        )
        for spec in evaluation.specs(plan.recipe.gates)
        if spec.metric == "latency"
    )


def formats() -> dict[str, str]:
    """The format of every suffix."""
    return {registry.load(name).SUFFIX: name.removeprefix("export.") for name in registry.names("export")}


def is_artifact(path: Path) -> bool:
    """Whether a file or a folder is one of a format that exporters write, by its suffix."""
    return path.is_file() or (path.is_dir() and path.suffix in formats())


def artifact_with(file: Path, entry: Path) -> Path:
    """The artifact that a file of a zoo entry is, or belongs to where a folder is one artifact."""
    folders = [entry.joinpath(*parts) for parts in _beginnings(file.relative_to(entry).parts[:-1])]
    return next((folder for folder in folders if folder.suffix in formats()), file)


def _beginnings(parts: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [parts[: count + 1] for count in range(len(parts))]


def timed(
    exporter: Any, path: Path, reference: Path, example: Inputs, seconds: float, limits: tuple[float, ...] = ()
) -> latency.LatencyRatio:
    """A file's latency over another's in the same format, with as many threads as torch has.

    Some runtimes have faster kernels on this host than those that compute what a phone does: these are timed.
    """
    load: Callable[..., Callable[..., torch.Tensor]] = getattr(exporter, "load_for_timing", exporter.load)
    threads = torch.get_num_threads()
    candidate, theirs = load(path, threads=threads), load(reference, threads=threads)
    return latency.paired_ratio(
        lambda: theirs(*example),
        lambda: candidate(*example),
        sampling=latency.Sampling(seconds=seconds, limits=limits),
        runtime=exporter.RUNTIME,
        threads=threads,
    )


def format_of(path: Path) -> str:
    """The format of an artifact, by its suffix.

    Raises:
        UserError: no exporter writes such files; names those that there are.
    """
    suffixes = formats()
    if path.suffix not in suffixes:
        raise UserError(f"{path}: no format has the suffix '{path.suffix}'; known: {', '.join(sorted(suffixes))}")
    return suffixes[path.suffix]


def variant_file(plan: Plan, store: Store, item: PlannedExport, variant: Variant, example: Inputs) -> Path:
    """The plan's variant in a format."""
    metadata = {"component": variant.component, "recipe": plan.recipe.name, "recipe_sha256": plan.digest}
    return _file(store, item, Source(variant=variant, key=plan.variant_key, metadata=metadata), example)


def teacher_file(plan: Plan, store: Store, format_name: str, teacher: Variant, example: Inputs) -> Path:
    """The teacher in a format, as the reference for latency and size; with the recipe's options for that format."""
    options = next((item.config for item in plan.recipe.export if item.format == format_name), None)
    config = options or registry.load(f"export.{format_name}").Config()
    item = PlannedExport(format=format_name, config=config)
    source = Source(variant=teacher, key=plan.teacher_key, metadata={"component": plan.recipe.component})
    return _file(store, item, source, example)


def _file(store: Store, item: PlannedExport, source: Source, example: Inputs) -> Path:
    """The exported file, from the store if it was made before."""
    exporter = registry.load(f"export.{item.format}")
    name = source.variant.component.rpartition("/")[2] + exporter.SUFFIX
    output = kind_of(source.variant.arch.kind).output
    metadata = source.metadata | described(source.variant.arch, output)
    key = key_of(
        {
            "export": item.format,
            "config": item.config.model_dump(mode="json"),
            "variant": source.key,
            "shapes": [list(x.shape) for x in example],
            "metadata": metadata,
            "code": code_digest(Path(str(exporter.__file__))),
            "torch": torch.__version__,
        }
    )

    def build(folder: Path) -> None:
        exporter.export(source.variant.module, example, folder / name, item.config, metadata=metadata, output=output)

    return (store.get(key) or store.put(key, build)) / name


def _integers_kept(exporter: Any, path: Path, variant: Variant, name: str) -> gates.Verdict:
    """The integers in the file against the variant's, read back from the file."""
    ours, theirs = quantized(variant.module), exporter.read_back(path)
    same = [n for n, q in ours.items() if n in theirs and torch.equal(theirs[n].qdata, q.qdata)]
    lost = sorted(set(ours) - set(same))
    return gates.Verdict(
        subject=name,
        metric="achieved",
        net=None,
        statistic="layers whose integers are in the file",
        of="candidate",
        against="requested",
        kind="min",
        value=float(len(same)),
        limit=float(len(ours)),
        passed=not lost,
        unit="layers",
        reason=f"{len(same)} of {len(ours)} layers keep their integers"
        if not lost
        else f"failed: the integers of {', '.join(lost)} are not those of the variant; export again",
    )
