"""One file per metric, named as the metric; the directory is the registry.

Every file declares what it takes (TAKES), its UNIT, RANGE, HIGHER_IS_BETTER, NEEDS_NET, and its DEFINITION: one line
that changes whenever the same pictures would give another number, so that old numbers are not compared with new ones.

`images`  `measure(reference, candidate)` of two batches of pictures [n, 3, h, w] in [0, 1] -> [n]
`tensors` `measure(reference, candidate)` of two batches of any tensors of one shape [n, ...] -> [n]
`latents` `measure(reference, candidate)` of two batches of latents after each step of sampling [n, steps, ...] -> [n]
`asked`   `measure(images, gallery, right)` of drawn pictures, and which of a folder's pictures each should show -> [n]
`cost`    clocks, files and memory: one number of each model, by calls of the file's own
"""

import importlib
import pkgutil
from types import ModuleType
from typing import Literal

from eval.errors import unknown

Takes = Literal["images", "tensors", "latents", "asked", "cost"]


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


def takes(name: str) -> Takes:
    """What a metric is measured of."""
    found: Takes = get(name).TAKES
    return found


def is_image_metric(name: str) -> bool:
    """Whether a metric compares pictures."""
    return takes(name) == "images"


def is_sampled(name: str) -> bool:
    """Whether a metric has one value per sample (pictures, tensors) rather than one per model."""
    return takes(name) != "cost"
