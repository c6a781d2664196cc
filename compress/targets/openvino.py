"""OpenVINO on this host's processor; it reads ONNX files too, where it is asked for by name."""

from collections.abc import Callable
from pathlib import Path

import torch

from compress.errors import UserError, require
from compress.targets import Request, _host
from eval.metrics.latency import LatencyRatio

SUFFIXES = (".openvino", ".xml", ".onnx")


def measure(request: Request) -> LatencyRatio:
    """Both files in OpenVINO, each compiled for latency."""
    return _host.measure(request, _load, "openvino")


def _load(path: Path, threads: int) -> Callable[..., object]:
    """A file of our exporter by that exporter; any other that OpenVINO reads as it is."""
    if path.suffix == ".openvino":
        return _host.exported(path, threads)
    openvino = require("openvino", extra="openvino", purpose=f"running {path.name}")
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    except RuntimeError as error:
        raise UserError(f"{path}: OpenVINO cannot load it ({str(error).strip().splitlines()[-1]})") from error
    asked = compiled.create_infer_request()

    def call(*inputs: torch.Tensor) -> object:
        return asked.infer([one.numpy() for one in inputs])

    return call
