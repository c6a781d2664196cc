"""Small methods in the place of the real ones, for tests of everything that reads recipes."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import families
import pytest
import torch

import compress.distill
import compress.export
import compress.prune
import compress.quantize
from compress import zoo
from compress.files import write_json
from compress.sampling.latents import LatentScale

PASSED = {
    "kind": "min",
    "metric": "psnr",
    "statistic": "mean",
    "against": "reference",
    "value": 31.5,
    "limit": 30.0,
    "passed": True,
}
HEAD = """from enum import StrEnum
from typing import Literal
from pydantic import Field, PositiveInt, model_validator
from compress.schema import Schema
"""
FILES = {
    compress.prune: {
        "depth": "class Config(Schema):\n    blocks: PositiveInt\n    keep: tuple[str, ...] = ()\n",
        "width": "class Config(Schema):\n    ratio: float = Field(gt=0, lt=1)\n    round_to: PositiveInt = 8\n",
    },
    compress.distill: {
        "output": "class Terms(Schema):\n    lpips: float = 0.0\n"
        "class Config(Schema):\n    steps: PositiveInt = 400\n    lr: float = Field(1e-3, gt=0)\n"
        "    terms: Terms = Terms()\n"
    },
    compress.quantize: {
        "rtn": "class Config(Schema):\n    bits: Literal[8, 4] = 8\n    group_size: PositiveInt | Literal['all'] = 64\n"
        "    @model_validator(mode='after')\n    def fits(self):\n"
        "        if self.bits == 4 and self.group_size == 'all':\n"
        "            raise ValueError('4 bits need groups')\n        return self\n",
        "static": "class Config(Schema):\n    weight_bits: Literal[8, 4] = 8\n    activation_bits: Literal[8] = 8\n"
        "    observer: Literal['mse', 'min_max'] = 'mse'\n",
    },
    compress.export: {"onnx": "class Config(Schema):\n    opset: int = Field(21, ge=21)\n"},
}


@pytest.fixture(scope="module")
def small_methods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Small methods under the names of the real ones, so that what tests expect does not move with the methods."""
    real_modules = {name: module for name, module in sys.modules.items() if _is_method(name)}
    for name in real_modules:
        del sys.modules[name]
    with pytest.MonkeyPatch.context() as patch:
        for package, files in FILES.items():
            folder = tmp_path_factory.mktemp(package.__name__)
            for name, text in files.items():
                (folder / f"{name}.py").write_text(f'"""The {name} method."""\n{HEAD}{text}')
            patch.setattr(package, "__path__", [str(folder)])
        importlib.invalidate_caches()
        yield
    for name in [name for name in sys.modules if _is_method(name)]:
        parent, _, child = name.rpartition(".")
        vars(sys.modules[parent]).pop(child, None)
        del sys.modules[name]
    for name, module in real_modules.items():
        parent, _, child = name.rpartition(".")
        sys.modules[name] = module
        setattr(sys.modules[parent], child, module)


def _is_method(name: str) -> bool:
    return any(name.startswith(f"{package.__name__}.") for package in FILES)


@pytest.fixture(scope="session")
def words_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text-to-image model of three variants, for 32 pixels; not to be changed."""
    folder = tmp_path_factory.mktemp("family") / "tiny"
    families.write(folder, ["red apple", "blue heart"], LatentScale(mean=(0.1,) * 8, std=(0.9,) * 8))
    write_json(folder / "sampling.json", {"pixels": 32, "steps": 2, "guidance": 2.0, "solver": "ddim"})
    return folder


@pytest.fixture(scope="session")
def words_files(words_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as three ONNX files; not to be changed."""
    pytest.importorskip("onnxruntime", reason="the files are run")
    return families.exported(words_model, tmp_path_factory.mktemp("files"), "onnx")


@pytest.fixture
def toy_entry(tmp_path: Path) -> zoo.Entry:
    """An entry whose one file is a factor, for runtimes that multiply."""
    source = tmp_path / "built" / "model.toy"
    source.parent.mkdir()
    source.write_text("factor 2.0")
    x = torch.linspace(0, 0.5, 12).reshape(1, 3, 2, 2)
    return zoo.Entry(
        name="decoder/d4_w8a8",
        component="md-tiny/decoder",
        files={"model.toy": source},
        samples=(zoo.Sample(file="model.toy", format="toy", inputs=(x,), output=x * 2),),
        recipe="schema: 1\n",
        verdicts=(dict(PASSED),),
        facts={"parameters": 123, "psnr_db": 31.5, "note": "a|b"},
        licence="apache-2.0",
        tools={"torch": "2.13.0"},
        preview_png=b"\x89PNG",
    )
