"""Write the numbers of a finished run into README.md, between its two markers.

python scripts/readme_table.py .demo/run
python scripts/readme_table.py --formats FILE      the table that benchmarks/formats.py --markdown FILE wrote
python scripts/readme_table.py --pipelines FILE    the table that scripts/pipelines_table.py --markdown FILE wrote
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
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
        put(Path(sys.argv[2]).read_text().strip(), *FORMATS)
    elif sys.argv[1] == "--pipelines":
        put(Path(sys.argv[2]).read_text().strip(), *PIPELINES)
    else:
        put(table(Path(sys.argv[1])), START, END)


def put(made: str, start: str, end: str) -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    if start not in text:
        sys.exit(f"README.md has no place for it: {start}")
    pattern = f"{re.escape(start)}.*{re.escape(end)}"
    readme.write_text(re.sub(pattern, lambda _: f"{start}\n{made}\n{end}", text, flags=re.S))


if __name__ == "__main__":
    main()
