"""What is compressed: one file per component; presets are folders beside them.

`load("md-tiny/decoder")` gives the trained module of a preset, ready to use. Presets of published architectures have no
weights: they are counted, planned with, and built for weights that come from elsewhere. `adopt(module, example)` makes
a component of anybody's module.
"""

from compress.components._checkpoints import Checkpoint, locate, parts_of
from compress.components._checkpoints import write as write_checkpoint
from compress.components._entry import adopt_named
from compress.components._folder import (
    beside,
    check_variant,
    component_cost,
    cost_of,
    files_of,
    find,
    has_weights,
    load,
    load_variant,
    names,
    read_arch,
    save_variant,
    weights_of,
)
from compress.components._kinds import arch_to_json, build, kind_of
from compress.components._licence import licence_of
from compress.components.foreign import adopt

__all__ = [
    "Checkpoint",
    "adopt",
    "adopt_named",
    "arch_to_json",
    "beside",
    "build",
    "check_variant",
    "component_cost",
    "cost_of",
    "files_of",
    "find",
    "has_weights",
    "kind_of",
    "licence_of",
    "load",
    "load_variant",
    "locate",
    "names",
    "parts_of",
    "read_arch",
    "save_variant",
    "weights_of",
    "write_checkpoint",
]
