"""LiteRT (TensorFlow Lite) on this host's processor."""

from compress.targets import Request, _host
from eval.metrics.latency import LatencyRatio

SUFFIXES = (".tflite",)


def measure(request: Request) -> LatencyRatio:
    """Both files in LiteRT."""
    return _host.measure(request, _host.exported, "litert")
