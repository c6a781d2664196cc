"""Checkpoint folders of other libraries: one file per class, named after it; nothing to register."""

from compress.components._checkpoints._folders import Checkpoint, has_part, locate, part_of, parts_of
from compress.components._checkpoints._writing import write

__all__ = ["Checkpoint", "has_part", "locate", "part_of", "parts_of", "write"]
