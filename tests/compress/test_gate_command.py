"""`mdcompress gate` from a gates file alone: exit codes, files for CI, baselines."""

import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import evaluation
from compress.cli import main
from eval import baseline

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(autouse=True)
def short_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "JUDGED_LATENCY_SECONDS", 0.1)


@pytest.fixture
def write(tmp_path: Path, pictures: Path) -> Callable[..., Path]:
    def make(*gates: dict[str, Any], **changes: Any) -> Path:
        whole = {
            "schema": 1,
            "component": "tiny/decoder",
            "evaluation": {"source": str(pictures), "count": 3, "size": 64},
            "gates": list(gates) or [{"metric": "psnr", "max_drop": 0.5}],
        }
        path = tmp_path / "gates.yaml"
        path.write_text(json.dumps(whole | changes, indent=1), encoding="utf-8")
        return path

    return make


@pytest.fixture
def spoilt(checkpoint: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, torch.Tensor]], None]], Path]:
    """Makes a variant folder whose tensors were changed."""

    def make(change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        folder = tmp_path / "spoilt"
        folder.mkdir(exist_ok=True)
        tensors = load_file(checkpoint / "decoder" / "weights.safetensors")
        change(tensors)
        save_file(tensors, folder / "weights.safetensors")
        (folder / "arch.json").write_bytes((checkpoint / "decoder" / "arch.json").read_bytes())
        return folder

    return make


def swap_colours(tensors: dict[str, torch.Tensor]) -> None:
    for name in ("conv_out.weight", "conv_out.bias"):
        tensors[name] = tensors[name].flip(0).contiguous()
    for name in ("linear.weight", "linear.bias"):
        tensors[name] = tensors[name].unflatten(0, (3, 64)).flip(0).flatten(0, 1).contiguous()


def test_an_unchanged_variant_passes_and_leaves_everything_for_ci(
    run: Run, write: Callable[..., Path], checkpoint: Path, tmp_path: Path
) -> None:
    gates = write({"metric": "psnr", "max_drop": 0.5}, {"metric": "size", "max_ratio": 1.0})
    out = tmp_path / "out"
    code, _, err = run("gate", checkpoint / "decoder", "--gates", gates, "--checkpoint", checkpoint, "--out", out)
    assert code == 0, err
    names = {"verdicts.json", "junit.xml", "summary.md", "measurements.jsonl", "report.html"}
    assert {path.name for path in out.iterdir()} == names
    verdicts = json.loads((out / "verdicts.json").read_text())
    assert [v["metric"] for v in verdicts] == ["psnr", "size", "psnr", "sanity"]
    assert all(v["passed"] for v in verdicts)
    root = ET.parse(out / "junit.xml").getroot()
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("4", "0", "0")
    assert (out / "summary.md").read_text().startswith("## gates of decoder: all 4 gates passed")
    assert "<html" in (out / "report.html").read_text()


def test_a_broken_variant_ends_with_1_and_says_what_it_looks_like(
    run: Run, write: Callable[..., Path], checkpoint: Path, spoilt: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("--gates", write(), "--checkpoint", checkpoint, "--out", out)
    code, shown, _ = run("gate", spoilt(swap_colours), *arguments)
    assert code == 1
    assert "channels swapped (BGR for RGB)" in " ".join(shown.split())
    assert "channels swapped" in (out / "junit.xml").read_text()
    assert "channels swapped" in (out / "summary.md").read_text()


def test_a_mistake_ends_with_2_and_every_line_is_named(
    run: Run, write: Callable[..., Path], checkpoint: Path, tmp_path: Path
) -> None:
    gates = write(
        {"metric": "pnsr", "min": 1.0},
        {"metric": "psnr", "max_rise": 1.0},
        {"metric": "psnr", "against": "baseline", "max_drop": 1.0},
        colour="red",
    )
    code, _, err = run("gate", checkpoint / "decoder", "--gates", gates, "--checkpoint", checkpoint)
    assert code == 2
    for text in ("did you mean 'psnr'", "takes no max_rise", "there is no baseline; name it", "colour: unknown key"):
        assert text in err, err
    assert err.count(str(gates)) == 4


def test_what_cannot_be_judged_is_named_before_the_teacher_runs(
    run: Run, write: Callable[..., Path], checkpoint: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(b"\x08\x0a" * 50)
    for path, said in ((tmp_path / "absent", "nothing to judge"), (cut, "ONNX Runtime")):
        code, _, err = run("gate", path, "--gates", write(), "--checkpoint", checkpoint)
        assert (code, said in err, "running the teacher" in err) == (2, True, False), err


def test_a_missing_package_ends_with_3(
    run: Run, write: Callable[..., Path], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.metrics import lpips

    nothing = types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(lpips, "importlib", nothing)
    gates = write({"metric": "lpips", "max_rise": 0.1})
    code, _, err = run("gate", checkpoint / "decoder", "--gates", gates, "--checkpoint", checkpoint)
    assert (code, "pip install stlpips-pytorch" in err) == (3, True)


def test_a_baseline_is_made_kept_and_updated_by_one_command(
    run: Run, write: Callable[..., Path], checkpoint: Path, spoilt: Callable[..., Path], tmp_path: Path
) -> None:
    gates = write(
        {"metric": "psnr", "against": "baseline", "max_drop": 0.05},
        {"metric": "psnr", "max_drop": 1.0},
        baseline="kept/baseline.json",
    )
    arguments = ("--gates", gates, "--checkpoint", checkpoint)
    variant = checkpoint / "decoder"
    code, _, err = run("gate", variant, *arguments)
    assert (code, "no such baseline" in err) == (2, True)
    code, _, err = run("gate", variant, *arguments, "--update-baseline")
    assert code == 0
    kept = tmp_path / "kept" / "baseline.json"
    assert f"wrote {kept}" in err
    before = kept.read_bytes()
    assert run("gate", variant, *arguments)[0] == 0

    def noisy(tensors: dict[str, torch.Tensor]) -> None:
        tensors["linear.weight"] += 0.02 * torch.randn(
            tensors["linear.weight"].shape, generator=torch.Generator().manual_seed(0)
        )

    worse = spoilt(noisy)
    code, shown, _ = run("gate", worse, *arguments)
    assert (code, "from the baseline" in " ".join(shown.split())) == (1, True)
    code, _, err = run("gate", worse, *arguments, "--update-baseline")
    assert code == 0, err
    assert "changed" in err
    assert kept.read_bytes() != before
    assert run("gate", worse, *arguments, "--out", tmp_path / "ci")[0] == 0
    page = (tmp_path / "ci" / "report.html").read_text(encoding="utf-8")
    was, now = (baseline.past(baseline.read(path)["variant"]) for path in (write_copy(tmp_path, before), kept))
    name = "psnr, mean to the ground truth"
    assert now.values[name] < was.values[name]
    assert f"{name}, oldest first: {was.values[name]:.2f}, {now.values[name]:.2f}, {now.values[name]:.2f}<" in page
    after = kept.read_bytes()
    code, shown, err = run("gate", spoilt(swap_colours), *arguments, "--update-baseline")
    assert (code, "left as it was: a gate failed" in err) == (1, True), (shown, err)
    assert kept.read_bytes() == after
    other = write(
        {"metric": "psnr", "against": "baseline", "max_drop": 0.05},
        baseline="kept/baseline.json",
        evaluation=json.loads(gates.read_text())["evaluation"] | {"count": 2},
    )
    code, shown, _ = run("gate", worse, "--gates", other, "--checkpoint", checkpoint)
    text = " ".join(shown.split())
    assert code == 1
    assert "another data set" in text
    assert "another number of images: 3 in the baseline, 2 now" in text


def write_copy(folder: Path, data: bytes) -> Path:
    path = folder / "copy.json"
    path.write_bytes(data)
    return path


def test_latency_and_memory_are_taken_where_they_are_gated(
    run: Run, write: Callable[..., Path], checkpoint: Path
) -> None:
    gates = write(
        {"metric": "psnr", "min": 5.0, "max": 60.0, "against": "ground_truth"},
        {"metric": "latency", "max_ratio": 100.0},
        {"metric": "peak_memory", "max": 1e9},
    )
    code, shown, err = run("gate", checkpoint / "decoder", "--gates", gates, "--checkpoint", checkpoint, "--json")
    assert code == 0, err
    found = {(v["metric"], v["kind"]): v for v in json.loads(shown)}
    assert set(found) == {
        ("psnr", "min"),
        ("psnr", "max"),
        ("latency", "max_ratio"),
        ("peak_memory", "max"),
        ("sanity", "max"),
    }
    assert 0 < found["peak_memory", "max"]["value"] < 1e9
    assert 0 < found["latency", "max_ratio"]["value"] < 100


def test_a_recipe_serves_as_a_gates_file_but_knows_no_baseline(
    run: Run, tmp_path: Path, write: Callable[..., Path]
) -> None:
    source = json.loads(write().read_text())["evaluation"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "schema": 1,
                "name": "r",
                "component": "tiny/decoder",
                "seed": 0,
                "data": {"calibration": source, "evaluation": source},
                "stages": [{"method": "quantize.rtn"}],
                "gates": [{"metric": "psnr", "against": "baseline", "max_drop": 1.0}],
            }
        )
    )
    code, _, err = run("gate", tmp_path, "--recipe", recipe)
    assert (code, "a baseline belongs to a gates file" in err) == (2, True)
