"""Write measured numbers into the documents, between two markers of README.md and into docs/formats.md.

python scripts/readme_table.py .demo/run
python scripts/readme_table.py --formats ROWS      rows that benchmarks/formats.py --out ROWS measured: the default recipe's
                                                   into README.md, all into docs/formats.md
python scripts/readme_table.py --pipelines FILE    the table that scripts/pipelines_table.py --markdown FILE wrote
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import formats_table
from compress.recipe import read_recipe, shipped

DEFAULT = "decoder/d4_c50_kd_w8a8"
FORMATS = "<!-- every recipe in every format: start -->", "<!-- every recipe in every format: end -->"
PIPELINES = "<!-- whole models: start -->", "<!-- whole models: end -->"
START, END = "<!-- numbers of make demo: start -->", "<!-- numbers of make demo: end -->"


def table(run: Path) -> str:
    facts = json.loads((run / "entry.json").read_text())["facts"]
    verdicts = json.loads((run / "verdicts.json").read_text())
    plan = json.loads((run / "plan.json").read_text())
    seconds = sum(event.get("seconds", 0) for event in map(json.loads, (run / "events.jsonl").read_text().splitlines()))
    reference = plan["reference"]
    sizes = next(v for v in verdicts if v["metric"] == "size" and v["subject"] == "onnx")
    latency = next(v for v in verdicts if v["metric"] == "latency" and v["subject"] == "onnx")
    rows = [
        ("parameters", f"{reference['parameters']['low']:,}", f"{facts['parameters']:,}"),
        ("MACs per image", f"{reference['macs']['low'] / 1e9:.2f} G", f"{facts['macs'] / 1e9:.2f} G"),
        ("ONNX file", f"{facts['bytes'] / sizes['value'] / 1e6:.2f} MB", f"{facts['bytes'] / 1e6:.2f} MB"),
        ("latency in ONNX Runtime", "1", f"{latency['value']:.2f} ({latency['low']:.2f} to {latency['high']:.2f})"),
        ("PSNR to the photographs, mean", f"{facts['psnr_mean_of_teacher']:.2f} dB", f"{facts['psnr_mean']:.2f} dB"),
        ("SSIM, mean", f"{facts['ssim_mean_of_teacher']:.3f}", f"{facts['ssim_mean']:.3f}"),
        ("LPIPS (st-alex), mean", f"{facts['lpips_mean_of_teacher']:.3f}", f"{facts['lpips_mean']:.3f}"),
    ]
    lines = [
        f"| `{plan['component']}`, {facts['image_size']} px | teacher, float32 | `{plan['recipe']}`, int8 |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {before} | {after} |" for name, before, after in rows]
    lines.append("")
    lines.append(
        f"{sum(v['passed'] for v in verdicts)} of {len(verdicts)} gates passed; {seconds:.0f} s on {facts['latency_host']}. "
        "A host's latency is not a phone's."
    )
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1] == "--formats":
        digests = {name: formats_table.subject(read_recipe(path)) for name, path in shipped().items()}
        rows = formats_table.current(formats_table.read(Path(sys.argv[2])), digests)
        put(summary(rows, digests), *FORMATS)
        (ROOT / "docs" / "formats.md").write_text(formats_table.document(rows, digests))
    elif sys.argv[1] == "--pipelines":
        put(Path(sys.argv[2]).read_text().strip(), *PIPELINES)
    else:
        put(table(Path(sys.argv[1])), START, END)


def summary(rows: list[formats_table.Row], names: dict[str, str]) -> str:
    """The default recipe's rows, and what there is of the others."""
    files = [row for row in rows if row.get("bytes") is not None]
    recipes, passed = {row["recipe"] for row in files}, [row for row in files if row["outcome"] == "passed"]
    said = (
        f"[docs/formats.md](docs/formats.md) has {len(files)} files of {len(recipes)} of the {len(names)} recipes, "
        f"{len(passed)} of them past every gate."
    )
    return f"{formats_table.markdown([row for row in files if row['recipe'] == DEFAULT])}\n\n{said}"


def put(made: str, start: str, end: str) -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    if start not in text:
        sys.exit(f"README.md has no place for it: {start}")
    pattern = f"{re.escape(start)}.*{re.escape(end)}"
    readme.write_text(re.sub(pattern, lambda _: f"{start}\n{made}\n{end}", text, flags=re.S))


if __name__ == "__main__":
    main()
