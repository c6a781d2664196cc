"""The latencies that the rows of benchmarks/formats.py --untimed lack, of the same files, which the store holds.

    python benchmarks/formats_latency.py --out rows.jsonl [RECIPE ...] [--seconds 10] [--again]
                                         [--checkpoint DIR] [--images DIR]

Each file is timed against the float teacher's in the same format and runtime, interleaved, with as many threads as torch
has (OMP_NUM_THREADS), and judged by the recipe's gates on latency, where it has any. A row is replaced as soon as its file is
timed, so the same command goes on where it was stopped; --again times all files anew. A variant or a size that is not
what the row is of is said, and its row left. --checkpoint and --images as they were given to formats.py.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import formats
from benchmarks import formats_table as table
from benchmarks.formats_table import Row
from compress import evaluation, export_stage, registry
from compress.components import load_variant
from compress.errors import UserError
from compress.files import size_of
from compress.given import Given, planned_with
from compress.nn.batches import take
from compress.plan import Plan
from compress.recipe import Recipe, find, read_recipe, shipped, with_formats
from compress.store import Store, default_root
from eval import gates
from eval.metrics import latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--out", type=Path, required=True, help="the rows, as formats.py wrote them")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each file")
    parser.add_argument("--again", action="store_true")
    for name in ("checkpoint", "images"):
        parser.add_argument(f"--{name}", type=Path)
    options = parser.parse_args()
    given = Given(images=options.images, checkpoint=options.checkpoint)
    for name in options.recipes or shipped():
        recipe = read_recipe(find(name))
        wanted = without_latency(options.out, recipe, again=options.again)
        try:
            for row in timed(recipe, wanted, given, seconds=options.seconds):
                formats.noted(options.out, row)
        except formats.MINE as error:
            formats.say(f"{recipe.name}: {error}")


def without_latency(out: Path, recipe: Recipe, *, again: bool) -> dict[str, Row]:
    """The rows of files of a recipe that have not been timed, by format."""
    rows = [row for row in table.read(out) if row["recipe"] == recipe.name and row.get("bytes") is not None]
    said = table.subject(recipe)
    return {row["format"]: row for row in rows if row["digest"] == said and (again or row["latency"] is None)}


def timed(recipe: Recipe, rows: dict[str, Row], given: Given, *, seconds: float) -> Iterator[Row]:
    """Each row with its latency.

    Raises:
        UserError: the variant is not in the store, or another file than the row's.
    """
    left = {form: row for form, row in rows.items() if export_stage.measures_latency(registry.load(f"export.{form}"))}
    for form in rows.keys() - left.keys():
        yield rows[form] | {"latency": "not measured"}
    if not left:
        return
    plan = planned_with(with_formats(recipe, left), given)
    store = Store(default_root())
    folder = store.get(plan.variant_key)
    if folder is None:
        raise UserError("its variant is not in the store: run benchmarks/formats.py first, on the same pictures")
    variant = load_variant(folder, plan.recipe.component, origins=plan.origins)
    teacher = load_variant(plan.teacher, plan.recipe.component, origins=plan.origins)
    example = take(evaluation.feed_of(plan).evaluation().inputs, 0, 1)
    for item in plan.recipe.export:
        exporter, row = registry.load(f"export.{item.format}"), left[item.format]
        ours = export_stage.variant_file(plan, store, item, variant, example)
        if size_of(ours) != row["bytes"]:
            raise UserError(f"{item.format} has {size_of(ours):,} bytes now, not {row['bytes']:,}: measure it again")
        theirs = export_stage.teacher_file(plan, store, item.format, teacher, example)
        taken = export_stage.timed(exporter, ours, theirs, example, seconds)
        yield row | judged(plan, row, taken)


def judged(plan: Plan, row: Row, taken: latency.LatencyRatio) -> Row:
    """What the timing changes in a row: gates on latency join those that were judged before."""
    specs = [spec for spec in evaluation.specs(plan.recipe.gates) if spec.metric == "latency"]
    verdicts = [v for v in gates.judge(specs, (), subject=row["format"], latency=taken) if v.metric == "latency"]
    failed = [formats.short(gates.to_json(v)) for v in verdicts if not v.passed]
    before = [] if row["outcome"] == "passed" else row["outcome"].removeprefix("failed: ").split("; ")
    failed = [one for one in before if not one.startswith("latency ")] + failed
    outcome = f"failed: {'; '.join(failed)}" if failed else "passed"
    return row | formats.took(taken) | {"outcome": outcome}


if __name__ == "__main__":
    main()
