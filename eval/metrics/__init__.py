"""One file per metric, named as the metric; the directory is the registry.

An image metric declares UNIT, HIGHER_IS_BETTER, RANGE, NEEDS_NET and `measure`; latency and size have calls of their
own.
"""

import importlib
import pkgutil
from types import ModuleType

from eval.errors import unknown


def names() -> tuple[str, ...]:
    """Every metric there is, in alphabetical order. Imports none of them."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_")))


def get(name: str) -> ModuleType:
    """The file of a metric.

    Raises:
        EvalError: there is no such metric; names the nearest.
    """
    if name not in names():
        raise unknown("metric", name, names())
    return importlib.import_module(f"{__name__}.{name}")


def is_image_metric(name: str) -> bool:
    """Whether a metric compares pictures (and so has `measure`) rather than clocks or files."""
    return hasattr(get(name), "measure")
