"""A component on disk: arch.json, weights.safetensors; for variants also quantization.json and lineage.json.

Presets, teachers and variants all have this one layout, so whatever reads one reads all. A path may also name a
component of another library's folder (`_checkpoints`), which is then read in place. Nothing is pickled.
"""

from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.components._checkpoints import Checkpoint, has_part, locate, part_of
from compress.components._kinds import arch_from_json, arch_to_json, build, kind_of
from compress.components._packing import packed_state, stored
from compress.components._sidecars import read_lineage, read_quantization, read_splits
from compress.components._tensors import Entry, fill, header, misfits, refuse
from compress.errors import UserError
from compress.files import read_json, write_json, write_tensors
from compress.nn.cost import Cost, measure
from compress.nn.qmodules import apply_map, quantizable, quantization_map
from compress.nn.splits import split, splits
from compress.nn.structure import example_inputs
from compress.nn.surgery import replaced
from compress.records import Arch, Variant

PRESETS = Path(__file__).parent / "presets"


def names() -> list[str]:
    """Every preset: `family/component`."""
    return sorted(str(p.parent.relative_to(PRESETS)) for p in PRESETS.glob("*/*/arch.json"))


def find(component: str, checkpoint: Path | None = None) -> Path:
    """The folder of a preset, or the path that names the same component in a checkpoint given instead.

    Raises:
        UserError: neither exists; names what does.
    """
    if checkpoint is not None:
        leaf = component.rpartition("/")[2]
        ours = next((p for p in (checkpoint / leaf, checkpoint) if (p / "arch.json").exists()), None)
        folder = ours or part_of(checkpoint, leaf)
        if folder is None:
            raise UserError(
                f"{checkpoint}: no arch.json here or in {leaf}/, and no config.json of a diffusers or transformers "
                "folder; a checkpoint has one of them, and its weights as safetensors"
            )
        return folder
    if component not in names():
        close = get_close_matches(component, names(), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UserError(
            f"no component '{component}'{hint} (known: {', '.join(names()) or 'none'}); "
            "a component of your own is given by its folder (--checkpoint) or by the code that makes it (--module)"
        )
    return PRESETS / component


def beside(component: str, checkpoint: Path | None = None) -> Path | None:
    """As `find`, but None where the preset family or the checkpoint has no such component with weights.

    Raises:
        UserError: it is there and cannot be read.
    """
    leaf = component.rpartition("/")[2]
    if checkpoint is None:
        folder = PRESETS / component
        return folder if (folder / "weights.safetensors").exists() else None
    if (checkpoint / leaf / "arch.json").exists():
        return checkpoint / leaf
    return part_of(checkpoint, leaf) if has_part(checkpoint, leaf) else None


def load(component: str) -> nn.Module:
    """The module of a preset, eval mode, float32, weights loaded. A decoder maps latents to images in [0, 1]."""
    return load_variant(find(component), component).module


def weights_of(folder: Path) -> Path:
    """The file of a component folder that holds its weights.

    Raises:
        UserError: it has none; says what to do.
    """
    path = folder / "weights.safetensors"
    if path.exists():
        return path
    if folder.is_relative_to(PRESETS):
        name = folder.relative_to(PRESETS).as_posix()
        raise UserError(
            f"{name} is an architecture that comes without weights; give a folder that has them with "
            f"--checkpoint FOLDER ({folder.name}/arch.json and {folder.name}/weights.safetensors in it, or a folder of "
            "diffusers or transformers)"
        )
    raise UserError(f"{path} does not exist; a component folder holds arch.json and weights.safetensors")


def has_weights(component: str) -> bool:
    """Whether a preset comes trained; else it is an architecture alone."""
    return (find(component) / "weights.safetensors").exists()


def files_of(folder: Path) -> tuple[Path, ...]:
    """Every file that a component's network is read from.

    Raises:
        UserError: weights are missing, or of a kind that is not read.
    """
    there = _foreign(folder)
    if there is not None:
        return there.files()
    quantization = folder / "quantization.json"
    return (folder / "arch.json", weights_of(folder), *([quantization] if quantization.exists() else []))


def read_arch(folder: Path, origins: Sequence[Any] = ()) -> Arch:
    """The architecture of a component folder; its weights are not opened, and no code runs that is not in `origins`."""
    there = _foreign(folder)
    if there is not None:
        return there.arch
    return arch_from_json(read_json(folder / "arch.json"), folder / "arch.json", origins)


def component_cost(component: str, pixels: int) -> Cost:
    """`cost_of` a preset."""
    return cost_of(read_arch(find(component)), pixels)


def cost_of(arch: Arch, pixels: int) -> Cost:
    """Parameters, MACs and bytes for one image of `pixels` x `pixels`, on the meta device: no weight is loaded.

    Plans and searches ask for the same architectures again and again: what a configuration alone describes is counted
    once in a process; somebody's own code is not in its configuration.
    """
    return (_remembered if kind_of(arch.kind).bind is None else _counted)(arch, pixels)


@lru_cache(maxsize=64)
def _remembered(arch: Arch, pixels: int) -> Cost:
    return _counted(arch, pixels)


def _counted(arch: Arch, pixels: int) -> Cost:
    kind = kind_of(arch.kind)
    with torch.device("meta"):
        module = kind.build(arch.config)
    return measure(module, example_inputs(kind, arch.config, pixels))


def load_variant(folder: Path, component: str | None = None, *, origins: Sequence[Any] = ()) -> Variant:
    """Read a component: a component folder, or a path that names one in a diffusers or transformers folder.

    Somebody's own code builds it only where it is among `origins`.

    Raises:
        UserError: a file is missing, truncated, of another architecture (tensors named), or holds NaN or Inf.
    """
    there, arch = _foreign(folder), read_arch(folder, origins)
    module, found = _matched(folder, arch, there)
    fill(module, found, *_source(folder, there))
    lineage = folder / "lineage.json"
    name, stages = read_lineage(lineage) if lineage.exists() else (folder.name, ())
    return Variant(component=component or name, arch=arch, module=module.requires_grad_(False).eval(), lineage=stages)


def check_variant(folder: Path, origins: Sequence[Any] = ()) -> None:
    """Whether a component's weights fit its configuration, by their headers: what takes milliseconds.

    Raises:
        UserError: as `load_variant`, but for NaN and Inf.
    """
    _matched(folder, read_arch(folder, origins), _foreign(folder))


def _foreign(folder: Path) -> Checkpoint | None:
    return None if (folder / "arch.json").exists() else locate(folder)


def _source(folder: Path, there: Checkpoint | None) -> tuple[Path, str]:
    """What a misfit is told of: the weights, and what describes them."""
    return (there.files()[1], "config.json") if there else (weights_of(folder), "arch.json")


def _matched(folder: Path, arch: Arch, there: Checkpoint | None) -> tuple[nn.Module, dict[str, Entry]]:
    """The module on the meta device, and where each of its tensors lies."""
    source, what = _source(folder, there)
    with torch.device("meta"):
        module = build(arch)
        if there is None:
            module = _quantized_shape(module, folder / "quantization.json")
    expected = stored(module)
    found = there.found(expected) if there else header(source)
    refuse(misfits(expected, found, what), source, what)
    return module, found


def save_variant(variant: Variant, folder: Path) -> None:
    """Write a component folder: same variant, same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "arch.json", arch_to_json(variant.arch))
    write_tensors(folder / "weights.safetensors", packed_state(variant.module))
    layers = quantization_map(variant.module)
    if layers:
        apart = {name: list(widths) for name, widths in splits(variant.module).items()}
        write_json(folder / "quantization.json", {"schema": 1, "layers": layers} | ({"splits": apart} if apart else {}))
    else:
        (folder / "quantization.json").unlink(missing_ok=True)
    stages = [asdict(stage) for stage in variant.lineage]
    write_json(folder / "lineage.json", {"schema": 1, "component": variant.component, "stages": stages})


def _quantized_shape(module: nn.Module, path: Path) -> nn.Module:
    """The module with the quantized layers that a quantization.json names, where there is one."""
    layers = read_quantization(path) if path.exists() else {}
    try:
        module = split(module, read_splits(path) if layers else {})
    except ValueError as error:
        raise UserError(f"{path}: splits: {error}") from error
    unknown = [name for name in layers if name not in quantizable(module)]
    if unknown:
        raise UserError(f"{path} names layers that arch.json does not build: {', '.join(unknown)}")
    return replaced(module, apply_map(module, layers))
