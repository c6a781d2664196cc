"""How OpenVINO is imported."""

import sys
from types import ModuleType

from compress.errors import require


def quietly_imported(purpose: str) -> ModuleType:
    """OpenVINO, without the event that it would send on being imported."""
    if "openvino" in sys.modules:
        return require("openvino", extra="openvino", purpose=purpose)
    before = {name: sys.modules[name] for name in ("openvino_telemetry",) if name in sys.modules}
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # what openvino takes for "not installed"
    try:
        return require("openvino", extra="openvino", purpose=purpose)
    finally:
        del sys.modules["openvino_telemetry"]
        sys.modules.update(before)
