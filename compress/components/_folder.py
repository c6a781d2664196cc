"""A component on disk: arch.json, weights.safetensors; for variants also quantization.json and lineage.json.

Presets, teachers and variants all have this one layout, so whatever reads one reads all. Nothing is pickled.
"""

import json
import struct
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import nn

from compress.components._kinds import arch_from_json, arch_to_json, build, kind_of
from compress.components._packing import packed_state, unpacked_state
from compress.components._sidecars import read_lineage, read_quantization
from compress.errors import UserError
from compress.files import read_json, write_json, write_tensors
from compress.nn.cost import Cost, measure
from compress.nn.qmodules import apply_map, quantizable, quantization_map
from compress.nn.structure import example_inputs
from compress.nn.surgery import replaced
from compress.records import Arch, Variant

PRESETS = Path(__file__).parent / "presets"


def names() -> list[str]:
    """Every preset: `family/component`."""
    return sorted(str(p.parent.relative_to(PRESETS)) for p in PRESETS.glob("*/*/arch.json"))


def find(component: str, checkpoint: Path | None = None) -> Path:
    """The folder of a preset, or of the same component in a folder given instead.

    Raises:
        UserError: neither exists; names what does.
    """
    if checkpoint is not None:
        leaf = component.rpartition("/")[2]
        folder = checkpoint / leaf if (checkpoint / leaf / "arch.json").exists() else checkpoint
        if not (folder / "arch.json").exists():
            raise UserError(
                f"{checkpoint}: no arch.json here or in {leaf}/; a checkpoint has arch.json + weights.safetensors"
            )
        return folder
    if component not in names():
        close = get_close_matches(component, names(), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise UserError(f"no component '{component}'{hint} (known: {', '.join(names()) or 'none'})")
    return PRESETS / component


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
            f"--checkpoint FOLDER ({folder.name}/arch.json and {folder.name}/weights.safetensors in it)"
        )
    raise UserError(f"{path} does not exist; a component folder holds arch.json and weights.safetensors")


def has_weights(component: str) -> bool:
    """Whether a preset comes trained; else it is an architecture alone."""
    return (find(component) / "weights.safetensors").exists()


def read_arch(folder: Path) -> Arch:
    """The architecture of a component folder; its weights are not opened."""
    return arch_from_json(read_json(folder / "arch.json"), folder / "arch.json")


def component_cost(component: str, pixels: int) -> Cost:
    """Parameters, MACs and bytes of a preset for one image of `pixels` x `pixels`, without loading its weights."""
    arch = read_arch(find(component))
    kind = kind_of(arch.kind)
    with torch.device("meta"):
        module = kind.build(arch.config)
    return measure(module, example_inputs(kind, arch.config, pixels))


def load_variant(folder: Path, component: str | None = None) -> Variant:
    """Read a component folder.

    Raises:
        UserError: a file is missing, truncated, of another architecture (tensors named), or holds NaN or Inf.
    """
    arch = read_arch(folder)
    weights = weights_of(folder)
    module = _quantized_shape(build(arch), folder / "quantization.json")
    _load_tensors(module, weights)
    lineage = folder / "lineage.json"
    name, stages = read_lineage(lineage) if lineage.exists() else (folder.name, ())
    return Variant(component=component or name, arch=arch, module=module.requires_grad_(False).eval(), lineage=stages)


def save_variant(variant: Variant, folder: Path) -> None:
    """Write a component folder: same variant, same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "arch.json", arch_to_json(variant.arch))
    write_tensors(folder / "weights.safetensors", packed_state(variant.module))
    layers = quantization_map(variant.module)
    if layers:
        write_json(folder / "quantization.json", {"schema": 1, "layers": layers})
    else:
        (folder / "quantization.json").unlink(missing_ok=True)
    stages = [asdict(stage) for stage in variant.lineage]
    write_json(folder / "lineage.json", {"schema": 1, "component": variant.component, "stages": stages})


def _quantized_shape(module: nn.Module, path: Path) -> nn.Module:
    """The module with the quantized layers that a quantization.json names, where there is one."""
    layers = read_quantization(path) if path.exists() else {}
    unknown = [name for name in layers if name not in quantizable(module)]
    if unknown:
        raise UserError(f"{path} names layers that arch.json does not build: {', '.join(unknown)}")
    return replaced(module, apply_map(module, layers))


def _load_tensors(module: nn.Module, path: Path) -> None:
    tensors = unpacked_state(module, _read_tensors(path))
    expected = module.state_dict()
    problems = [f"missing tensor {name} {list(t.shape)}" for name, t in expected.items() if name not in tensors]
    problems += [f"unexpected tensor {name} {list(t.shape)}" for name, t in tensors.items() if name not in expected]
    problems += [
        f"{name} is {list(tensors[name].shape)} in the file, {list(t.shape)} in arch.json"
        for name, t in expected.items()
        if name in tensors and tensors[name].shape != t.shape
    ]
    problems += [
        f"{name} is {tensors[name].dtype} in the file, {t.dtype} expected"
        for name, t in expected.items()
        if name in tensors and tensors[name].is_floating_point() != t.is_floating_point()
    ]
    problems += [
        f"{n} holds NaN or Inf" for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()
    ]
    if problems:
        more = f"\n  ... and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise UserError(f"{path} does not fit its arch.json:\n  " + "\n  ".join(problems[:12]) + more)
    module.load_state_dict({n: t.to(expected[n].dtype) for n, t in tensors.items()})


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        _check_length(path)
        return load_file(path)
    except (SafetensorError, struct.error, ValueError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error}); copy or download it again") from error


def _check_length(path: Path) -> None:
    """Compare the header's promise with the file's size, before anything is mapped."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        if header_bytes > size - 8:
            raise UserError(f"{path} is truncated: its header alone claims {header_bytes} bytes, the file has {size}")
        promised = _end_of_data(json.loads(file.read(header_bytes)))
    if promised + header_bytes + 8 != size:
        raise UserError(
            f"{path} is truncated or damaged: {promised + header_bytes + 8} bytes promised, {size} there; "
            "copy or download it again"
        )


def _end_of_data(header: object) -> int:
    """Where a safetensors header says that its data ends.

    Raises:
        ValueError: it is no such header.
    """
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    ends = [0]
    for name, entry in entries.items():
        match entry:
            case {"data_offsets": [int(), int(end)]}:
                ends.append(end)
            case _:
                raise ValueError(f"the header's entry '{name}' has no data_offsets")
    return max(ends)
