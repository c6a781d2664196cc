"""Small methods in the place of the real ones, for tests of everything that reads recipes."""

import importlib
import sys
from collections.abc import Iterator

import pytest

import compress.distill
import compress.export
import compress.prune
import compress.quantize

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
