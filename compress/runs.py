"""The run directory: what was asked, what happened, what was measured, what was decided.

recipe.yaml, plan.json, environment.json, events.jsonl, measurements.jsonl, verdicts.json, variant/, artifacts/,
report.html, and status.json, which says whether the run came to its end. Everything is plain text or safetensors.
"""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress import extras
from compress.errors import UserError
from compress.files import read_json, write_json, write_text

FORMATS = "export"  # the extra of every format


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened; `progress` events are drawn but not written down."""

    kind: str  # "started", "progress", "cached", "finished", "measured", "judged", "exported", "added"
    name: str
    text: str = ""
    done: int = 0
    total: int = 0
    seconds: float | None = None


Emit = Callable[[Event], None]


class RunFolder:
    """One run's files."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def status(self) -> Mapping[str, Any]:
        """What status.json says; empty before the first run.

        Raises:
            UserError: it says nothing that a run would have written.
        """
        path = self.root / "status.json"
        status = read_json(path) if path.exists() else {}
        if not isinstance(status, dict):
            raise UserError(f"{path} is not the status of a run; choose another --out, or delete {self.root}")
        return status

    def begin(self, *, digest: str, key: str, recipe_text: str, plan: Mapping[str, Any]) -> None:
        """Claim the folder for a recipe.

        Raises:
            UserError: it belongs to another recipe, or holds something else.
        """
        status = self.status
        if status and status.get("recipe_digest") != digest:
            raise UserError(
                f"{self.root} is a run of another recipe ({status.get('recipe')}); choose another --out, or delete it"
            )
        if not status and self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise UserError(f"{self.root} exists and is no run directory; choose another --out")
        self.root.mkdir(parents=True, exist_ok=True)
        self.finish("running", digest=digest, key=key, recipe=plan["recipe"])
        write_text(self.root / "recipe.yaml", recipe_text)
        write_json(self.root / "plan.json", plan)
        write_json(self.root / "environment.json", environment())

    def finish(self, state: str, *, digest: str, key: str, recipe: str) -> None:
        """Write down how the run stands: running, passed or failed."""
        write_json(
            self.root / "status.json",
            {"schema": 1, "state": state, "recipe": recipe, "recipe_digest": digest, "variant_key": key},
        )

    def noting(self, emit: Emit) -> Emit:
        """An `emit` that also appends to events.jsonl."""

        def tell(event: Event) -> None:
            emit(event)
            if event.kind != "progress":
                self.note(event)

        return tell

    def note(self, event: Event) -> None:
        """Append to events.jsonl."""
        row = {k: v for k, v in asdict(event).items() if v not in ("", None, 0)} | {"at": round(time.time(), 3)}
        with (self.root / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")

    def write_measurements(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """One JSON object per line, replacing what was there."""
        lines = [json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows]
        write_text(self.root / "measurements.jsonl", "".join(lines))


def environment() -> dict[str, str]:
    """What ran: versions, system, processor."""
    import torch

    from eval.metrics import latency

    found = {"python": platform.python_version(), "host": latency.host(), "torch threads": str(torch.get_num_threads())}
    packages = (extras.DISTRIBUTION, *extras.required(), *extras.packages(FORMATS), *extras.packages("lpips"))
    return found | {package: extras.version(package) or "not installed" for package in packages}
