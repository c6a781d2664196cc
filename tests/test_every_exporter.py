"""What every exporter promises, whichever files there are in compress/export."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from compress import registry
from compress.components import load_variant
from compress.errors import MissingExtra
from compress.nn.affine import PerChannel
from compress.records import Variant
from compress.schema import Schema

NAMES = [file.stem for file in sorted(Path(registry.__file__).parent.glob("export/*.py")) if file.stem[0] != "_"]
PACKAGES = {
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "litert": ("ai_edge_litert",),
}  # what each format's runtime and writer are
METADATA = {"component": "tiny/decoder", "recipe": "decoder/tiny"}

each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def exporter(name: str) -> ModuleType:
    return registry.load(f"export.{name}")


@pytest.fixture
def installed(name: str) -> None:
    for package in PACKAGES.get(name, ()):
        pytest.importorskip(package, reason=f"extra {name} is not installed")


@pytest.fixture(scope="module")
def decoder(checkpoint: Path) -> Variant:
    return load_variant(checkpoint / "decoder")


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return 0.2 + 0.1 * torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_directory_is_the_registry() -> None:
    assert NAMES
    assert registry.names("export") == [f"export.{name}" for name in NAMES]


@each
def test_declares_what_it_is(exporter: ModuleType) -> None:
    assert exporter.SUFFIX.startswith(".")
    assert exporter.RUNTIME
    assert issubclass(exporter.Config, Schema)
    exporter.Config()
    for function in ("refuse", "export", "load", "read_back"):
        assert callable(getattr(exporter, function))
    for heading in ("Source:", "Differs:", "Cost:"):
        assert heading in (exporter.__doc__ or "")
    assert len({registry.load(other).SUFFIX for other in registry.names("export")}) == len(NAMES)


@each
def test_float_is_held_and_what_is_not_held_is_explained(exporter: ModuleType) -> None:
    assert exporter.refuse(32, None, 32) == []
    reasons = exporter.refuse(3, PerChannel(), 5)
    assert len(reasons) >= 2
    assert all("choose" in reason for reason in reasons)


@each
@pytest.mark.usefixtures("installed")
def test_the_file_computes_what_the_module_computes(
    exporter: ModuleType, decoder: Variant, latents: torch.Tensor, tmp_path: Path
) -> None:
    files = [tmp_path / f"{index}{exporter.SUFFIX}" for index in range(2)]
    for file in files:
        exporter.export(decoder.module, (latents[:1],), file, exporter.Config(), metadata=METADATA)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == files
    with torch.no_grad():
        expected = decoder.module(latents)
    found = exporter.load(files[0], threads=1)(latents)
    assert found.shape == expected.shape == (2, 3, 64, 64)
    assert found.dtype == torch.float32
    assert expected.std() > 0.05
    assert float((found - expected).abs().max()) < 1e-4
    assert exporter.read_back(files[0]) == {}


@each
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    name: str,
    exporter: ModuleType,
    decoder: Variant,
    latents: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for package in PACKAGES[name]:
        monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f"file{exporter.SUFFIX}"
    with pytest.raises(MissingExtra, match=rf"pip install 'mdcompress\[{name}\]'"):
        exporter.export(decoder.module, (latents[:1],), path, exporter.Config(), metadata=METADATA)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"anything")
    for call in (lambda: exporter.load(path, threads=1), lambda: exporter.read_back(path)):
        with pytest.raises(MissingExtra, match=rf"pip install 'mdcompress\[{name}\]'"):
            call()
