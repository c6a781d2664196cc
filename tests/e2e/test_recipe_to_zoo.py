"""The whole chain on a tiny component: recipe, stages, gates, export, gates, zoo; run again, killed, tampered with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from compress import evaluation, pipeline
from compress.cli import main
from compress.distill import _loop

pytest.importorskip("onnx", reason="extra onnx is not installed")
pytest.importorskip("onnxscript", reason="extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="extra onnx is not installed")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAME = "decoder/tiny"
LONG = 40  # steps that leave time to kill the run in
KEYS = {"metric", "statistic", "against", "value", "limit", "passed"}
DISTILL = {"method": "distill.output", "steps": 6, "lr": 1e-4, "batch": 2, "pixels": 32, "checkpoint_every": 2}
STAGES: list[dict[str, Any]] = [
    {"method": "prune.depth", "blocks": 1, "samples": 2},
    {"method": "prune.width", "ratio": 0.5, "round_to": 4},
    DISTILL,
    {"method": "quantize.static", "weight_bits": 8, "activation_bits": 8},
]
GATES: list[dict[str, Any]] = [
    {"metric": "psnr", "max_drop": 6.0},
    {"metric": "ssim", "statistic": "worst", "max_drop": 0.3},
    {"metric": "size", "max_ratio": 1.0},
    {"metric": "latency", "max_ratio": 20, "undecided": "pass"},
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where everything of these tests lies."""

    root: Path
    store: Path
    checkpoint: Path
    pictures: Path

    def recipe(self, file: str, **changes: Any) -> Path:
        """A recipe file; JSON is YAML."""
        pictures = {"source": str(self.pictures), "count": 3, "size": 64}
        data = {"calibration": pictures, "evaluation": pictures}
        whole = {"schema": 1, "name": NAME, "component": "tiny/decoder", "seed": 0, "data": data}
        path = self.root / file
        path.write_text(
            json.dumps(whole | {"stages": STAGES, "gates": GATES, "export": [{"format": "onnx"}]} | changes)
        )
        return path

    def arguments(self, recipe: Path, out: Path) -> list[str]:
        return ["run", str(recipe), "--out", str(out), "--checkpoint", str(self.checkpoint)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, pictures: Path) -> Place:
    root = tmp_path_factory.mktemp("e2e")
    return Place(root=root, store=root / "store", checkpoint=checkpoint, pictures=pictures)


@pytest.fixture(scope="module", autouse=True)
def short_latencies() -> Iterator[None]:
    """A tiny component needs no long look, and its latency is not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "JUDGED_LATENCY_SECONDS", 0.1)
        patch.setattr(pipeline, "STAGE_LATENCY_SECONDS", 0.1)
        yield


@pytest.fixture(autouse=True)
def shared_store(place: Place, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One store for the whole file: later runs find what earlier ones made."""
    monkeypatch.setenv("MDCOMPRESS_CACHE", str(place.store))


@pytest.fixture(scope="module")
def passed(place: Place, short_latencies: None) -> Iterator[Path]:
    """A run that passed."""
    out = place.root / "passed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDCOMPRESS_CACHE", str(place.store))
        assert main(place.arguments(place.recipe("passes.yaml"), out)) == 0
    yield out


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def events(out: Path, kind: str) -> list[str]:
    rows = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["name"] for row in rows if row["kind"] == kind]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_run_leaves_verdicts_a_report_an_artifact_and_a_zoo_entry(passed: Path) -> None:
    verdicts = read(passed / "verdicts.json")
    assert all(set(row) >= KEYS and row["passed"] is True for row in verdicts)
    judged = {(row["subject"], row["metric"]) for row in verdicts}
    assert {("variant", "psnr"), ("onnx", "psnr"), ("onnx", "latency"), ("onnx to torch", "psnr")} <= judged
    assert ("onnx to torch, half the size", "psnr") in judged
    achieved = {row["statistic"]: row["value"] for row in verdicts if row["metric"] == "achieved"}
    assert achieved["prune.depth: blocks removed"] == 1
    layers = len(read(passed / "variant" / "quantization.json")["layers"])
    assert achieved["layers whose integers are in the file"] == layers > 5
    assert "<svg" in (passed / "report.html").read_text(encoding="utf-8")
    assert read(passed / "status.json")["state"] == "passed"
    entry = passed / "zoo" / NAME
    assert (entry / "decoder.onnx").read_bytes() == (passed / "artifacts" / "decoder.onnx").read_bytes()
    assert len(read(passed / "variant" / "lineage.json")["stages"]) == len(STAGES)


def test_the_zoo_verifies_until_a_file_is_tampered_with(passed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo = passed / "zoo"
    assert main(["zoo", "verify", str(zoo)]) == 0
    artifact = zoo / NAME / "decoder.onnx"
    data = artifact.read_bytes()
    try:
        artifact.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        capsys.readouterr()
        assert main(["zoo", "verify", str(zoo)]) == 1
        assert f"FAILED {NAME} decoder.onnx" in capsys.readouterr().out
    finally:
        artifact.write_bytes(data)
    assert main(["zoo", "verify", str(zoo), NAME]) == 0


def test_running_again_does_nothing(place: Place, passed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(passed)
    assert main(place.arguments(place.root / "passes.yaml", passed)) == 0
    assert "nothing was left to do" in capsys.readouterr().out
    assert contents(passed) == before


def test_a_new_run_of_the_same_recipe_is_all_cached_and_has_the_same_bytes(place: Place, passed: Path) -> None:
    out = place.root / "again"
    assert main(place.arguments(place.root / "passes.yaml", out)) == 0
    assert len(events(passed, "started")) == len(STAGES) + 2  # measuring, export
    assert len(events(out, "cached")) == len(STAGES)
    assert contents(out / "variant") == contents(passed / "variant")
    assert contents(out / "artifacts") == contents(passed / "artifacts")
    assert read(out / "status.json") == read(passed / "status.json")


def test_a_gate_that_fails_ends_with_1_and_nothing_ships(
    place: Place, passed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = place.recipe("strict.yaml", gates=[{"metric": "psnr", "min": 90.0}])
    out = place.root / "failed"
    assert main(place.arguments(strict, out)) == 1
    assert "FAILED" in capsys.readouterr().out
    assert [row["passed"] for row in read(out / "verdicts.json") if row["metric"] == "psnr"] == [False]
    assert (out / "report.html").is_file()
    assert not (out / "artifacts").exists()
    assert not (out / "zoo").exists()
    assert main(["report", str(out)]) == 1
    assert main(["zoo", "add", str(out), "--zoo", str(place.root / "zoo")]) == 2
    assert not (place.root / "zoo").exists()


@pytest.mark.parametrize("what", ["variant", "artifacts/decoder.onnx", "."])
@pytest.mark.parametrize(("limit", "code"), [(10.0, 0), (90.0, 1)])
def test_gate_judges_what_already_exists(
    what: str, limit: float, code: int, place: Place, passed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = place.recipe("gate.yaml", gates=[{"metric": "psnr", "min": limit}])
    capsys.readouterr()
    arguments = ["gate", str(passed / what), "--recipe", str(recipe), "--checkpoint", str(place.checkpoint), "--json"]
    assert main(arguments) == code
    verdict, sanity = json.loads(capsys.readouterr().out)
    assert sanity["metric"] == "sanity"
    assert verdict["passed"] is (code == 0)
    assert verdict["subject"] == ("onnx" if what.endswith(".onnx") else "variant")


def test_a_variant_takes_an_entrys_place_only_past_gates_against_it_and_the_old_one_is_kept(
    place: Place, passed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo, out = tmp_path / "zoo", tmp_path / "larger"
    shutil.copytree(passed / "zoo", zoo)
    before = contents(zoo)
    whole = [{"method": "quantize.rtn", "bits": 8}]  # nothing pruned: more bytes
    larger = place.recipe("larger.yaml", stages=whole)
    assert main(place.arguments(larger, out)) == 0
    command = ["zoo", "promote", str(out), "--zoo", str(zoo), "--checkpoint", str(place.checkpoint)]
    capsys.readouterr()
    assert main([*command, "--json"]) == 1
    failed = {row["metric"] for row in json.loads(capsys.readouterr().out) if not row["passed"]}
    assert "size" in failed
    assert contents(zoo) == before

    gates = tmp_path / "gates.yaml"
    demands = [{"metric": "psnr", "max_drop": 6.0}, {"metric": "psnr", "against": "baseline", "max_drop": 6.0}]
    evaluation_set = {"source": str(place.pictures), "count": 3, "size": 64}
    gates.write_text(
        json.dumps({"schema": 1, "component": "tiny/decoder", "evaluation": evaluation_set, "gates": demands})
    )
    assert main([*command, "--gates", str(gates)]) == 0
    archived = zoo / "archive" / NAME / "1"
    assert contents(archived) == contents(passed / "zoo" / NAME)
    assert contents(zoo / NAME) == contents(out / "zoo" / NAME)
    assert main(["zoo", "verify", str(zoo)]) == 0
    assert main(["zoo", "list", str(zoo)]) == 0
    capsys.readouterr()
    assert main([*command, "--gates", str(gates)]) == 2
    assert "the same already" in capsys.readouterr().err

    undo = [*command[:2], str(archived), *command[3:], "--gates", str(gates)]
    assert main(undo) == 0
    assert contents(zoo / NAME) == contents(passed / "zoo" / NAME)
    assert main(["zoo", "diff", str(zoo / "archive" / NAME / "2"), str(zoo / NAME), "--json"]) == 0


def test_a_run_that_is_killed_in_distillation_ends_with_the_same_bytes(
    place: Place, passed: Path, tmp_path: Path
) -> None:
    stages = [{**stage, "steps": LONG} if stage is DISTILL else stage for stage in STAGES[:3]]
    recipe = place.recipe("killed.yaml", stages=stages, gates=[{"metric": "psnr", "min": 10}], export=[])
    shutil.copytree(place.store, tmp_path / "store")  # with what both find there: the stages before distillation
    assert main(place.arguments(recipe, tmp_path / "whole")) == 0

    environment = os.environ | {"MDCOMPRESS_CACHE": str(tmp_path / "store"), "OMP_NUM_THREADS": "1"}
    script = "import sys; from compress.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, *place.arguments(recipe, tmp_path / "killed")]
    run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_for_checkpoint(run, tmp_path / "store")
    finally:
        run.kill()
        assert run.wait() == -signal.SIGKILL
    assert read(tmp_path / "killed" / "status.json")["state"] == "running"
    assert not (tmp_path / "killed" / "variant").exists()
    (written,) = (tmp_path / "store").glob("unfinished/*/checkpoint.safetensors")
    done = len(load_file(written)["losses"])
    assert 0 < done < LONG

    steps: list[int] = []
    rate = _loop.Schedule.lr_at
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MDCOMPRESS_CACHE", str(tmp_path / "store"))
        patch.setattr(_loop.Schedule, "lr_at", lambda self, step: steps.append(step) or rate(self, step))
        assert main(place.arguments(recipe, tmp_path / "killed")) == 0
    assert steps == list(range(done, LONG))
    assert not written.exists()
    assert (
        events(tmp_path / "killed", "cached") == ["1/3 prune.depth", "2/3 prune.width"] * 2
    )  # before the kill, and after
    assert contents(tmp_path / "killed" / "variant") == contents(tmp_path / "whole" / "variant")


def wait_for_checkpoint(run: subprocess.Popen[bytes], store: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not list(store.glob("unfinished/*/checkpoint.safetensors")):
        assert run.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.005)
