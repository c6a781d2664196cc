"""torch on this host's processor: structure against structure.

Quantized layers run in float here, so integers gain nothing; what ships is timed as a file in its own runtime.
"""

from collections.abc import Callable
from pathlib import Path

from compress.components import load_variant
from compress.nn.surgery import float_twin
from compress.targets import Request, _host, component_folder
from eval.metrics.latency import LatencyRatio

SUFFIXES = ("",)


def measure(request: Request) -> LatencyRatio:
    """Both component folders in torch, float32."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.threads)
    try:
        return _host.measure(request, _load, "torch float32")
    finally:
        torch.set_num_threads(before)


def _load(path: Path, threads: int) -> Callable[..., object]:
    return float_twin(load_variant(component_folder(path) or path).module)
