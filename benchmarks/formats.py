"""Every shipped recipe in every format that is installed: bytes, parity, LPIPS, latency, partitions, as one table.

python benchmarks/formats.py [RECIPE ...] [--formats onnx ort] [--checkpoint DIR] [--images DIR] [--markdown FILE] [--json FILE]
python benchmarks/formats.py --runs DIR [DIR ...]      # of runs that have finished, every format that they have; nothing runs

Each recipe is run as `mdcompress run` runs it, once a format, with its own gates and that format alone; stages are taken
from the store where they are there. Parity: the file in its runtime to the variant in torch, on the worst sample, PSNR
of pictures or SQNR of tensors. LPIPS: to the photographs, mean (the net is the recipe's). Latency: the file to the
teacher in the same format and runtime, interleaved, on this host. Partitions: into how many pieces the runtime cuts the
graph, where it says so. What a format cannot hold is a line with the reason; so is a gate that failed.
scripts/readme_table.py --formats FILE puts the table into README.md.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress import registry
from compress.errors import UserError
from compress.files import size_of
from compress.given import Given, planned_with
from compress.pipeline import run_plan
from compress.recipe import PlannedExport, Recipe, find, read_recipe, shipped, to_yaml
from compress.runs import Event
from compress.store import Store, default_root

COLUMNS = ("recipe", "format", "bytes", "parity, dB", "LPIPS", "latency ratio", "partitions", "")


def main() -> None:
    options = parsed()
    given = Given(images=options.images, checkpoint=options.checkpoint)
    formats = options.formats or [name.removeprefix("export.") for name in registry.names("export")]
    rows = [one for out in options.runs for one in of_run(out, formats)]
    for one in rows:
        print(line(one), flush=True)
    for name in options.recipes or ([] if options.runs else sorted(shipped())):
        for format_name in formats:
            rows.append(row(read_recipe(find(name)), format_name, given))
            print(line(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        lines = [line(dict(zip(COLUMNS, COLUMNS, strict=True))), "|" + "---|" * len(COLUMNS), *map(line, rows)]
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--formats", nargs="+")
    parser.add_argument("--runs", nargs="+", type=Path, default=[])
    for name in ("checkpoint", "images", "markdown", "json"):
        parser.add_argument(f"--{name}", type=Path)
    return parser.parse_args()


def row(recipe: Recipe, format_name: str, given: Given) -> dict[str, Any]:
    """One recipe in one format; a refusal is in the last column."""
    exporter = registry.load(f"export.{format_name}")
    default = PlannedExport(format=format_name, config=exporter.Config())
    one = replace(recipe, export=(next((e for e in recipe.export if e.format == format_name), default),))
    start = dict.fromkeys(COLUMNS, "") | {"recipe": recipe.name, "format": format_name}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        try:
            plan = planned_with(one, given)
            run_plan(
                plan,
                store=Store(default_root()),
                out=out,
                zoo=Path(folder) / "zoo",
                emit=silent,
                recipe_text=to_yaml(plan.recipe),
            )
            return start | measured(out, format_name, exporter)
        except UserError as error:
            return start | {"": " ".join(str(error).splitlines()[:1])}


def of_run(out: Path, formats: list[str]) -> list[dict[str, Any]]:
    """What a run measured of each of its files."""
    name = json.loads((out / "status.json").read_text(encoding="utf-8"))["recipe"]
    found = []
    for format_name in formats:
        exporter = registry.load(f"export.{format_name}")
        if any((out / "artifacts").glob(f"*{exporter.SUFFIX}")):
            start = dict.fromkeys(COLUMNS, "") | {"recipe": name, "format": format_name}
            found.append(start | measured(out, format_name, exporter))
    return found


def silent(event: Event) -> None:
    """Progress is in the run directory; the table is what is printed."""


def measured(out: Path, format_name: str, exporter: Any) -> dict[str, Any]:
    verdicts = json.loads((out / "verdicts.json").read_text(encoding="utf-8"))
    ours = [v for v in verdicts if v["subject"].partition(" ")[0] in ("variant", format_name)]
    failed = [f"{v['subject']} {v['metric']} {v['statistic']}" for v in ours if not v["passed"]]
    problem = f"failed: {', '.join(failed)}" if failed else ""
    artifacts = sorted((out / "artifacts").glob(f"*{exporter.SUFFIX}"))
    if not artifacts:
        return {"": problem}
    measurements = (out / "measurements.jsonl").read_text(encoding="utf-8").splitlines()
    values = [m for m in map(json.loads, measurements) if (m["subject"], m["metric"]) == (format_name, "lpips")]
    lpips = next((m["values"] for m in values if (m["of"], m["against"]) == ("candidate", "ground_truth")), None)
    partitions = getattr(exporter, "partitions", None)
    parity = verdict(verdicts, f"{format_name} to torch", None)
    latency = verdict(verdicts, format_name, "latency")
    return {
        "bytes": size_of(artifacts[0]),
        "parity, dB": "" if parity is None else round(parity["value"], 1),
        "LPIPS": "" if lpips is None else round(sum(lpips) / len(lpips), 4),
        "latency ratio": "" if latency is None else shown(latency["value"]),
        "partitions": "" if partitions is None else partitions(artifacts[0]),
        "": problem,
    }


def verdict(verdicts: list[dict[str, Any]], subject: str, metric: str | None) -> dict[str, Any] | None:
    return next((v for v in verdicts if v["subject"] == subject and metric in (None, v["metric"])), None)


def shown(ratio: float | None) -> float | str:
    """A format whose runtime is not on this host has no latency here."""
    return "not measured" if ratio is None else round(ratio, 3)


def line(values: dict[str, Any]) -> str:
    cells = [f"{values[c]:,}" if isinstance(values[c], int) else str(values[c]) for c in COLUMNS]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


if __name__ == "__main__":
    main()
