"""Extras as pip itself resolves them from the project's file."""

import tomllib
from pathlib import Path

from compress import extras

WRITTEN = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def test_every_extra_of_the_project_is_known_and_nested_ones_are_opened():
    assert set(extras.extras()) == set(WRITTEN["optional-dependencies"])
    assert extras.packages("onnx") == ("onnx", "onnxruntime", "onnxscript")
    assert set(extras.packages("onnx")) < set(extras.packages("demo"))
    assert not any("[" in name or name == extras.DISTRIBUTION for e in extras.extras() for name in extras.packages(e))
    assert extras.packages("no such extra") == ()


def test_what_is_always_installed_is_what_the_project_requires():
    wanted = {text.split(">")[0].split("=")[0].strip() for text in WRITTEN["dependencies"]}
    assert {name.replace(".", "-") for name in extras.required()} == {name.replace(".", "-") for name in wanted}
    assert all(extras.version(name) for name in wanted)
    assert extras.version("no-such-package-anywhere") is None
