"""What a recipe says of depth pruning, and which blocks its patterns mean."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from compress.errors import UserError
from compress.nn.patches import Patch
from compress.nn.structure import Block
from compress.schema import Schema

BUDGETS = ("blocks", "to_macs_ratio", "to_parameters_ratio", "remove")


class Config(Schema):
    """How much to remove (exactly one of `blocks`, `to_macs_ratio`, `to_parameters_ratio`, `remove`), and what."""

    blocks: PositiveInt | None = Field(None, description="How many blocks to remove; a pair or a stage counts as one.")
    to_macs_ratio: float | None = Field(
        None, gt=0, lt=1, description="Remove until at most this share of the MACs is left."
    )
    to_parameters_ratio: float | None = Field(
        None, gt=0, lt=1, description="Remove until at most this share of the parameters is left."
    )
    remove: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Remove exactly these: names of blocks, pairs and stages, with * and ? wildcards.",
    )
    keep: tuple[str, ...] = Field((), description="Blocks never to remove: names with * and ? wildcards.")
    units: tuple[Literal["blocks", "pairs", "stages"], ...] = Field(
        ("blocks",),
        min_length=1,
        description="What may go: single blocks, a UNet's pairs with their skip, whole stages.",
    )
    per: Literal["macs", "parameters", "milliseconds"] = Field(
        "macs",
        description="Damage is weighed against MACs, parameters, or milliseconds saved as measured on this host.",
    )
    patch: Literal["none", "affine", "pointwise"] = Field(
        "none", description="What stands in for a block: nothing, a scale and bias per channel, or a 1x1 convolution."
    )
    ridge: float = Field(1e-4, ge=0, description="Penalty on a patch, relative to the mean variance of its input.")
    rescore: bool = Field(True, description="Score all remaining blocks again after each removal, not once.")
    samples: PositiveInt = Field(8, description="Calibration inputs to score on.")
    latent_size: PositiveInt = Field(16, description="Side of the central crop of each input to score on.")
    pixels: PositiveInt = Field(512, description="Side of the image for which MACs are counted.")

    @model_validator(mode="after")
    def _one_budget(self) -> "Config":
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(BUDGETS)}, not {' and '.join(given) or 'none'}")
        return self

    @property
    def stand_in(self) -> Patch | None:
        """The patch, if any."""
        return None if self.patch == "none" else self.patch


def matches(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern; of names joined by "+", each part fits its own part."""
    names, patterns = name.split("+"), pattern.split("+")
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))


def is_kept(names: Iterable[str], config: Config) -> bool:
    """Whether the recipe protects one of these."""
    return any(matches(name, pattern) for name in names for pattern in config.keep)


def check_patterns(blocks: Sequence[Block], config: Config) -> None:
    """Refuse a pattern that matches nothing: it would protect or remove nothing without a word.

    Raises:
        UserError: which key and pattern, and what there is.
    """
    names = list(dict.fromkeys(block.name for block in blocks))
    for key, patterns in (("keep", config.keep), ("remove", config.remove or ())):
        for pattern in patterns:
            if not any(matches(name, pattern) for name in names):
                raise UserError(f"prune.depth: {key}: '{pattern}' matches no block; blocks are {', '.join(names)}")


def named(blocks: Sequence[Block], config: Config) -> list[Block]:
    """What `remove` names, units first; what is inside of a named unit goes with that.

    A pattern that fits single blocks means those; else it means pairs and stages.

    Raises:
        UserError: one of them is fixed, or protected by keep.
    """
    found: dict[str, Block] = {}
    for pattern in config.remove or ():
        fitting = [block for block in blocks if matches(block.name, pattern)]
        single = [block for block in fitting if block.unit == "block"]
        found |= {block.name: block for block in single or fitting}
    for block in found.values():
        protected = "keep protects it" if is_kept((block.name, *block.takes), config) else None
        if reason := block.fixed or protected:
            raise UserError(f"prune.depth: remove: {block.name} cannot be removed: {reason}")
    taken: set[str] = set()
    chosen = []
    for block in sorted(found.values(), key=lambda block: -block.count):
        inside = set(block.takes or (block.name,))
        if not inside <= taken:
            chosen.append(block)
            taken |= inside
    return chosen


def may_go(blocks: Sequence[Block], config: Config) -> list[Block]:
    """The blocks and units that the search may choose from."""
    return [
        block
        for block in blocks
        if block.fixed is None and f"{block.unit}s" in config.units and not is_kept((block.name, *block.takes), config)
    ]
