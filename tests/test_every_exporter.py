"""What every exporter promises, whichever files there are in compress/export."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch

from compress import registry
from compress.components import build, load_variant
from compress.errors import MissingExtra, UserError
from compress.export import _onnx_model
from compress.files import copy_artifact, parts_of, size_of
from compress.nn.affine import PerChannel
from compress.records import Arch, Variant
from compress.schema import Schema

NAMES = [file.stem for file in sorted(Path(registry.__file__).parent.glob("export/*.py")) if file.stem[0] != "_"]
# One transformer layer each, as tracing takes time by the layer; the UNet still goes down and up again.
TEXT = Arch(kind="text_encoder.text_encoder", config=replace(tiny.TEXT, layers=tiny.TEXT.layers[:1]))
SMALL = tiny.small_unet().arch.config
PLAIN = replace(SMALL.up[0], blocks=(replace(SMALL.up[0].blocks[0], transformer=()),) * 2)
UNET = Arch(kind="unet.unet", config=replace(SMALL, up=(PLAIN, SMALL.up[1])))
METADATA = {"component": "tiny/decoder", "recipe": "decoder/tiny"}

each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def exporter(name: str) -> ModuleType:
    return registry.load(f"export.{name}")


@pytest.fixture
def installed(name: str) -> None:
    for package in registry.load(f"export.{name}").PACKAGES:
        pytest.importorskip(package, reason=f"extra {name} is not installed")


@pytest.fixture(scope="module")
def decoder(checkpoint: Path) -> Variant:
    return load_variant(checkpoint / "decoder")


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    return 0.2 + 0.1 * torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))


WRITTEN: dict[str, Path] = {}  # one export of the decoder for each format: they take seconds
GRAPHS: dict[object, Any] = {}


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX, ORT and OpenVINO files are made of the same graph, and its trace is what takes the time."""
    trace = _onnx_model._traced

    def once(module: torch.nn.Module, example: tuple[torch.Tensor, ...], form: Any, output: Any) -> Any:
        asked = (output, form.opset, form.dynamic, *(x.shape for x in (*example, *module.state_dict().values())))
        if asked not in GRAPHS:
            GRAPHS[asked] = trace(module, example, form, output)
        graph = type(GRAPHS[asked])()
        graph.CopyFrom(GRAPHS[asked])
        return graph

    monkeypatch.setattr(_onnx_model, "_traced", once)


@pytest.fixture
def artifact(
    name: str,
    exporter: ModuleType,
    decoder: Variant,
    latents: torch.Tensor,
    tmp_path_factory: pytest.TempPathFactory,
    traced_once: None,
) -> Path:
    if name not in WRITTEN:
        path = tmp_path_factory.mktemp(name) / f"decoder{exporter.SUFFIX}"
        exporter.export(decoder.module, (latents[:1],), path, exporter.Config(), metadata=METADATA)
        WRITTEN[name] = path
    return WRITTEN[name]


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


def contents(artifact: Path) -> dict[str, bytes]:
    return {part.relative_to(artifact).as_posix(): part.read_bytes() for part in parts_of(artifact)}


@each
@pytest.mark.usefixtures("installed")
def test_the_file_computes_what_the_module_computes(
    exporter: ModuleType, decoder: Variant, artifact: Path, latents: torch.Tensor, tmp_path: Path
) -> None:
    with torch.no_grad():
        expected = decoder.module(latents)
    found = exporter.load(artifact, threads=1)(latents)
    assert found.shape == expected.shape == (2, 3, 64, 64)
    assert found.dtype == torch.float32
    assert expected.std() > 0.05
    assert float((found - expected).abs().max()) < 1e-4
    assert exporter.read_back(artifact) == {}
    moved = tmp_path / "elsewhere" / artifact.name
    copy_artifact(artifact, moved)
    assert contents(moved) == contents(artifact)
    assert torch.equal(exporter.load(moved, threads=1)(latents), found)


@each
@pytest.mark.usefixtures("installed")
def test_a_text_encoder_takes_ids_of_any_whole_type_and_gives_the_same_bytes_twice(
    exporter: ModuleType, tmp_path: Path
) -> None:
    module, (ids,) = tiny._seeded(build(TEXT), 0), tiny.text_inputs(2)
    files = [tmp_path / f"{index}{exporter.SUFFIX}" for index in range(2)]
    for file in files:
        exporter.export(module, (ids[:1],), file, exporter.Config(), metadata=METADATA, output="states")
    assert contents(files[0]) == contents(files[1])
    assert size_of(files[0]) == sum(map(len, contents(files[0]).values()))
    assert sorted(tmp_path.iterdir()) == files
    with torch.no_grad():
        expected = module(ids)
    assert expected.std() > 0.1
    run = exporter.load(files[0], threads=1)
    for given in (ids, ids.to(torch.int32)):
        torch.testing.assert_close(run(given), expected, rtol=0, atol=1e-4)


@each
@pytest.mark.usefixtures("installed", "traced_once")
def test_a_unet_takes_its_three_inputs_at_other_sizes_too(exporter: ModuleType, tmp_path: Path) -> None:
    module, inputs = tiny._seeded(build(UNET), 0), tiny.unet_inputs(2)
    file = tmp_path / f"unet{exporter.SUFFIX}"
    example = tuple(x[:1] for x in inputs)
    exporter.export(module, example, file, exporter.Config(), metadata=METADATA, output="prediction")
    run = exporter.load(file, threads=1)
    dynamic = getattr(exporter.Config(), "dynamic", False)
    for given in (inputs, tiny.unet_inputs(1, size=12)) if dynamic else (inputs,):
        with torch.no_grad():
            expected = module(*given)
        assert expected.std() > 0.1
        torch.testing.assert_close(run(*given), expected, rtol=0, atol=1e-4)


@each
@pytest.mark.usefixtures("installed")
def test_a_missing_damaged_or_foreign_artifact_is_the_users_error(
    exporter: ModuleType, artifact: Path, tmp_path: Path
) -> None:
    broken = [tmp_path / f"missing{exporter.SUFFIX}"]
    for number, part in enumerate(parts_of(artifact)):
        content = part.read_bytes()
        for name, damaged in (("cut", content[: len(content) // 2]), ("text", b"not a model"), ("empty", b"")):
            copy = tmp_path / f"{name}{number}{exporter.SUFFIX}"
            copy_artifact(artifact, copy)
            (copy / part.relative_to(artifact) if part != artifact else copy).write_bytes(damaged)
            broken.append(copy)
    for path in broken:
        with pytest.raises(UserError, match=path.name):
            exporter.load(path, threads=1)
        with pytest.raises(UserError, match=path.name):
            exporter.read_back(path)


@each
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    name: str,
    exporter: ModuleType,
    decoder: Variant,
    latents: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for package in exporter.PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f"file{exporter.SUFFIX}"
    with pytest.raises(MissingExtra, match=rf"pip install 'mdcompress\[{name}\]'"):
        exporter.export(decoder.module, (latents[:1],), path, exporter.Config(), metadata=METADATA)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"anything")
    for call in (lambda: exporter.load(path, threads=1), lambda: exporter.read_back(path)):
        with pytest.raises(MissingExtra, match=rf"pip install 'mdcompress\[{name}\]'"):
            call()
