"""The three parts of a bundle: where each is, in which one format, what it came from, and what of it enters the zoo.

A part is what `generate` takes (a preset, a variant's folder, an exported file), a run's folder, a component's zoo
entry or another bundle. A bundle is of one format, so that whoever takes it needs one runtime.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.components import licence_of
from compress.errors import UserError
from compress.export import _run
from compress.export_stage import artifact_with, formats
from compress.files import parts_of, read_json, size_of
from compress.generation import LEAVES, PRESETS, Leaf
from compress.headers import entries
from compress.zoo_entry import FLOAT_TENSORS, FLOAT_TOLERANCE
from compress.zoo_index import Card, digest, read_card

TORCH = "torch"
FORMATS = {formats()[suffix]: suffix for suffix in _run.suffixes() if suffix in formats()}  # that draw without torch
ORDER = (*FORMATS, TORCH)  # which is taken where nothing is said and the parts have several
VARIANT = ("arch.json", "weights.safetensors", "quantization.json", "lineage.json")  # of a variant's folder
UNKNOWN = "unknown"
WHOLE_DB, INTEGERS_DB = 45.0, 30.0  # PSNR that pictures drawn again are held to; docs/zoo.md says why
WHOLE = {FLOAT_TOLERANCE["min_psnr_db"], FLOAT_TENSORS["min_sqnr_db"], WHOLE_DB}  # the samples' limits of float files


@dataclass(frozen=True, slots=True, kw_only=True)
class BundlePart:
    """One of the three."""

    place: Path  # a file, a folder that is one artifact, or a variant's folder
    origin: str  # "decoder/w8a8", "md-tiny/decoder", "unet.onnx"
    licence: str
    tools: Mapping[str, str]
    whole: bool  # whether it is known to hold float32 weights and nothing else

    def files(self, leaf: str, name: str) -> dict[str, Path]:
        """Its files by their names in the entry."""
        if name == TORCH:
            return {f"{leaf}/{f}": self.place / f for f in VARIANT if (self.place / f).is_file()}
        below = f"{leaf}{FORMATS[name]}"
        if self.place.is_file():
            return {below: self.place}
        return {f"{below}/{p.relative_to(self.place).as_posix()}": p for p in parts_of(self.place)}

    @property
    def bytes(self) -> int:
        """Of all that enters the zoo."""
        if (self.place / "arch.json").is_file():
            return sum(size_of(self.place / f) for f in VARIANT if (self.place / f).is_file())
        return size_of(self.place)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleParts:
    """Three parts of one format."""

    format: str
    parts: Mapping[Leaf, BundlePart]

    @property
    def bytes(self) -> int:
        """Of the three together."""
        return sum(part.bytes for part in self.parts.values())

    @property
    def licence(self) -> str:
        """Of the weights: one, several joined as SPDX does, or "unknown" where one is."""
        found = sorted({part.licence for part in self.parts.values()})
        return UNKNOWN if UNKNOWN in found else " AND ".join(found)


def chosen(folder: Path, given: Mapping[Leaf, str | None], wanted: str | None = None) -> BundleParts:
    """The parts of a model's folder, or what is given in their places, in the format that all three have.

    Raises:
        UserError: a part is missing or is another component's, or no format is common to them; says who has what.
    """
    if wanted is not None and wanted not in ORDER:
        raise UserError(f"no format '{wanted}'; a bundle is of one of: {', '.join(ORDER)}")
    offered = {leaf: _offers(given.get(leaf), folder, leaf) for leaf in LEAVES}
    common = [name for name in ORDER if all(name in offers for offers in offered.values())]
    if not common or (wanted is not None and wanted not in common):
        has = "; ".join(f"{leaf}: {', '.join(sorted(offers))}" for leaf, offers in offered.items())
        asked = f"not all parts are there as {wanted}" if wanted else "these parts are of different formats"
        raise UserError(
            f"{asked} ({has}); a bundle is of one format, so that it needs one runtime: export the others too, or give "
            "--text-encoder, --unet and --decoder"
        )
    name = wanted or common[0]
    return BundleParts(format=name, parts={leaf: _part(offers[name], leaf) for leaf, offers in offered.items()})


def float32_bytes(parts: BundleParts) -> int:
    """What the weights of three uncompressed variants take in float32.

    Raises:
        UserError: one of them is none, or holds integers.
    """
    total = 0
    for leaf, part in parts.parts.items():
        weights = part.place / "weights.safetensors"
        if (part.place / "quantization.json").is_file():
            raise UserError(f"{part.place}: the reference's {leaf} is quantized; give --reference, the float model")
        if not weights.is_file():
            raise UserError(
                f"{part.origin} comes without weights: the reference draws what the bundle is compared with; train it "
                "(scripts/train_t2i.py) and give --reference FOLDER"
            )
        total += 4 * sum(_count(entry["shape"]) for entry in entries(weights)[1].values())
    return total


def _count(shape: Any) -> int:
    count = 1
    for size in shape:
        count *= int(size)
    return count


def _offers(given: str | None, folder: Path, leaf: Leaf) -> dict[str, Path]:
    """What there is of a part, by its format."""
    root = folder if given is None else Path(given)
    if given is not None and root.suffix in FORMATS.values() and root.exists():
        return {name: root for name, suffix in FORMATS.items() if suffix == root.suffix}
    if given is not None and not root.exists():
        root = PRESETS / given
    _refuse_other_component(root, leaf)
    found = {name: place for name in ORDER for place in _there(root, leaf, name)}
    if not found:
        raise UserError(_nothing(given, root, leaf))
    return found


def _there(root: Path, leaf: Leaf, name: str) -> list[Path]:
    """The part in one format, or nothing; a whole model's files have their parts' names."""
    if name == TORCH:
        bases = (root, root / leaf, root / "variant")
        return [b for b in bases if (b / "arch.json").is_file() and (b / "weights.safetensors").is_file()][:1]
    suffix = FORMATS[name]
    if (root / "scheduler.json").is_file():
        files = [root / f"{leaf}{suffix}"]
    else:
        files = [file for folder in (root, root / "artifacts") for file in sorted(folder.glob(f"*{suffix}"))]
    there = [file for file in files if file.exists()]
    if len(there) > 1:
        raise UserError(f"{root} has {', '.join(file.name for file in there)}; name the {leaf} among them")
    return there


def _nothing(given: str | None, root: Path, leaf: Leaf) -> str:
    if (root / "arch.json").is_file() or (root / leaf / "arch.json").is_file():
        return (
            f"{given or f'{root.name}/{leaf}'} comes without weights: train it (scripts/train_t2i.py) and give --model "
            f"FOLDER, or give --{leaf.replace('_', '-')}"
        )
    return (
        f"{given or f'{root}: {leaf}'}: no such part; a {leaf} is a preset, a variant's or a run's folder, a zoo "
        f"entry, or a file ({', '.join(FORMATS.values())})"
    )


def _refuse_other_component(root: Path, leaf: Leaf) -> None:
    if not (root / "card.json").is_file():
        return
    card = read_card(root)
    if not card.is_bundle and card.component.rpartition("/")[2] != leaf:
        raise UserError(f"{root}: this zoo entry is a {card.component.rpartition('/')[2]} ({card.name}), not a {leaf}")


def _part(place: Path, leaf: Leaf) -> BundlePart:
    """What is known of a part from where it lies."""
    for root in (place, place.parent, place.parent.parent):
        if (root / "card.json").is_file():
            return _of_entry(place, root, read_card(root))
        if (root / "plan.json").is_file() and (root / "status.json").is_file():
            return _of_run(place, root)
    torch_like = (place / "arch.json").is_file()
    whole = torch_like and not (place / "quantization.json").is_file()
    preset = place.parent.parent == PRESETS
    origin = f"{place.parent.name}/{place.name}" if preset else place.name
    return BundlePart(place=place, origin=origin, licence=licence_of(place), tools={}, whole=whole)


def _of_run(place: Path, root: Path) -> BundlePart:
    """A part of a run that passed."""
    state = read_json(root / "status.json").get("state", "missing")
    if state != "passed":
        raise UserError(f"{root}: this run is {state}; a bundle takes what passed its own gates")
    licence = read_json(root / "entry.json")["licence"] if (root / "entry.json").is_file() else UNKNOWN
    return BundlePart(
        place=place,
        origin=str(read_json(root / "plan.json")["recipe"]),
        licence=licence,
        tools={},
        whole=not (root / "variant" / "quantization.json").is_file(),
    )


def _of_entry(place: Path, root: Path, card: Card) -> BundlePart:
    """A part of a zoo entry: its files are those that the card lists."""
    for name, listed in card.files.items():
        if artifact_with(root / name, root) == place and digest(root / name) != listed:
            raise UserError(f"{root / name} is not the file that {root / 'card.json'} lists; pull the entry again")
    limits = {limit for s in card.samples for limit in s.decibels} | {limit for s in card.drawn for limit in s.decibels}
    whole = bool(limits) and limits <= WHOLE
    return BundlePart(place=place, origin=card.name, licence=card.licence, tools=card.tools, whole=whole)
