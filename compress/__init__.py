"""Recipe-driven compression of MobileDiffusion-style components.

    from compress import load_variant, make_plan, read_recipe, run_plan

Names are loaded when they are first used, so that importing the package takes no time.
"""

import importlib
from typing import Any

_PUBLIC = {
    "load_variant": "compress.components",
    "make_plan": "compress.plan",
    "read_recipe": "compress.recipe",
    "run_plan": "compress.pipeline",
}
__all__ = ["load_variant", "make_plan", "read_recipe", "run_plan"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'compress' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
