"""Where a component's inputs come from: one file per source, named by the component's kind (`Kind.feed`).

A feed declares COMPANIONS (the components of the same family that it must run), OPTIONAL (those that it runs where the
family has them), `check` (whether these fit), and three functions of a Source: `digests` (what it would read, for keys,
without running anything), `notes` (what stands in for what is not there, for the plan and the report) and `feed`.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import nn

from compress.nn.structure import Kind
from compress.records import Arch
from compress.written import Data

ITSELF = ""  # the component that is compressed, uncompressed
Load = Callable[[str], nn.Module]  # the name of a companion, or ITSELF -> its module


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a feed is made from."""

    arch: Arch
    folder: Path  # of the component; tokenizer and noise schedule are looked for beside it
    companions: Mapping[str, Path]
    data: Data
    seed: int


def of(kind: Kind) -> ModuleType:
    """The feed of a kind of component."""
    return importlib.import_module(f"compress.feeds.{kind.feed}")
