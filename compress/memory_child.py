"""What a child process runs while its memory is measured: load a model, run it once."""

from pathlib import Path

from compress import registry
from compress.components import load_variant
from compress.export_stage import format_of
from compress.nn.batches import outputs, unnamed


def variant(folder: str, inputs: str) -> None:
    """Load a component folder and run it on the inputs in a safetensors file."""
    outputs(load_variant(Path(folder)).module, _read(inputs))


def artifact(path: str, inputs: str) -> None:
    """Load an exported file in its own runtime and run it on the inputs in a safetensors file."""
    outputs(registry.load(f"export.{format_of(Path(path))}").load(Path(path), threads=1), _read(inputs), 1)


def _read(path: str) -> tuple:  # type: ignore[type-arg]
    from safetensors.torch import load_file

    return unnamed(load_file(path))
