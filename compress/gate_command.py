"""`mdcompress gate`: judge what already exists, write what CI reads, keep the baseline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from compress.errors import UserError
from compress.given import NOTHING, Given, look_at, planned_with

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compress.standalone_gate import Judged

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for scripts.")]
Gates = Annotated[str, Parameter(name=("--gates", "--recipe"))]
Update = Annotated[bool, Parameter(name="--update-baseline", negative="")]


def gate(
    path: Path,
    *,
    gates: Gates,
    given: Given = NOTHING,
    out: Path | None = None,
    update_baseline: Update = False,
    as_json: Json = False,
) -> int:
    """Judge a variant folder, an exported file or a zoo entry by a gates file, against the component that it names.

    Parameters
    ----------
    path
        A variant folder (arch.json, weights.safetensors), a run directory, an exported file, or a zoo entry.
    gates
        A gates file (component, evaluation, gates); or a recipe, whose component, photographs and gates are used.
    given
        Photographs, and the component to judge against, in the place of the file's.
    out
        A folder for CI: verdicts.json, junit.xml, summary.md, measurements.jsonl, report.html.
    update_baseline
        Show what changes, then make what was measured the gates file's baseline; gates against it are not judged.
    as_json
        Print JSON, for scripts.
    """
    from compress.headers import look
    from compress.recipe import find

    look(path)
    look_at(find(gates), given)
    from compress import drawing, gate_report, standalone_gate
    from compress.gates_file import read_demands
    from eval import gates as records

    demands = read_demands(gates)
    if update_baseline:
        _check_updatable(demands.baseline, gates)
    made = planned_with(demands.recipe, given)
    standalone_gate.check_loads(path)
    with drawing.Drawer(drawing.console(stderr=True)) as drawer:
        case = standalone_gate.prepare(made, drawer)
        judged = standalone_gate.judge_path(path, case, drawer, None if update_baseline else demands.baseline)
    if update_baseline:
        judged = tuple(one.without_baseline() for one in judged)
    verdicts = [verdict for one in judged for verdict in one.verdicts]
    if out is not None:
        gate_report.write_files(
            judged, case, out, title=f"{made.recipe.name} of {path.name}", baseline=demands.baseline
        )
    if as_json:
        drawing.print_json([records.to_json(verdict) for verdict in verdicts])
    else:
        drawing.print_verdicts(drawing.console(), verdicts)
    passed = all(verdict.passed for verdict in verdicts)
    if update_baseline and demands.baseline is not None:
        _update(demands.baseline, judged, passed=passed)
    return 0 if passed else 1


def _check_updatable(baseline: Path | None, gates: str) -> None:
    if baseline is None:
        raise UserError(f"{gates} names no baseline to update; write one into it: baseline: FILE.json")
    if baseline.is_dir():
        raise UserError(f"{baseline} is a zoo entry, which is measured anew each time; there is nothing to update")


def _update(path: Path, judged: "Sequence[Judged]", *, passed: bool) -> None:
    """Show what changes, then write it; a candidate that failed does not become the baseline."""
    from compress import drawing
    from compress.files import write_text
    from eval import baseline

    console = drawing.console(stderr=True)
    before = baseline.read(path) if path.exists() else {}
    after = {**before, **{one.taken.subject: one.now for one in judged}}
    for one in judged:
        old = before.get(one.taken.subject)
        rows = [
            (one.taken.subject, what, _number(was), _number(now), "" if was == now else "changed")
            for what, was, now in baseline.changes(old, one.now)
        ]
        console.print(drawing.table(("of", "", "before", "now", ""), rows, numeric=("before", "now")))
        if old is not None:
            for text in baseline.differing_conditions(old.conditions, one.now.conditions):
                console.print(text, highlight=False, markup=False)
    if not passed:
        console.print(f"{path} is left as it was: a gate failed", highlight=False, markup=False, soft_wrap=True)
    elif before == after:
        console.print(f"{path} holds these numbers already", highlight=False, markup=False, soft_wrap=True)
    else:
        replaced = {name: was for name, was in before.items() if was != after[name]}
        history = baseline.remembered(baseline.read_history(path) if path.exists() else {}, replaced)
        write_text(path, baseline.to_text(after, history))
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.5g}"
