"""What this environment has, lacks, and is known to trip over."""

import importlib.util
import sys
from dataclasses import dataclass
from typing import Literal

from compress import extras


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's report."""

    state: Literal["ok", "missing", "problem", "note"]
    what: str
    text: str


PRIVATE = ("dev", "demo", "export")  # extras that only name others


def diagnose() -> tuple[Finding, ...]:
    """Versions of what is needed, the pip command for what is not there, and traps."""
    findings = [Finding(state="ok", what="python", text=sys.version.split()[0])]
    for package in extras.required():
        version = extras.version(package)
        text = version or f"not installed: pip install {package}"
        findings.append(Finding(state="ok" if version else "problem", what=package, text=text))
    for extra in extras.extras():
        for package in () if extra in PRIVATE else extras.packages(extra):
            version = extras.version(package)
            text = version or f"not installed: pip install 'mdcompress[{extra}]'"
            what = f"{package} (for {extra})"
            findings.append(Finding(state="ok" if version else "missing", what=what, text=text))
    findings += _traps()
    return tuple(findings)


def _traps() -> list[Finding]:
    found = []
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except (RuntimeError, ImportError) as error:
            text = f"broken ({error}), and it breaks torchmetrics and diffusers too: pip uninstall torchvision"
            found.append(Finding(state="problem", what="torchvision", text=text))
    cuda_build = "+cpu" not in (extras.version("torch") or "") and not _cuda()
    if cuda_build:
        text = (
            "a CUDA build without a GPU to use; the CPU build is smaller: install torch first, by its own pip command"
        )
        found.append(Finding(state="note", what="torch", text=text))
    return found


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
