"""docs/your-own-decoder.md as a reader follows it: its files, its commands, its output, its Python."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from compress import evaluation, pipeline
from compress.cli import main

pytestmark = pytest.mark.slow

TEXT = (Path(__file__).parents[2] / "docs" / "your-own-decoder.md").read_text(encoding="utf-8")
SHORTER = {"pixels: 64}": "pixels: 32}", "steps: 40": "steps: 4", "count: 8": "count: 3", "count: 4": "count: 2"}


def file(name):
    return re.search(rf"```\w+ {re.escape(name)}\n(.*?)```", TEXT, re.DOTALL)[1]


def commands():
    return [line.strip() for line in TEXT.splitlines() if line.startswith("    mdcompress ")]


def words(text):
    return [line.split() for line in text.strip().splitlines()]


@pytest.fixture(autouse=True)
def page(tmp_path, monkeypatch):
    """The page's files in an empty folder, with less work in the recipe, and its own copy of the module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    recipe = file("mine.yaml")
    for long, short in SHORTER.items():
        assert long in recipe
        recipe = recipe.replace(long, short)
    (tmp_path / "mine.yaml").write_text(recipe)
    (tmp_path / "my_vae.py").write_text(file("my_vae.py"))
    monkeypatch.setattr(evaluation, "JUDGED_LATENCY_SECONDS", 0.1)
    monkeypatch.setattr(pipeline, "STAGE_LATENCY_SECONDS", 0.1)
    yield
    sys.modules.pop("my_vae", None)


def test_the_commands_run_in_their_order_and_the_table_is_the_page_s(capsys, tmp_path):
    pytest.importorskip("onnxruntime", reason="extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="extra onnx is not installed")
    verbs = [shlex.split(command)[1:] for command in commands()]
    assert [verb[0] for verb in verbs] == ["models", "check", "plan", "run", "gate"]
    for verb in verbs:
        capsys.readouterr()
        code = main(verb)
        out = capsys.readouterr().out
        assert code in ((0, 1) if verb[0] in ("run", "gate") else (0,)), out  # with so little training a gate may fail
        if verb[0] == "models":
            assert words(re.search(r"<!-- output: show -->\n```\n(.*?)```", TEXT, re.DOTALL)[1]) == words(out)
    assert (tmp_path / "runs" / "mine" / "variant" / "arch.json").is_file()
    capsys.readouterr()
    assert main(["gate", "runs/mine/variant", "--recipe", "mine.yaml", "--encoder", "my_vae:encoder"]) == 2
    assert "--module" in capsys.readouterr().err


def test_the_python_runs(capsys):
    sys.path.insert(0, str(Path.cwd()))
    try:
        exec(compile(file("session"), "session", "exec"), {})
    finally:
        sys.path.remove(str(Path.cwd()))
    out = capsys.readouterr().out
    assert "'2.conv.0': 32" in out and "Conv2d(4, 16, kernel_size=(3, 3)" in out
