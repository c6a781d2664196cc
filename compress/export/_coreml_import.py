"""How coremltools is imported."""

import sys
from types import ModuleType

from compress.errors import require
from compress.export._hushed import environment, loggers_without_warnings

# of versions that it has not been tested with, of Apple's library, which is not here, and of what it imports in turn
TALKERS = ("coremltools", "coremltools.models.model", "torchao", "torch.utils._pytree")


def quietly_imported(purpose: str) -> ModuleType:
    """coremltools, without its remarks about other packages, and TensorFlow's about the processor.

    Raises:
        MissingExtra: it is not installed.
    """
    if "coremltools" in sys.modules:
        return require("coremltools", extra="coreml", purpose=purpose)
    with loggers_without_warnings(*TALKERS), environment("TF_CPP_MIN_LOG_LEVEL", "1"):
        return require("coremltools", extra="coreml", purpose=purpose)
