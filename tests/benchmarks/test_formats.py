"""One row for each recipe and format: kept, made again when the recipe changes, and there for whatever goes wrong."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from benchmarks import formats, formats_latency, formats_table
from compress.errors import UserError
from compress.given import Given
from compress.recipe import Recipe, find, read_recipe

DONE = {"recipe": "decoder/a", "format": "onnx", "digest": "d", "timed": True, "bytes": 1234567, "parity": 48.66}
DONE |= {"lpips": 0.16721, "latency": 0.3186, "partitions": None, "outcome": "passed"}
REFUSED = {"recipe": "decoder/a", "format": "ort", "digest": "d", "timed": False, "outcome": "refused: no | palettes"}
WHOLE = {"recipe": "decoder/a", "format": "", "digest": "d", "timed": False, "outcome": "the variant failed"}


def kept(path: Path, *rows: dict[str, Any]) -> list[tuple[str, str]]:
    for row in rows:
        formats_table.append(path, row)
    return [(row["format"], row["outcome"]) for row in formats_table.read(path)]


def test_the_last_row_counts_and_a_recipe_that_made_no_file_has_only_one(tmp_path: Path) -> None:
    path = tmp_path / "rows" / "rows.jsonl"
    assert kept(path, DONE, REFUSED, DONE | {"outcome": "again"}) == [("ort", REFUSED["outcome"]), ("onnx", "again")]
    assert kept(path, WHOLE) == [("", "the variant failed")]
    assert kept(path, DONE) == [("onnx", "passed")]


def test_a_row_is_kept_while_the_recipe_says_the_same() -> None:
    assert formats_table.done(DONE, "d", timed=True)
    assert not formats_table.done(DONE, "e", timed=True)
    assert not formats_table.done(None, "d", timed=False)
    untimed = DONE | {"timed": False, "latency": None}
    assert formats_table.done(untimed, "d", timed=False)
    assert not formats_table.done(untimed, "d", timed=True)
    assert formats_table.done(REFUSED, "d", timed=True)  # which no clock changes
    rows = [REFUSED | {"recipe": "b"}, REFUSED, DONE, DONE | {"recipe": "c"}]
    assert formats_table.current(rows, {"decoder/a": "d", "b": "other"}) == [DONE, REFUSED]


def test_another_recipe_or_other_weights_are_another_subject(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats_table, "find", lambda _: tmp_path)
    for file in ("arch.json", "weights.safetensors"):
        (tmp_path / file).write_bytes((checkpoint / "decoder" / file).read_bytes())
    recipe = read_recipe(find("decoder/w8"))
    first = formats_table.subject(recipe)
    assert formats_table.subject(recipe) == first
    assert formats_table.subject(replace(recipe, seed=1)) != first
    (tmp_path / "weights.safetensors").write_bytes(b"other")
    assert formats_table.subject(recipe) != first


def test_the_document_has_files_and_reasons_and_what_was_not_run() -> None:
    other = REFUSED | {"format": "litert"}
    text = formats_table.document(
        [DONE | {"host": "a host of two cores", "threads": 1, "latency": 0.319, "ms": 12.34}, other, REFUSED],
        ["decoder/a", "unet/b", "unet/c"],
    )
    assert "| decoder/a | onnx | 1,234,567 | 48.7 | 0.1672 | 0.319 | 12.3 |  | passed |" in text
    assert "and in milliseconds, on a host of two cores, threads: 1; where it is" in " ".join(text.split())
    assert "| decoder/a | litert, ort | refused: no / palettes |" in text
    assert "Not run: `unet/b`, `unet/c`." in text
    assert formats_table.not_run([DONE], ["decoder/a"]) == ""


class Process:
    """A child that sends what it is told to and then ends with a code."""

    scripts: ClassVar[list[tuple[list[Any], int]]] = []
    asked: ClassVar[list[tuple[str, ...]]] = []

    def __init__(self, target: Any, args: Any) -> None:
        self.task, self.pipe = args
        self.messages, self.exitcode = Process.scripts.pop(0)
        Process.asked.append(self.task.left)

    def start(self) -> None:
        for kind, what in self.messages:
            self.pipe.send((kind, what if kind == "at" else self.task.blank | what))

    def join(self) -> None:
        """It has ended."""


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    real = formats.multiprocessing.get_context("spawn")
    fake = SimpleNamespace(Pipe=real.Pipe, Process=Process)
    monkeypatch.setattr(formats, "multiprocessing", SimpleNamespace(get_context=lambda _: fake))
    recipe = read_recipe(find("decoder/w8"))

    def run(
        *scripts: tuple[list[Any], int], left: tuple[str, ...] = ("onnx", "ort", "litert")
    ) -> list[tuple[str, str]]:
        Process.scripts, Process.asked = list(scripts), []
        out = tmp_path / "rows.jsonl"
        formats.measure(formats.Task(recipe=recipe, formats=left, left=left, given=Given(), timed=False), out)
        assert formats.missing(out, recipe, list(left), timed=False, again=False) == ()
        return [(row["format"], row["outcome"]) for row in formats_table.read(out)]

    return run


def ended(form: str, outcome: str = "passed") -> tuple[str, dict[str, str]]:
    return "row", {"format": form, "outcome": outcome}


def test_a_process_that_dies_costs_the_format_that_it_was_at(scripted: Any) -> None:
    first = [("at", "onnx"), ended("onnx"), ("at", "ort")], -11
    second = [("at", "litert"), ended("litert")], 0
    died = ("ort", "the process died, exit code -11")
    assert scripted(first, second) == [("onnx", "passed"), died, ("litert", "passed")]
    assert Process.asked == [("onnx", "ort", "litert"), ("litert",)]


def test_a_process_that_dies_before_any_format_costs_the_recipe(scripted: Any) -> None:
    assert scripted(([], -9)) == [("", "the process died, exit code -9")]


def test_a_variant_that_failed_is_one_row(scripted: Any) -> None:
    assert scripted(([ended("", "the variant failed")], 0)) == [("", "the variant failed")]


@pytest.fixture
def tiny(pictures: Path, tmp_path: Path) -> Recipe:
    source = {"source": str(pictures), "count": 2, "size": 64}
    whole = {"schema": 1, "name": "decoder/tiny", "component": "tiny/decoder", "seed": 0}
    whole |= {"data": {"calibration": source, "evaluation": source}, "export": [{"format": "onnx", "dynamic": False}]}
    whole |= {"stages": [{"method": "quantize.rtn", "bits": 8}]}
    whole |= {"gates": [{"metric": "psnr", "max_drop": 9}, {"metric": "latency", "max_ratio": 0.001}]}
    (tmp_path / "tiny.yaml").write_text(json.dumps(whole))
    return read_recipe(tmp_path / "tiny.yaml")


def rows_of(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, checkpoint: Path, *names: str) -> dict[str, Any]:
    sent: list[Any] = []
    task = formats.Task(recipe=recipe, formats=names, left=names, given=Given(checkpoint=checkpoint), timed=False)
    monkeypatch.setattr(formats_table, "subject", lambda recipe: "of tiny")
    formats.work(task, SimpleNamespace(send=sent.append))
    rows = [what for kind, what in sent if kind == "row"]
    assert all(row["digest"] == "of tiny" for row in rows)
    return {row["format"]: row for row in rows}


@pytest.mark.slow
def test_each_format_has_its_row_and_one_that_breaks_costs_no_other(
    tiny: Recipe, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="extra onnx is not installed")
    real = formats.registry.load

    def load(name: str) -> Any:
        module = real(name)
        if name != "export.ort":
            return module
        broken = SimpleNamespace(**vars(module))
        broken.export = lambda *_, **__: 1 // 0
        return broken

    monkeypatch.setattr(formats.registry, "load", load)
    rows = rows_of(monkeypatch, tiny, checkpoint, "executorch", "ort", "onnx")
    assert rows["executorch"]["outcome"].startswith("refused: XNNPACK multiplies")
    assert rows["ort"]["outcome"].startswith("a bug: ZeroDivisionError: ")
    onnx = rows["onnx"]
    assert onnx["outcome"] == "passed"  # untimed, so the impossible gate on latency is not asked
    assert onnx["latency"] is None
    assert onnx["parity"] > 60
    assert onnx["bytes"] > 1000


@pytest.mark.slow
def test_a_variant_that_fails_its_gates_is_a_row_with_value_and_limit(
    tiny: Recipe, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hard = tuple(gate.model_copy(update={"max_drop": None, "min": 99.0}) for gate in tiny.gates[:1])
    (row,) = rows_of(monkeypatch, replace(tiny, gates=hard), checkpoint, "onnx").values()
    assert row["format"] == ""
    assert row["outcome"].startswith("the variant failed: psnr mean ")
    assert row["outcome"].endswith("(min 99)")


@pytest.mark.slow
def test_a_row_is_timed_afterwards_and_meets_the_gate_that_it_was_spared(
    tiny: Recipe, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="extra onnx is not installed")
    given, rows = Given(checkpoint=checkpoint), rows_of(monkeypatch, tiny, checkpoint, "onnx")
    (row,) = formats_latency.timed(tiny, rows, given, seconds=0.5)
    assert 0.01 < row["latency"] < 100
    assert row["ms"] > 0
    assert row["threads"] >= 1
    assert row["outcome"].startswith("failed: latency median ")
    assert row["outcome"].endswith("(max ratio 0.001)")
    assert {key: row[key] for key in ("bytes", "parity", "lpips")} == {
        key: rows["onnx"][key] for key in ("bytes", "parity", "lpips")
    }
    (again,) = formats_latency.timed(tiny, {"onnx": row}, given, seconds=0.5)
    assert again["outcome"].count("latency") == 1
    with pytest.raises(UserError, match=r"onnx has .* bytes now, not 1: measure it again"):
        list(formats_latency.timed(tiny, {"onnx": row | {"bytes": 1}}, given, seconds=0.5))
    (untimed,) = formats_latency.timed(tiny, {"coreml": row | {"format": "coreml"}}, given, seconds=0.5)
    assert untimed["latency"] == "not measured"
    other = replace(tiny, seed=tiny.seed + 1, stages=tiny.stages[:0])
    with pytest.raises(UserError, match="its variant is not in the store"):
        list(formats_latency.timed(other, rows, given, seconds=0.5))
