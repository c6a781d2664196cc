"""Where two models are timed against each other: one file per target; the directory is the registry.

SUFFIXES: of what it can time; "" is a component folder (arch.json, weights.safetensors).
measure:  `measure(request)` -> LatencyRatio, both on the same device, in the same runtime, with the same threads.
"""

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from compress.errors import UserError
from compress.records import Inputs
from compress.registry import did_you_mean
from eval.metrics.latency import Sampling, Tell

DEFAULT = ("torch", "onnxruntime", "litert", "executorch", "openvino")  # on this host, the first that can time a file


@dataclass(frozen=True, slots=True, kw_only=True)
class Phone:
    """Which device, and what runs there."""

    serial: str | None = None  # of `adb devices`; None where there is one only
    binary: str | None = None  # the runtime's benchmark program on the device; None: its own name in /data/local/tmp
    cpus: str | None = None  # mask for taskset, hexadecimal: "f0" is cores 4 to 7
    runs: int = 20  # of the model in one process


ONLY = Phone()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """Two models to be timed against each other."""

    reference: Path
    candidate: Path
    inputs: Inputs
    threads: int
    sampling: Sampling
    tell: Tell | None = None
    phone: Phone = ONLY


def names() -> tuple[str, ...]:
    """Every target there is. Imports none of them."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_")))


def get(name: str) -> ModuleType:
    """The file of a target.

    Raises:
        UserError: there is no such target.
    """
    if name not in names():
        raise UserError(f"no target {name!r}{did_you_mean(name, names())}")
    return importlib.import_module(f"{__name__}.{name}")


def chosen(reference: Path, candidate: Path, name: str | None) -> str:
    """The target that times both: the one named, or the host's own runtime for such files.

    Raises:
        UserError: they are of two kinds, or nothing here times them.
    """
    kinds = [_kind(path) for path in (reference, candidate)]
    if name is not None:
        known = get(name).SUFFIXES
        wrong = [str(path) for path, kind in zip((reference, candidate), kinds, strict=True) if kind not in known]
        if wrong:
            raise UserError(f"{' and '.join(wrong)}: {name} times {', '.join(map(_said, known))}")
        return name
    fitting = [target for target in DEFAULT if set(kinds) <= set(get(target).SUFFIXES)]
    if not fitting:
        raise UserError(
            f"{reference} and {candidate} have no runtime in common, and two runtimes are not compared: give two "
            "component folders, or two files of one format"
        )
    return fitting[0]


def component_folder(path: Path) -> Path | None:
    """The component that a path stands for: itself, or the variant of a run; None where it is a file of a format."""
    if (path / "variant" / "arch.json").exists():
        return path / "variant"
    known = {suffix for name in DEFAULT for suffix in get(name).SUFFIXES if suffix}
    return None if path.suffix in known and not (path / "arch.json").exists() else path


def _kind(path: Path) -> str:
    if component_folder(path) is not None:
        return ""
    if not path.exists():
        raise UserError(f"{path}: no such file; give a component folder or an exported file")
    return path.suffix


def _said(suffix: str) -> str:
    return suffix or "component folders"
