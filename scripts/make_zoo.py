"""Run recipes in every format that can hold what they make, into one zoo, and print what each format gives.

    python scripts/make_zoo.py --zoo zoo [--work .zoo] [--formats onnx litert] [--readme] [RECIPE ...]

A format that cannot hold a variant, or whose file fails a gate, is left out and named with the reason. Where the zoo is
there already, the digests of its files and samples are compared with the new ones: 0 where all are the same, 1 where one
is not (cards and verdicts hold timings, which are taken anew). --readme writes the table into README.md.
"""

import argparse
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from readme_table import put

from compress import drawing, recipe, registry
from compress.errors import UserError
from compress.files import size_of
from compress.pipeline import run_plan
from compress.plan import make_plan
from compress.store import Store
from compress.zoo_index import INDEX, read_index

TIMED = ("card.json", "README.md", "verdicts.json")  # hold latencies, which no two runs share
COLUMNS = ("recipe", "format", "bytes", "parity, dB", "LPIPS", "latency ratio", "partitions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one format made of one recipe's variant; or why it is left out."""

    recipe: str
    format: str
    cells: tuple[str, ...] = ()
    problem: str = ""


def formats_that_hold(base: recipe.Recipe, wanted: list[str]) -> tuple[list[str], list[Row]]:
    """Formats whose plan is accepted, and a row for each that is refused."""
    held, refused = [], []
    for name in wanted:
        try:
            make_plan(with_formats(base, [name]))
            held.append(name)
        except UserError as error:
            refused.append(Row(recipe=base.name, format=name, problem=str(error).splitlines()[0]))
    return held, refused


def with_formats(base: recipe.Recipe, names: list[str]) -> recipe.Recipe:
    """The recipe with these formats, each with its recipe's options or else its defaults."""
    written = {item.format: item for item in base.export}
    made = [
        written.get(name, recipe.PlannedExport(format=name, config=registry.load(f"export.{name}").Config()))
        for name in names
    ]
    return replace(base, export=tuple(made))


def built(base: recipe.Recipe, names: list[str], work: Path, zoo: Path) -> list[Row]:
    """Run until every format that is left passes; a row for each format."""
    left, dropped = list(names), []
    while left:
        chosen = with_formats(base, left)
        out = work / base.name
        shutil.rmtree(out, ignore_errors=True)
        with drawing.Drawer(drawing.console(stderr=True)) as drawer:
            done = run_plan(
                make_plan(chosen),
                store=Store(work / "store"),
                out=out,
                zoo=zoo,
                emit=drawer,
                recipe_text=recipe.to_yaml(chosen),
            )
        if done.passed:
            return [*rows_of(out, base.name, left), *dropped]
        failed = {v.subject.partition(" ")[0]: v.reason for v in done.verdicts if not v.passed}
        if "variant" in failed:
            raise SystemExit(f"{base.name}: the variant itself failed: {failed['variant']}")
        dropped += [Row(recipe=base.name, format=name, problem=failed[name]) for name in left if name in failed]
        left = [name for name in left if name not in failed]
    return dropped


def rows_of(out: Path, name: str, formats: list[str]) -> list[Row]:
    """The numbers of a run that passed, by format."""
    verdicts = json.loads((out / "verdicts.json").read_text())
    measured = [json.loads(line) for line in (out / "measurements.jsonl").read_text().splitlines()]
    rows = []
    for form in formats:
        exporter = registry.load(f"export.{form}")
        (path,) = (p for p in (out / "artifacts").iterdir() if p.suffix == exporter.SUFFIX)
        parity = [v for v in verdicts if v["subject"] == f"{form} to torch" and v["metric"] in ("psnr", "sqnr")]
        latency = [v for v in verdicts if v["subject"] == form and v["metric"] == "latency"]
        lpips = [m["values"] for m in measured if (m["subject"], m["metric"], m["of"]) == (form, "lpips", "candidate")]
        cells = (
            f"{size_of(path):,}",
            "exact" if parity[0].get("exact") else f"{parity[0]['value']:.1f}",
            f"{sum(lpips[0]) / len(lpips[0]):.4f}" if lpips else "",
            f"{latency[0]['value']:.2f}" if latency and latency[0]["value"] is not None else "not measured",
            str(exporter.partitions(path)) if hasattr(exporter, "partitions") else "",
        )
        rows.append(Row(recipe=name, format=form, cells=cells))
    return rows


def markdown(rows: list[Row], host: str) -> str:
    """The table, what was left out, and where it was measured."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join((f'`{r.recipe}`', r.format, *r.cells))} |" for r in rows if r.cells]
    lines += ["", *(f"- `{r.recipe}` in {r.format}: left out, {r.problem}" for r in rows if not r.cells)]
    lines += [
        "",
        f"Parity to the torch variant on the worst picture; latency over the float teacher's file, on {host}.",
    ]
    return "\n".join(lines)


def digests(zoo: Path) -> dict[str, str]:
    """SHA-256 of every file that holds no timing."""
    return {
        f"{name}/{file}": listed.sha256
        for name, entry in read_index(zoo).items()
        for file, listed in entry.files.items()
        if file not in TIMED
    }


def compared(before: dict[str, str], after: dict[str, str]) -> int:
    """Name every file that is not as it was; the exit code."""
    differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in differing:
        print(f"differs: {name}")
    print(f"{len(after) - len(differing)} of {len(before.keys() | after.keys())} files as they were")
    return 1 if differing else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", default=["decoder/d4_c50_kd_w8a8", "decoder/w8a8"])
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".zoo"), help="runs and the stage cache")
    parser.add_argument("--formats", nargs="+", default=[n.removeprefix("export.") for n in registry.names("export")])
    parser.add_argument("--readme", action="store_true")
    arguments = parser.parse_args()
    before = digests(arguments.zoo) if (arguments.zoo / INDEX).is_file() else None
    fresh = arguments.work / "zoo"
    shutil.rmtree(fresh, ignore_errors=True)
    rows: list[Row] = []
    for name in arguments.recipes:
        base = recipe.read_recipe(recipe.find(name))
        held, refused = formats_that_hold(base, arguments.formats)
        rows += built(base, held, arguments.work, fresh) + refused
    after = digests(fresh)
    if before != after:
        shutil.rmtree(arguments.zoo, ignore_errors=True)
        shutil.copytree(fresh, arguments.zoo)
    from eval.metrics import latency

    table = markdown(rows, latency.host())
    print(table)
    if arguments.readme:
        put("formats", table)
    sys.exit(0 if before is None else compared(before, after))


if __name__ == "__main__":
    main()
