"""One short function per command: parse, call, render, exit code."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from compress.errors import UserError
from compress.given import NOTHING, Given, planned

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for scripts.")]


def check(*recipes: str, as_json: Json = False) -> int:
    """Validate recipes without running anything; every mistake is listed with its line.

    Parameters
    ----------
    recipes
        Recipe files, or names of recipes that come with mdcompress.
    as_json
        Print a list of {recipe, mistakes} instead.
    """
    from compress.recipe import find, read_recipe

    if not recipes:
        raise UserError("name at least one recipe to check")
    results = []
    for name in recipes:
        try:
            read_recipe(find(name))
            results.append({"recipe": name, "mistakes": []})
        except UserError as error:
            results.append({"recipe": name, "mistakes": str(error).splitlines()})
    if as_json:
        _print_json(results)
    else:
        for result in results:
            print("\n".join(result["mistakes"]) or f"{result['recipe']}: ok")
    return 2 if any(result["mistakes"] for result in results) else 0


def plan(recipe: str, *, given: Given = NOTHING, as_json: Json = False) -> int:
    """Show what a recipe will do and what it will cost, before anything runs.

    Parameters
    ----------
    recipe
        A recipe file, or the name of one that comes with mdcompress.
    given
        Photographs, a checkpoint or code of your own in the place of the recipe's.
    as_json
        Print JSON, for scripts.
    """
    from compress import drawing
    from compress.store import Store, default_root

    made = planned(recipe, given)
    if as_json:
        _print_json(made.to_json())
        return 0
    store = Store(default_root())
    rows = [("0", "teacher", *drawing.forecast_cells(made.reference), "", "")]
    for number, stage in enumerate(made.stages, start=1):
        state = "cached" if store.get(stage.key) else ""
        rows.append((str(number), stage.method, *drawing.forecast_cells(stage.forecast), stage.key[:12], state))
    console = drawing.console()
    console.print(f"{made.recipe.name}: {made.recipe.component}, seed {made.recipe.seed}", highlight=False)
    numeric = ("parameters", "MACs", "weights")
    console.print(drawing.table(("", "stage", *numeric, "key", ""), rows, numeric=numeric))
    for note in made.notes:
        console.print(note, highlight=False, markup=False)
    formats = ", ".join(item.format for item in made.recipe.export) or "nothing"
    console.print(f"then {len(made.recipe.gates)} gates, export {formats}, each file gated again", highlight=False)
    return 0


def run(
    recipe: str,
    *,
    out: Path,
    zoo: Path | None = None,
    given: Given = NOTHING,
    as_json: Json = False,
) -> int:
    """Run a recipe: stages, gates, exports, gates on each file, zoo entry. Stopped at any moment, it resumes.

    Parameters
    ----------
    recipe
        A recipe file, or the name of one that comes with mdcompress.
    out
        The run directory: verdicts.json, report.html, variant/, artifacts/.
    zoo
        Where the entry goes; by default zoo/ in the run directory.
    given
        Photographs, a checkpoint or code of your own in the place of the recipe's.
    as_json
        Print the verdicts as JSON, and progress to the error stream.
    """
    from compress import drawing
    from compress.pipeline import run_plan
    from compress.recipe import to_yaml
    from compress.store import Store, default_root

    console = drawing.console(stderr=as_json)
    with console.status("planning: photographs, digests, costs"):
        made = planned(recipe, given)
    with drawing.Drawer(console) as drawer:
        outcome = run_plan(
            made,
            store=Store(default_root()),
            out=out,
            zoo=zoo or out / "zoo",
            emit=drawer,
            recipe_text=to_yaml(made.recipe),
        )
    if as_json:
        print((out / "verdicts.json").read_text(encoding="utf-8"), end="")
    else:
        if outcome.reused:
            console.print("this run had finished; nothing was left to do (delete the folder to run it again)")
        drawing.print_verdicts(drawing.console(), outcome.verdicts)
        console.print(f"report     {outcome.report}", soft_wrap=True, highlight=False, markup=False)
        console.print(f"zoo entry  {outcome.entry or 'none'}", soft_wrap=True, highlight=False, markup=False)
    return 0 if outcome.passed else 1


def report(run_folder: Path, *, as_json: Json = False) -> int:
    """Show the verdicts of a run and where its report is.

    Parameters
    ----------
    run_folder
        The folder given to `run --out`.
    as_json
        Print JSON, for scripts.
    """
    from compress import drawing
    from compress.files import read_json
    from eval import gates

    if not (run_folder / "verdicts.json").exists():
        raise UserError(f"{run_folder} holds no finished run; start one with: mdcompress run RECIPE --out {run_folder}")
    rows = read_json(run_folder / "verdicts.json")
    if as_json:
        _print_json(rows)
    else:
        drawing.print_verdicts(drawing.console(), [gates.from_json(row) for row in rows])
        print(f"report     {run_folder / 'report.html'}")
    return 0 if all(row["passed"] for row in rows) else 1


def methods(name: str | None = None, *, as_json: Json = False) -> int:
    """List the methods that a recipe may name, or one with its options and its source.

    Parameters
    ----------
    name
        A method, e.g. prune.width.
    as_json
        Print JSON, for scripts.
    """
    from compress import drawing, registry

    if name is None:
        found = [registry.summary(n) for n in registry.methods()]
        if as_json:
            _print_json([asdict(s) for s in found])
        else:
            rows = [(s.name, s.needs, s.summary) for s in found]
            drawing.console().print(drawing.table(("method", "needs", "what it does"), rows))
        return 0
    described = registry.describe(name)
    if as_json:
        _print_json(asdict(described))
        return 0
    console = drawing.console()
    console.print(f"{described.name}: {described.summary}", highlight=False)
    for label in ("source", "differs", "cost"):
        console.print(f"{label.capitalize()}: {getattr(described, label)}", highlight=False)
    options = [(o.name, o.type, "required" if o.default is None else o.default, o.help) for o in described.options]
    console.print(drawing.table(("option", "type", "default", ""), options))
    return 0


def doctor(*, as_json: Json = False) -> int:
    """Show what is installed, what each extra would add, and known traps of this environment."""
    from compress.diagnosis import diagnose

    findings = diagnose()
    if as_json:
        _print_json([asdict(f) for f in findings])
    else:
        for f in findings:
            print(f"{f.state:>7}  {f.what}: {f.text}")
    return 2 if any(f.state == "problem" for f in findings) else 0


def schema() -> int:
    """Print the JSON Schema of a recipe, for editors."""
    from compress.recipe import json_schema

    _print_json(json_schema())
    return 0


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=1, allow_nan=False, default=str))
