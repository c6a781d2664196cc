"""What this environment has, lacks, and is known to trip over."""

import importlib.util
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's report."""

    state: Literal["ok", "missing", "problem", "note"]
    what: str
    text: str


REQUIRED = ("torch", "numpy", "safetensors", "pydantic", "ruamel.yaml", "cyclopts", "rich", "jinja2", "pillow")
EXTRAS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "lpips": ("stlpips-pytorch",),
    "photographs": ("scikit-image", "scikit-learn"),
}


def diagnose() -> tuple[Finding, ...]:
    """Versions of what is needed, the pip command for what is not there, and traps."""
    findings = [Finding(state="ok", what="python", text=sys.version.split()[0])]
    for package in REQUIRED:
        version = _version(package)
        text = version or f"not installed: pip install {package}"
        findings.append(Finding(state="ok" if version else "problem", what=package, text=text))
    for extra, packages in EXTRAS.items():
        for package in packages:
            version = _version(package)
            text = version or f"not installed: pip install 'mdcompress[{extra}]'"
            findings.append(Finding(state="ok" if version else "missing", what=package, text=text))
    findings += _traps()
    return tuple(findings)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _traps() -> list[Finding]:
    found = []
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except (RuntimeError, ImportError) as error:
            text = f"broken ({error}), and it breaks torchmetrics and diffusers too: pip uninstall torchvision"
            found.append(Finding(state="problem", what="torchvision", text=text))
    cuda_build = "+cpu" not in (_version("torch") or "") and not _cuda()
    if cuda_build:
        text = (
            "a CUDA build without a GPU to use; the CPU build is smaller: install torch first, by its own pip command"
        )
        found.append(Finding(state="note", what="torch", text=text))
    return found


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
