"""What `models list` and `models show` say, as JSON and as tables."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from compress import drawing
from compress.components import (
    check_variant,
    component_cost,
    cost_of,
    find,
    has_weights,
    kind_of,
    names,
    read_arch,
)
from compress.errors import UserError
from compress.nn.cost import by_block
from compress.records import Arch

LIST_PIXELS = 512  # side of the image that `models list` counts for, as the papers do
LISTED = 6  # layers named beside a group of channels
BAR = 24  # characters of the longest bar
PRECISIONS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}


def listed() -> dict[str, dict[str, Any]]:
    """Every preset with its parameters, its MACs for a 512x512 image, and whether it has weights."""
    found = {}
    for name in names():
        cost = component_cost(name, LIST_PIXELS)
        found[name] = {"parameters": cost.parameters, "macs": cost.macs, "weights": has_weights(name)}
    return found


def list_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per preset."""
    rows = [
        (name, f"{x['parameters']:,}", drawing.count(x["macs"]), "yes" if x["weights"] else "no")
        for name, x in found.items()
    ]
    columns = ("component", "parameters", f"MACs at {LIST_PIXELS}", "weights")
    return drawing.table(columns, rows, numeric=columns[1:3])


def shown(name: str, pixels: int) -> dict[str, Any]:
    """What a preset, or a component in a folder, costs for an image of `pixels` x `pixels`: totals, blocks, layers.

    Raises:
        UserError: no such preset or folder, a folder whose weights do not fit, or a size that no latents have.
    """
    trained, folder = True, Path(name)
    if name in names() or not _names_a_folder(folder):
        trained, folder = has_weights(name), find(name)
    else:
        check_variant(folder)
    return _shown(name, read_arch(folder), pixels, trained=trained)


def shown_code(module: str, encoder: str | None, pixels: int) -> dict[str, Any]:
    """The same of a module that `package.module:function` makes, and what pruning may do with it.

    Raises:
        UserError: the code cannot be used, or a size that no latents have.
    """
    from compress.own_code import alone

    arch = alone(module, encoder).arch
    kind = kind_of(arch.kind)
    free = [
        {
            "name": group.name,
            "kind": group.kind,
            "width": group.width,
            "norm_groups": group.norm_groups,
            "layers": list(dict.fromkeys(part.tensor.rpartition(".")[0] for part in group.slices)),
        }
        for group in kind.channel_groups(arch.config)
    ]
    fixed = [asdict(item) for item in kind.fixed_channels(arch.config)] if kind.fixed_channels else []
    removable = [asdict(block) for block in kind.blocks(arch.config)]
    cuts = {"groups": free, "fixed_channels": fixed, "removable_blocks": removable}
    return _shown(module, arch, pixels, trained=True) | cuts


def _shown(name: str, arch: Arch, pixels: int, *, trained: bool) -> dict[str, Any]:
    if pixels < 8 or pixels % 8:
        raise UserError(f"--pixels {pixels}: a positive multiple of 8 is needed")
    cost = cost_of(arch, pixels)
    blocks = by_block(cost, [block.name for block in kind_of(arch.kind).blocks(arch.config)])
    return {
        "name": name,
        "pixels": pixels,
        "trained": trained,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "weight_bytes": cost.weight_bytes,
        "bytes": {label: cost.weight_bytes_at(bits) for label, bits in PRECISIONS.items()},
        "activations": cost.activations,
        "peak_activations": cost.peak_activations,
        "blocks": [asdict(block) for block in blocks],
        "layers": [asdict(layer) for layer in cost.layers],
    }


def _names_a_folder(path: Path) -> bool:
    """Whether it is there, or is the name of a part of a folder that is there."""
    return path.exists() or path.parent.joinpath("config.json").exists() or (path.parent / "model_index.json").exists()


def part_table(parts: Sequence[Mapping[str, Any]]) -> Table:
    """One row per block or layer, with a bar of its share of the MACs."""
    most = max((part["macs"] for part in parts), default=0) or 1
    last = "peak" if parts and "peak_activations" in parts[0] else "kind"
    rows = [
        (
            part["name"],
            drawing.count(part["parameters"]),
            drawing.count(part["macs"]),
            drawing.count(part["activations"]),
            drawing.count(part["peak_activations"]) if last == "peak" else part["kind"],
            "█" * round(BAR * part["macs"] / most),
        )
        for part in parts
    ]
    columns = ("block" if last == "peak" else "layer", "parameters", "MACs", "activations", last, "")
    return drawing.table(columns, rows, numeric=columns[1:4] + (("peak",) if last == "peak" else ()))


def cut_tables(found: Mapping[str, Any]) -> tuple[Table, ...]:
    """What pruning may take out of somebody's module, and what it may not and why; nothing for a component."""
    if "groups" not in found:
        return ()
    blocks = [(b["name"], "no" if b["fixed"] else "yes", b["fixed"] or "") for b in found["removable_blocks"]]
    groups = [(g["name"], g["kind"], str(g["width"]), _short(g["layers"])) for g in found["groups"]]
    fixed = [(f["name"], str(f["width"]), f["reason"]) for f in found["fixed_channels"]]
    return (
        drawing.table(("block", "can be removed", "why not"), blocks),
        drawing.table(("channels", "kind", "width", "layers that hold them"), groups, numeric=("width",)),
        drawing.table(("fixed channels", "width", "why"), fixed, numeric=("width",)),
    )


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def totals(found: Mapping[str, Any]) -> str:
    """The lines under the table."""
    sizes = ", ".join(f"{drawing.size(size)} in {label}" for label, size in found["bytes"].items())
    peak = found["peak_activations"]
    weights = "" if found["trained"] else "\ncomes without weights: a recipe on it needs --checkpoint FOLDER"
    return (
        f"{found['name']}: {found['parameters']:,} parameters, {found['macs']:,} MACs for one image of "
        f"{found['pixels']}x{found['pixels']}\n"
        f"weights {sizes} (integers: one scale per output channel)\n"
        f"activations at once: at least {drawing.size(4 * peak)} in fp32, {drawing.size(2 * peak)} in fp16, "
        f"{drawing.size(peak)} in int8{weights}"
    )
