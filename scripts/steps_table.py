"""Task score, LPIPS to the teacher and time against sampling steps: the plain solvers and distilled UNets, as one table.

    python scripts/steps_table.py md-tiny --pictures FOLDER [--students 'progressive, 4=runs/s4:4' 'gan=runs/s1:1' ...]
        [--steps 1 4 8 20 50] [--solvers ddim dpm_solver] [--prompts 200] [--markdown FILE] [--json FILE] [--sheet FILE.png]

A student is NAME=RUN:STEPS, a run's or variant's folder or an exported file; it is sampled with DDIM and without guidance,
which it has built in. The score is that of scripts/score_t2i.py; LPIPS (st-alex) is to the picture that the teacher draws
of the same prompt and noise in the most steps of the first solver; UNet calls are per picture (guidance doubles them);
seconds are per picture over the whole set, on this machine, batches of 25 in torch and single pictures in files. With
--sheet, the first prompts are drawn, a row for each line of the table.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from score_t2i import NEAREST, Quiz, add_quiz, draw_all, places, quiz, sheet, table_head, table_row, threads

from compress.generation import open_model
from compress.sampling.generator import SOLVERS, Way
from eval.metrics import lpips

COLUMNS = {
    "way": "sampled by",
    "steps": "steps",
    "calls": "UNet calls",
    "score": "among the 10 nearest",
    "lpips": "LPIPS to the teacher",
    "seconds": "s per picture",
}
SHOWN = 12  # prompts on the sheet


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One way of sampling."""

    name: str
    unet: str | None  # None: the model's own
    way: Way


def lines(given: argparse.Namespace) -> list[Line]:
    """The teacher's own way first, in the most steps of the first solver."""
    found = [
        Line(name=solver, unet=None, way=Way(solver=solver, steps=steps, guidance=given.guidance, seed=given.seed))
        for solver in given.solvers
        for steps in sorted(given.steps, reverse=True)
    ]
    for text in given.students:
        name, _, rest = text.partition("=")
        place, _, steps = rest.rpartition(":")
        if not (name and place and steps.isdigit()):
            raise SystemExit(f"--students {text}: NAME=RUN:STEPS is needed")
        found.append(
            Line(name=name, unet=place, way=Way(solver="ddim", steps=int(steps), guidance=1.0, seed=given.seed))
        )
    return found


def row(line: Line, images: np.ndarray, seconds: float, teacher: np.ndarray, asked: Quiz) -> dict[str, Any]:
    """One line of the table."""
    pairs = zip(torch.from_numpy(teacher).split(20), torch.from_numpy(images).split(20), strict=True)
    apart = torch.cat([lpips.measure(theirs, mine, net="st-alex") for theirs, mine in pairs])
    return {
        "way": line.name,
        "steps": line.way.steps,
        "calls": line.way.steps * (1 if line.way.guidance == 1.0 else 2),
        "score": round(float((places(images, asked) < NEAREST).mean()), 3),
        "lpips": round(float(apart.mean()), 4),
        "seconds": round(seconds / len(images), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_quiz(parser)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4, 8, 20, 50])
    parser.add_argument("--solvers", nargs="+", choices=sorted(SOLVERS), default=sorted(SOLVERS))
    parser.add_argument("--students", nargs="*", default=[])
    for name in ("markdown", "json", "sheet"):
        parser.add_argument(f"--{name}", type=Path)
    given = parser.parse_args()
    asked = quiz(given.pictures, count=given.prompts, phrases=given.phrases, seed=given.seed, size=given.size)
    rows: list[dict[str, Any]] = []
    shown, teacher = [], None
    print(*table_head(COLUMNS), sep="\n")
    for line in lines(given):
        model = open_model(
            given.model, {"unet": line.unet, "decoder": given.decoder}, pixels=given.size, threads=threads()
        )
        images, seconds = draw_all(asked.prompts, model, line.way)
        teacher = images if teacher is None else teacher
        rows.append(row(line, images, seconds, teacher, asked))
        shown.append(images[:SHOWN])
        print(table_row(COLUMNS, rows[-1]), flush=True)
    if given.markdown:
        lines_of_table = [*table_head(COLUMNS), *(table_row(COLUMNS, one) for one in rows)]
        given.markdown.write_text("\n".join(lines_of_table) + "\n", encoding="utf-8")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if given.sheet:
        sheet(np.concatenate(shown), min(SHOWN, len(asked.prompts))).save(given.sheet)


if __name__ == "__main__":
    main()
