"""Every shipped recipe in every format that is installed: bytes, parity, LPIPS, latency, partitions, as one table.

    python benchmarks/formats.py --out rows.jsonl [RECIPE ...] [--but 'unet/s*' ...] [--formats onnx ort] [--untimed] [--again]
                                 [--checkpoint DIR] [--images DIR] [--markdown FILE]
    python benchmarks/formats.py --out rows.jsonl --runs DIR ...      # rows of runs that have finished; nothing runs

Each row is appended to --out as soon as it is measured. The same command goes on where it was stopped: a row is kept while
its recipe and its component's weights are the same; --again measures it anew (after another --images or --checkpoint, or a
change of the code). A recipe's stages are run and its variant is judged once, in a process of its own, then each format that can hold it is
written and judged as `mdcompress run` does it, by the recipe's own gates. What goes wrong is the row's last column: a format
that cannot hold the variant, a gate that failed, a variant that failed before any file was made, a process that died.
Without names, all shipped recipes, those that take longest last. --untimed, for a machine that has other work: no latency is
taken, and gates on it are left out; benchmarks/formats_latency.py takes it afterwards, of the same files.

Parity: the file in its runtime to the variant in torch, on the worst sample, PSNR of pictures or SQNR of tensors. LPIPS: mean,
to the photographs, or of a UNet or a text encoder to what is drawn with the uncompressed one. Latency: the file to the
teacher in the same format and runtime, interleaved, on this host. Partitions: into how many pieces the runtime cuts the
graph, where it says so. scripts/readme_table.py --formats ROWS puts the tables into README.md and docs/formats.md.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import formats_table as table
from benchmarks.formats_table import WHOLE, Row
from calibration.errors import DataError
from compress import registry
from compress.errors import UserError
from compress.files import size_of
from compress.given import Given
from compress.recipe import Recipe, find, read_recipe, shipped, to_yaml, with_formats
from compress.records import Needs
from eval.errors import EvalError
from eval.metrics import latency

MINE = (UserError, DataError, EvalError)  # whose message is the reason


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process of its own does: the formats of one recipe that have no row yet, among all that are wanted."""

    recipe: Recipe
    formats: tuple[str, ...]
    left: tuple[str, ...]
    given: Given
    timed: bool

    @property
    def blank(self) -> Row:
        return {
            "recipe": self.recipe.name,
            "digest": table.subject(self.recipe),
            "timed": self.timed,
            "host": latency.host(),
        }


def main() -> None:
    options = parsed()
    formats = options.formats or [name.removeprefix("export.") for name in registry.names("export")]
    for out in options.runs:
        for row in of_run(out):
            noted(options.out, row)
    chosen = [read_recipe(find(name)) for name in options.recipes or ([] if options.runs else shipped())]
    chosen = [one for one in chosen if not any(fnmatchcase(one.name, pattern) for pattern in options.but)]
    if not options.recipes:
        chosen.sort(key=cost)
    given = Given(images=options.images, checkpoint=options.checkpoint)
    for number, recipe in enumerate(chosen, start=1):
        say(f"{number}/{len(chosen)} {recipe.name}")
        left = missing(options.out, recipe, formats, timed=not options.untimed, again=options.again)
        task = Task(recipe=recipe, formats=tuple(formats), left=left, given=given, timed=not options.untimed)
        measure(task, options.out)
    if options.markdown:
        names = {name: table.subject(read_recipe(find(name))) for name in (*shipped(), *options.recipes)}
        rows = table.current(table.read(options.out), names)
        options.markdown.write_text(f"{table.markdown(rows)}\n\n{table.not_run(rows, names)}\n", encoding="utf-8")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one a row")
    parser.add_argument(
        "--but", nargs="+", default=[], metavar="NAME", help="recipes to leave out; * stands for anything"
    )
    parser.add_argument("--formats", nargs="+")
    parser.add_argument("--runs", nargs="+", type=Path, default=[])
    parser.add_argument("--untimed", action="store_true")
    parser.add_argument("--again", action="store_true")
    for name in ("checkpoint", "images", "markdown"):
        parser.add_argument(f"--{name}", type=Path)
    return parser.parse_args()


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def noted(out: Path, row: Row) -> None:
    table.append(out, row)
    print(table.line({key: table.shown(row, key) for key in table.HEADS}), flush=True)


def cost(recipe: Recipe) -> tuple[Any, ...]:
    """What sorts recipes by how long they take: training last, then those that draw, then what needs statistics."""
    needs = [registry.load(stage.method).NEEDS for stage in recipe.stages]
    return Needs.TRAINING in needs, recipe.data.drawn is not None, Needs.STATISTICS in needs, recipe.name


def missing(out: Path, recipe: Recipe, formats: list[str], *, timed: bool, again: bool) -> tuple[str, ...]:
    """Formats that have no row yet."""
    rows = {row["format"]: row for row in table.read(out) if row["recipe"] == recipe.name}
    said = table.subject(recipe)
    if again:
        return tuple(formats)
    if table.done(rows.get(WHOLE), said, timed=timed):
        return ()
    return tuple(name for name in formats if not table.done(rows.get(name), said, timed=timed))


def measure(task: Task, out: Path) -> None:
    """Do it in processes of their own until every format has its row: one that dies costs the format it was at."""
    left = task.left
    while left:
        ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
        child = multiprocessing.get_context("spawn").Process(target=work, args=(replace(task, left=left), theirs))
        child.start()
        theirs.close()
        at = WHOLE
        for kind, what in received(ours):
            if kind == "at":
                at = what
            else:
                noted(out, what)
                left = () if what["format"] == WHOLE else tuple(name for name in left if name != what["format"])
        child.join()
        if left:  # it should have done them all
            noted(out, task.blank | {"format": at, "outcome": f"the process died, exit code {child.exitcode}"})
            left = () if at == WHOLE else tuple(name for name in left if name != at)


def received(ours: Connection) -> Any:
    while True:
        try:
            yield ours.recv()
        except EOFError:
            return


def work(task: Task, parent: Connection) -> None:
    """In a process of its own: the variant, then each format; rows go to the parent."""

    def tell(row: Row) -> None:
        parent.send(("row", task.blank | row))

    def failed(form: str) -> Callable[[str], None]:
        return lambda reason: tell({"format": form, "outcome": reason})

    with tempfile.TemporaryDirectory() as folder:
        made = guarded(partial(prepared, task, Path(folder) / "run", tell), failed(WHOLE))
        if made is None:
            return
        job, variant = made
        for item in [item for item in job.plan.recipe.export if item.format in task.left]:
            parent.send(("at", item.format))
            started = time.monotonic()
            row = guarded(partial(one_file, job, item, variant), failed(item.format))
            if row is not None:
                tell(row | {"seconds": round(time.monotonic() - started, 1)})


def guarded(do: Callable[[], Any], failed: Callable[[str], None]) -> Any:
    """What `do` returns, or None once `failed` was told why there is nothing."""
    try:
        return do()
    except MINE as error:
        failed(" ".join(str(error).splitlines()[:1]))
    except Exception as error:  # a bug, which must not cost the other rows
        traceback.print_exception(error)
        failed(f"a bug: {type(error).__name__}: {' '.join(str(error).splitlines()[:1])}")


def prepared(task: Task, out: Path, tell: Callable[[Row], None]) -> Any:
    """The job and its judged variant; None where it failed, which is told."""
    from compress import pipeline
    from compress.runs import RunFolder
    from compress.store import Store, default_root

    plan = planned(task, tell)
    if plan is None:
        return None
    job = pipeline.begin(
        plan,
        store=Store(default_root()),
        run=RunFolder(out),
        emit=drawn,
        recipe_text=to_yaml(plan.recipe),
        latencies=task.timed,
    )
    made = pipeline.variant_of(job)
    failed = [v for v in made.verdicts if not v.passed]
    if failed:
        tell({"format": WHOLE, "outcome": refusal(failed)})
        return None
    return job, made


def planned(task: Task, tell: Callable[[Row], None]) -> Any:
    """The plan with every format that can hold the variant; the others get their rows. None where none can."""
    from compress.given import planned_with
    from compress.plan import CannotHold

    recipe = task.recipe if task.timed else untimed(task.recipe)
    try:
        return planned_with(with_formats(recipe, task.formats), task.given)
    except CannotHold as error:
        for name in sorted(set(error.problems) & set(task.left)):
            tell({"format": name, "outcome": f"refused: {error.problems[name][0]}"})
        held = tuple(name for name in task.formats if name not in error.problems)
        return planned_with(with_formats(recipe, held), task.given) if set(held) & set(task.left) else None


def untimed(recipe: Recipe) -> Recipe:
    return replace(recipe, gates=tuple(gate for gate in recipe.gates if gate.metric != "latency"))


def drawn(event: Any) -> None:
    """Progress."""
    if event.kind != "progress":
        seconds = "" if event.seconds is None else f" {event.seconds:.0f} s"
        say(f"    {event.kind} {event.name} {event.text}{seconds}")


def one_file(job: Any, item: Any, made: Any) -> Row:
    """A row of one format."""
    from compress.export_stage import one_format
    from eval import compare, gates

    done = one_format(job, item, made.variant, made.measured)
    measured = [compare.to_json(m) for m in done.measurements]
    row = row_of(item.format, done.path, [gates.to_json(v) for v in done.verdicts], measured)
    return row if done.latency is None else row | took(done.latency)


def took(taken: latency.LatencyRatio) -> Row:
    """What a row says of a file's latency."""
    return {
        "latency": taken.ratio,
        "ms": taken.medians_ms[1],
        "threads": taken.threads,
        "host": taken.host,
        "timed": True,
    }


def row_of(form: str, path: Path, verdicts: list[dict[str, Any]], measured: list[dict[str, Any]]) -> Row:
    """What a row says of a file, by its verdicts and measurements as a run keeps them."""
    exporter = registry.load(f"export.{form}")
    taken = {m["against"]: m["values"] for m in measured if (m["of"], m["metric"]) == ("candidate", "lpips")}
    values = taken.get("ground_truth") or taken.get("reference")
    failed = [v for v in verdicts if not v["passed"]]
    timed = next((v for v in verdicts if v["metric"] == "latency"), None)
    return {
        "format": form,
        "bytes": size_of(path),
        "parity": next((v["value"] for v in verdicts if v["subject"] == f"{form} to torch"), None),
        "lpips": sum(values) / len(values) if values and None not in values else None,
        "latency": None if timed is None else "not measured" if timed["value"] is None else timed["value"],
        "partitions": exporter.partitions(path) if hasattr(exporter, "partitions") else None,
        "outcome": "passed" if not failed else f"failed: {'; '.join(dict.fromkeys(short(v) for v in failed))}",
    }


def refusal(failed: list[Any]) -> str:
    """Of a variant in torch, which made no file."""
    from eval import gates

    return f"the variant failed: {'; '.join(short(gates.to_json(v)) for v in failed)}"


def short(verdict: dict[str, Any]) -> str:
    """A failed verdict in a few words."""
    limit = f"{verdict['kind'].replace('_', ' ')} {verdict['limit']:.4g}"
    value = "nothing" if verdict["value"] is None else f"{verdict['value']:.4g}"
    half = ", half the size" if verdict["subject"].endswith("half the size") else ""
    to = " to torch" if " to torch" in verdict["subject"] else ""
    undecided = ", undecided" if verdict["undecided"] else ""
    return f"{verdict['metric']}{to} {verdict['statistic']}{half} {value} ({limit}){undecided}"


def of_run(out: Path) -> list[Row]:
    """What a run measured of each of its files. Its recipe must be the shipped one, whatever its formats are."""
    theirs = read_recipe(out / "recipe.yaml")
    ours = read_recipe(find(theirs.name))
    if replace(theirs, export=ours.export) != ours:
        raise SystemExit(f"{out}: the recipe {theirs.name} has been changed since")
    verdicts = json.loads((out / "verdicts.json").read_text(encoding="utf-8"))
    where = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    measured = list(map(json.loads, (out / "measurements.jsonl").read_text(encoding="utf-8").splitlines()))
    rows = []
    for item in theirs.export:
        path = next((out / "artifacts").glob(f"*{registry.load(f'export.{item.format}').SUFFIX}"))
        mine = [v for v in verdicts if v["subject"].partition(" ")[0] == item.format]
        row = row_of(item.format, path, mine, [m for m in measured if m["subject"] == item.format])
        on = {"timed": True, "host": where["host"], "threads": int(where["torch threads"])}
        rows.append({"recipe": ours.name, "digest": table.subject(ours)} | on | row)
    return rows


if __name__ == "__main__":
    main()
