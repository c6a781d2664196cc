"""Plan -> variant, verdicts, artifacts, zoo entry: the only loop over stages. Knows no method by name."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from compress import drawn, evaluation, registry, verdicts
from compress import zoo as zoos
from compress.components import load_variant, save_variant
from compress.errors import UserError
from compress.evaluation import Job, Measured, StageSummary
from compress.export_stage import Exported, export_and_gate
from compress.files import read_json, write_json
from compress.nn import cost
from compress.nn.batches import outputs, take
from compress.plan import Plan, PlannedStage
from compress.records import StageInput, StageRecord, Variant
from compress.reporting import write_report
from compress.runs import Emit, Event, RunFolder
from compress.store import Store
from compress.zoo_entry import entry_from_run, write_entry_files
from eval import compare, gates

STAGE_LATENCY_SECONDS = 3.0  # per stage, for the report only


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended, and where its files are."""

    passed: bool
    verdicts: tuple[gates.Verdict, ...]
    report: Path
    entry: Path | None  # in the zoo; None when a gate failed or the recipe exports nothing
    reused: bool = False  # the run had finished before


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A variant, and what it took to have it."""

    variant: Variant
    key: str
    method: str
    config: dict[str, Any]
    seconds: float | None  # None: not run now
    cached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A variant before any file is made of it."""

    variant: Variant
    measured: Measured
    verdicts: tuple[gates.Verdict, ...]


def run_plan(plan: Plan, *, store: Store, out: Path, zoo: Path, emit: Emit, recipe_text: str) -> Outcome:
    """Run every stage that the store does not hold, then judge, export, judge again and add to the zoo.

    Args:
        plan: What to do.
        store: Where stage results are kept.
        out: The run directory.
        zoo: The folder that the entry of a passed run goes into.
        emit: Told of everything that happens.
        recipe_text: The recipe as YAML, kept with the run.

    Raises:
        UserError: the run directory belongs to another recipe, a stage cannot do what was asked, the disk is full.
    """
    run = RunFolder(out)
    if _finished(run, plan):
        for number, stage in enumerate(plan.stages, start=1):
            emit(Event(kind="cached", name=f"{number}/{len(plan.stages)} {stage.method}"))
        emit(Event(kind="cached", name="gates, files and report", text=str(out)))
        return _outcome_on_disk(run, plan, zoo)
    _refuse_taken_name(plan, zoo)
    job = begin(plan, store=store, run=run, emit=emit, recipe_text=recipe_text)
    made = variant_of(job)
    found = list(made.verdicts)
    exported: tuple[Exported, ...] = ()
    if all(v.passed for v in found):
        exported = export_and_gate(job, made.variant, made.measured)
        found += [verdict for item in exported for verdict in item.verdicts]
    return _finish(job, made.variant, made.measured, exported, found, zoo)


def begin(plan: Plan, *, store: Store, run: RunFolder, emit: Emit, recipe_text: str, latencies: bool = True) -> Job:
    """Claim the run directory and load the teacher and what feeds it.

    Raises:
        UserError: the run directory belongs to another recipe, or the teacher cannot be loaded.
    """
    teacher = load_variant(plan.teacher, plan.recipe.component, origins=plan.origins)
    run.begin(digest=plan.digest, key=plan.variant_key, recipe_text=recipe_text, plan=plan.to_json())
    feed, tell = evaluation.feed_of(plan), run.noting(emit)
    return Job(plan=plan, store=store, run=run, teacher=teacher, feed=feed, tell=tell, latencies=latencies)


def variant_of(job: Job) -> Made:
    """Run the stages that the store does not hold, measure what they leave, and judge the variant.

    Raises:
        UserError: a stage cannot do what was asked.
    """
    ran = _run_stages(job)
    variant = ran[-1].variant
    save_variant(variant, job.run.root / "variant")
    measured = _measure_all(job, ran)
    found = (*verdicts.achieved(variant), *verdicts.of_variant(job.plan, measured))
    job.tell(Event(kind="judged", name="variant", text=verdicts.tally(found)))
    return Made(variant=variant, measured=measured, verdicts=found)


def _run_stages(job: Job) -> list[Ran]:
    """The teacher, then the variant after each stage, each read back from the store: fresh and cached are the same."""
    plan, store = job.plan, job.store
    ran = [Ran(variant=job.teacher, key=plan.teacher_key, method="teacher", config={}, seconds=None, cached=False)]
    for number, stage in enumerate(plan.stages, start=1):
        name = f"{number}/{len(plan.stages)} {stage.method}"
        folder, started = store.get(stage.key), time.monotonic()
        cached = folder is not None
        job.tell(Event(kind="cached" if cached else "started", name=name))
        if folder is None:
            folder = _run_stage(job, stage, name, ran[-1].variant)
            job.tell(Event(kind="finished", name=name, seconds=round(time.monotonic() - started, 1)))
        ran.append(
            Ran(
                variant=load_variant(folder, plan.recipe.component, origins=plan.origins),
                key=stage.key,
                method=stage.method,
                config=stage.config.model_dump(mode="json"),
                seconds=None if cached else time.monotonic() - started,
                cached=cached,
            )
        )
    return ran


def _run_stage(job: Job, stage: PlannedStage, name: str, parent: Variant) -> Path:
    """Run one method and store its result."""
    given = StageInput(
        variant=parent,
        teacher=job.teacher.module,
        inputs=job.feed.calibration(),
        sample=job.feed.sample,
        seed=job.plan.recipe.seed,
        scratch=job.store.scratch(stage.key),
        diffusion=job.feed.diffusion() if stage.method.startswith("distill.") else None,
        progress=lambda done, total, text: job.tell(
            Event(kind="progress", name=name, text=text, done=done, total=total)
        ),
    )
    result = registry.load(stage.method).apply(given, stage.config)
    evaluation.check_finite(result.module, stage.method)
    record = StageRecord(
        method=stage.method,
        config=stage.config.model_dump(mode="json"),
        key=stage.key,
        achieved=result.achieved,
        skipped=result.skipped,
        notes=result.notes,
        tables=result.tables,
    )
    made = replace(parent, arch=result.arch, module=result.module, lineage=(*parent.lineage, record))
    folder = job.store.put(stage.key, lambda place: save_variant(made, place))
    job.store.clear_scratch(stage.key)
    return folder


def _measure_all(job: Job, ran: Sequence[Ran]) -> Measured:
    """Cost, picture quality and torch latency of the teacher and of every stage's variant."""
    started = time.monotonic()
    job.tell(Event(kind="started", name="measuring"))
    basis = evaluation.prepare(job.plan, job.feed, job.teacher.module)
    rows: list[StageSummary] = []
    made: Callable[[], torch.Tensor] = cache(lambda: basis.reference)
    for number, item in enumerate(ran):
        job.tell(Event(kind="progress", name="measuring", text=item.method, done=number, total=len(ran)))
        if number:
            made = cache(partial(outputs, item.variant.module, basis.inputs))
        rows.append(_summary(job, item, basis, rows, made, last=number == len(ran) - 1))
    job.tell(Event(kind="measured", name="measuring", seconds=round(time.monotonic() - started, 1)))
    return Measured(basis=basis, stages=tuple(rows), made=made())


def _summary(
    job: Job,
    item: Ran,
    basis: evaluation.Basis,
    before: Sequence[StageSummary],
    made: Callable[[], torch.Tensor],
    *,
    last: bool,
) -> StageSummary:
    """One stage's variant, measured by what it `made`; the last one with everything that the gates ask for."""
    module, example = item.variant.module, take(basis.inputs, 0, 1)
    specs = evaluation.specs(job.plan.recipe.gates)
    measurements = evaluation.measured_once(
        job.store, (item.key, job.plan.teacher_key), basis, evaluation.own_metrics(basis, specs), made
    )
    if last:
        teacher = before[0].measurements if before else measurements
        measurements = evaluation.complete(basis, made(), specs, teacher, measurements)
        drawing = evaluation.drawn_by(basis, module, drawn.AT_ONCE, specs)
        measurements += drawing.measurements
    taken = None
    if before and job.latencies:
        seconds = STAGE_LATENCY_SECONDS if not last or job.plan.recipe.export else evaluation.JUDGED_LATENCY_SECONDS
        taken = evaluation.torch_latency(job.teacher.module, module, example, seconds)
    return StageSummary(
        method=item.method,
        config=", ".join(f"{k}: {v}" for k, v in item.config.items()),
        seconds=item.seconds,
        cached=item.cached,
        cost=cost.measure(module, example),
        measurements=measurements,
        latency=taken,
        drawn=drawing.images if last and basis.sheet is not None else None,
    )


def _finish(
    job: Job,
    variant: Variant,
    measured: Measured,
    exported: Sequence[Exported],
    found: Sequence[gates.Verdict],
    zoo: Path,
) -> Outcome:
    """Write verdicts and report; what passed goes into the zoo."""
    plan, run = job.plan, job.run
    passed = all(v.passed for v in found)
    rows = [{"subject": "variant", **compare.to_json(m)} for m in measured.final.measurements]
    rows += [{"subject": item.format, **compare.to_json(m)} for item in exported for m in item.measurements]
    run.write_measurements(rows)
    write_json(run.root / "verdicts.json", [gates.to_json(v) for v in found])
    report = write_report(job, variant, measured, found, exported, zoo)
    entry = None
    if passed and exported:
        write_entry_files(plan, run.root, variant, measured, exported)
        entry = zoos.add(zoo, entry_from_run(run.root), replace=True)
        job.tell(Event(kind="added", name=plan.recipe.name, text=str(entry)))
    state = "passed" if passed else "failed"
    run.finish(state, digest=plan.digest, key=plan.variant_key, recipe=plan.recipe.name)
    return Outcome(passed=passed, verdicts=tuple(found), report=report, entry=entry)


def _finished(run: RunFolder, plan: Plan) -> bool:
    status = run.status
    return (
        status.get("state") == "passed"
        and status.get("recipe_digest") == plan.digest
        and status.get("variant_key") == plan.variant_key
        and (run.root / "verdicts.json").exists()
    )


def _outcome_on_disk(run: RunFolder, plan: Plan, zoo: Path) -> Outcome:
    found = tuple(gates.from_json(row) for row in read_json(run.root / "verdicts.json"))
    entry = zoo / plan.recipe.name
    return Outcome(
        passed=True,
        verdicts=found,
        report=run.root / "report.html",
        entry=entry if entry.exists() else None,
        reused=True,
    )


def _refuse_taken_name(plan: Plan, zoo: Path) -> None:
    """Before hours of work: an entry of this name that another variant holds is not replaced by a run."""
    if not (zoo / plan.recipe.name / "card.json").exists():
        return
    there = zoos.show(zoo, plan.recipe.name)["facts"].get("variant_key")
    if there != plan.variant_key:
        raise UserError(
            f"{zoo} has an entry {plan.recipe.name} of another variant; give another --zoo, or add this run afterwards "
            "with: mdcompress zoo add RUN --zoo ZOO --replace"
        )
