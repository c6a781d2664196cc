"""What is compressed: one file per component; presets are folders beside them.

`load("md-tiny/decoder")` gives the trained module of a preset, ready to use.
"""

from compress.components._folder import component_cost, find, load, load_variant, names, read_arch, save_variant
from compress.components._kinds import build, kind_of

__all__ = ["build", "component_cost", "find", "kind_of", "load", "load_variant", "names", "read_arch", "save_variant"]
