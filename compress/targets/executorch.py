"""ExecuTorch on this host's processor."""

from compress.targets import Request, _host
from eval.metrics.latency import LatencyRatio

SUFFIXES = (".pte",)


def measure(request: Request) -> LatencyRatio:
    """Both files in ExecuTorch."""
    return _host.measure(request, _host.exported, "executorch")
