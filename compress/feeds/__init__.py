"""Where a component's inputs come from: one file per source, named by the component's kind (`Kind.feed`).

A feed declares COMPANIONS (the components of the same family that it runs), `digests` (what it would read, for keys,
without running anything), `check` (whether the companions fit) and `feed`.
"""

import importlib
from types import ModuleType

from compress.nn.structure import Kind


def of(kind: Kind) -> ModuleType:
    """The feed of a kind of component."""
    return importlib.import_module(f"compress.feeds.{kind.feed}")
