"""Encoder, UNet and text encoder through the whole chain: their outputs are tensors, judged against the teacher's."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors.torch import load_file

from compress import evaluation, pipeline
from compress.cli import main
from compress.components import build, save_variant
from compress.components._unet_config import BlockConfig, StageConfig, TransformerConfig
from compress.records import Arch, Variant

pytest.importorskip("onnx", reason="extra onnx is not installed")
pytest.importorskip("onnxscript", reason="extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="extra onnx is not installed")

pytestmark = pytest.mark.slow

W8A8 = {"method": "quantize.static", "weight_bits": 8, "activation_bits": 8}
GATES = [
    {"metric": "sqnr", "min": 15.0},
    {"metric": "size", "max_ratio": 2.0},
    {"metric": "latency", "max_ratio": 1000, "undecided": "pass"},
]
COSINE = {"metric": "cosine", "min": 0.95}
TEXT = replace(tiny.TEXT, width=12, layers=tiny.TEXT.layers[:1])  # states that the UNet reads
STAGE = StageConfig(
    width=8,
    head_dim=4,
    separable=False,
    resample=False,
    blocks=(BlockConfig(hidden=16, transformer=(TransformerConfig(self_heads=2, cross_heads=2, feed_forward=16),)),),
)
UNET = replace(tiny.UNET, down=(STAGE,), up=(replace(STAGE, blocks=(BlockConfig(hidden=8, transformer=()),) * 2),))
ENCODER = replace(tiny.ENCODER, levels=tiny.levels((8, 8, 8, 8), ((8,), (), (), ())))  # a trace costs time by the node


@pytest.fixture(scope="module", autouse=True)
def short_latencies() -> Iterator[None]:
    """Latency is not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "JUDGED_LATENCY_SECONDS", 0.3)
        patch.setattr(pipeline, "STAGE_LATENCY_SECONDS", 0.1)
        yield


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """unet/, text_encoder/ and encoder/ that fit each other."""
    folder = tmp_path_factory.mktemp("family")
    kinds = {"text_encoder.text_encoder": TEXT, "unet.unet": UNET, "vae.encoder": ENCODER}
    for kind, config in kinds.items():
        arch, leaf = Arch(kind=kind, config=config), kind.rpartition(".")[2]
        save_variant(Variant(component=f"tiny/{leaf}", arch=arch, module=tiny._seeded(build(arch), 0)), folder / leaf)
    return folder


def recipe(folder: Path, leaf: str, data: dict[str, Any], stages: list[Any], gates: list[Any]) -> Path:
    """A recipe file; JSON is YAML."""
    path = folder / f"{leaf}.yaml"
    whole = {"schema": 1, "name": f"{leaf}/tiny", "component": f"tiny/{leaf}", "seed": 0}
    whole["data"] = {"calibration": data, "evaluation": data}
    whole |= {"stages": stages, "gates": gates, "export": [{"format": "onnx", "dynamic": leaf != "text_encoder"}]}
    path.write_text(json.dumps(whole))
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def cases(pictures: Path) -> dict[str, tuple[dict[str, Any], list[Any], list[Any]]]:
    shown = {"source": str(pictures), "count": 4, "size": 64}
    return {
        "encoder": (shown, [W8A8], GATES),
        "unet": (shown, [W8A8], GATES),
        "text_encoder": ({"source": "captions", "count": 4}, [W8A8], [*GATES, COSINE]),
    }


@pytest.mark.parametrize("leaf", ["encoder", "unet", "text_encoder"])
def test_the_whole_chain(leaf: str, family: Path, pictures: Path, tmp_path: Path) -> None:
    data, stages, gates = cases(pictures)[leaf]
    path, out = recipe(tmp_path, leaf, data, stages, gates), tmp_path / "out"
    assert main(["run", str(path), "--out", str(out), "--checkpoint", str(family)]) == 0
    verdicts = read(out / "verdicts.json")
    judged = {(row["subject"], row["metric"]) for row in verdicts}
    assert {("variant", "sqnr"), ("onnx", "sqnr"), ("onnx", "size"), ("onnx", "latency")} <= judged
    assert ("onnx to torch", "sqnr") in judged
    entry = out / "zoo" / leaf / "tiny"
    sample = load_file(entry / "samples" / "0.safetensors")
    assert sample["output"].shape[0] == 1
    assert sample["input.0"].is_floating_point() is (leaf != "text_encoder")
    assert all(row["min_sqnr_db"] > 0 for row in read(out / "entry.json")["samples"])
    assert not (entry / "samples" / "preview.png").exists()
    assert main(["zoo", "verify", str(out / "zoo")]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "SQNR of every sample to the reference" in page
    assert ("normal noise" in page) is False
    assert ("drawn at random" in page) is (leaf != "encoder")  # there is no tokenizer
    assert main(["gate", str(entry), "--recipe", str(path), "--checkpoint", str(family), "--out", str(out / "ci")]) == 0


def test_a_unet_alone_is_judged_on_noise_and_says_so(family: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    path = recipe(tmp_path, "unet", {"source": str(pictures), "count": 4, "size": 64}, [W8A8], GATES)
    assert main(["plan", str(path), "--checkpoint", str(family / "unet"), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert len(notes) == 3
    assert "no encoder" in notes[0] and "no text encoder" in notes[1] and "noise schedule" in notes[2]


def test_metrics_of_pictures_are_refused_before_anything_runs(family: Path, tmp_path: Path, capsys: Any) -> None:
    path = recipe(tmp_path, "text_encoder", {"source": "captions", "count": 4}, [W8A8], [{"metric": "psnr", "min": 20}])
    assert main(["plan", str(path), "--checkpoint", str(family)]) == 2
    text = capsys.readouterr().err
    assert "psnr compare pictures" in text
    assert "cosine" in text and "sqnr" in text
