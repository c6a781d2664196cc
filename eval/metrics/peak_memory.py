"""The memory that a piece of work takes at its peak, in a process of its own.

Source: the resident set as the kernel counts it (VmHWM and VmRSS of /proc/self/status; elsewhere getrusage).
Differs: the child reads its own figures, because what a parent is told (ru_maxrss of a child) contains the parent's own
size at the fork. The peak counter is set back when the imports are done, and what was resident then is taken off: the
figure is what loading and running the model adds.
Cost: one more start of Python and torch for each measurement, one or two seconds.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.errors import EvalError

UNIT = "bytes"
HIGHER_IS_BETTER = False
RANGE = (0.0, float("inf"))
NEEDS_NET = False
TAKES = "cost"
DEFINITION = "peak resident bytes of a child process, less what was resident before the model was loaded"
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
LAST_LINES = 3  # of a failed child's errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What one child process reported."""

    before: int  # resident bytes when everything was imported and nothing loaded
    peak: int  # the largest resident set after that

    @property
    def added(self) -> int:
        """What the work took."""
        return max(self.peak - self.before, 0)


def measured(function: str, arguments: Sequence[str] = (), *, seconds: float = 600.0) -> Peak:
    """Call a function in a child process and report its peak.

    Args:
        function: "package.module:name"; importable, takes strings. Its module is imported before the count begins.
        arguments: What it is called with.
        seconds: How long it may take.

    Raises:
        EvalError: the child failed, took too long or was killed (no memory); says what it printed last.
    """
    command = [sys.executable, "-m", "eval.metrics.peak_memory", function, *arguments]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired as error:
        raise EvalError(f"{function} took more than {seconds:g} s in a process of its own; give it longer") from error
    if done.returncode:
        last = "; ".join(done.stderr.strip().splitlines()[-LAST_LINES:]) or "nothing printed"
        killed = ", which a system that runs out of memory does" if done.returncode == -9 else ""
        raise EvalError(f"{function} ended with {done.returncode}{killed} in a process of its own: {last}")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def _resident() -> tuple[int, int]:
    """Bytes resident now, and at most so far."""
    if STATUS.is_file():
        lines = dict(line.split(":", 1) for line in STATUS.read_text(encoding="ascii").splitlines() if ":" in line)
        now, most = (1024 * int(lines[key].split()[0]) for key in ("VmRSS", "VmHWM"))
        return now, most
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return most, most


def _child(function: str, *arguments: str) -> int:
    module, _, name = function.partition(":")
    work = getattr(importlib.import_module(module), name)
    if CLEAR.exists():
        CLEAR.write_text("5", encoding="ascii")  # sets the peak back to what is resident now
    before, _ = _resident()
    work(*arguments)
    sys.stdout.flush()
    os.write(1, (json.dumps({"before": before, "peak": _resident()[1]}) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(_child(*sys.argv[1:]))
