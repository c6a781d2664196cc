"""ONNX Runtime on this host's processor."""

from compress.targets import Request, _host
from eval.metrics.latency import LatencyRatio

SUFFIXES = (".onnx", ".ort")


def measure(request: Request) -> LatencyRatio:
    """Both files in ONNX Runtime."""
    return _host.measure(request, _host.exported, "onnxruntime")
