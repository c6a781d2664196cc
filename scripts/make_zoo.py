"""Run recipes in every format that can hold what they make, into one zoo.

    python scripts/make_zoo.py --zoo zoo [--work .zoo] [--formats onnx litert] [--checkpoint FOLDER] [RECIPE ...]

A format that cannot hold a variant, or whose file fails a gate, is left out and named with the reason. Where the zoo is
there already, the digests of its files and samples are compared with the new ones: 0 where all are the same, 1 where one
is not (cards and verdicts hold timings, which are taken anew); entries of other names stay as they are. Always two
threads, because sums that are split otherwise round otherwise; another kind of processor may still give other digests.
benchmarks/formats.py prints the table of all formats.
"""

import argparse
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch

from compress import drawing, recipe, registry, zoo_pull
from compress.errors import UserError
from compress.pipeline import run_plan
from compress.plan import make_plan
from compress.store import Store
from compress.zoo_index import INDEX, read_index

THREADS = 2
TIMED = ("card.json", "README.md", "verdicts.json")  # hold latencies, which no two runs share


def formats_that_hold(base: recipe.Recipe, wanted: list[str], checkpoint: Path | None) -> list[str]:
    """Formats whose plan is accepted; the others are named."""
    held = []
    for name in wanted:
        try:
            make_plan(recipe.with_formats(base, [name]), checkpoint=checkpoint)
            held.append(name)
        except UserError as error:
            left_out(base.name, name, str(error).splitlines()[0])
    return held


def left_out(recipe_name: str, format_name: str, reason: str) -> None:
    print(f"left out: {recipe_name} in {format_name}: {reason}", flush=True)


def build(base: recipe.Recipe, names: list[str], work: Path, zoo: Path, checkpoint: Path | None) -> None:
    """Run until every format that is left passes; a format that fails a gate is left out."""
    left = list(names)
    while left:
        chosen = recipe.with_formats(base, left)
        out = work / base.name
        shutil.rmtree(out, ignore_errors=True)
        with drawing.Drawer(drawing.console(stderr=True)) as drawer:
            done = run_plan(
                make_plan(chosen, checkpoint=checkpoint),
                store=Store(work / "store"),
                out=out,
                zoo=zoo,
                emit=drawer,
                recipe_text=recipe.to_yaml(chosen),
            )
        if done.passed:
            return
        failed = {v.subject.partition(" ")[0]: v.reason for v in done.verdicts if not v.passed}
        if "variant" in failed:
            raise SystemExit(f"{base.name}: the variant itself failed: {failed['variant']}")
        for name, reason in failed.items():
            left_out(base.name, name, reason)
        left = [name for name in left if name not in failed]
    raise SystemExit(f"{base.name}: no format holds it and passes its gates")


def digests(zoo: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of every file of these entries that holds no timing."""
    index = read_index(zoo) if (zoo / INDEX).is_file() else {}
    return {
        f"{name}/{file}": listed.sha256
        for name in names
        if name in index
        for file, listed in index[name].files.items()
        if file not in TIMED
    }


def compared(before: dict[str, str], after: dict[str, str]) -> int:
    """Name every file that is not as it was; the exit code."""
    differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in differing:
        print(f"differs: {name}")
    total = len(before.keys() | after.keys())
    print(f"{total - len(differing)} of {total} files as they were")
    return 1 if differing else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", default=["decoder/d4_c50_kd_w8a8"])
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".zoo"), help="runs and the stage cache")
    parser.add_argument("--formats", nargs="+", default=[n.removeprefix("export.") for n in registry.names("export")])
    parser.add_argument("--checkpoint", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    fresh = arguments.work / "zoo"
    if fresh.resolve() == arguments.zoo.resolve():
        raise SystemExit(f"--zoo {arguments.zoo}: it is built there first and copied afterwards; give another folder")
    shutil.rmtree(fresh, ignore_errors=True)
    for name in arguments.recipes:
        base = recipe.read_recipe(recipe.find(name))
        held = formats_that_hold(base, arguments.formats, arguments.checkpoint)
        build(base, held, arguments.work, fresh, arguments.checkpoint)
    built = read_index(fresh)
    before, after = digests(arguments.zoo, built), digests(fresh, built)
    if before != after:
        with drawing.Drawer(drawing.console(stderr=True)) as drawer:
            zoo_pull.pull(str(fresh), (), arguments.zoo, emit=drawer, replace=True)
    sys.exit(compared(before, after) if before else 0)


if __name__ == "__main__":
    main()
