"""Two callables on this host, timed against each other."""

from collections.abc import Callable
from pathlib import Path

import torch

from compress import registry
from compress.export_stage import format_of
from compress.targets import Request
from eval.metrics import latency

Load = Callable[[Path, int], Callable[..., object]]  # a path and the number of threads -> what runs it once


def measure(request: Request, load: Load, runtime: str) -> latency.LatencyRatio:
    """Load both, and time them in pairs in this process."""
    reference, candidate = (load(path, request.threads) for path in (request.reference, request.candidate))

    def work(run: Callable[..., object]) -> Callable[[], object]:
        def once() -> object:
            with torch.no_grad():
                return run(*request.inputs)

        return once

    return latency.paired_ratio(
        work(reference),
        work(candidate),
        sampling=request.sampling,
        runtime=runtime,
        threads=request.threads,
        tell=request.tell,
    )


def exported(path: Path, threads: int) -> Callable[..., object]:
    """A file in the runtime of its own exporter.

    Raises:
        UserError: no exporter writes such files, or this one cannot be loaded.
    """
    loaded: Callable[..., object] = registry.load(f"export.{format_of(path)}").load(path, threads=threads)
    return loaded
