"""A recipe takes sampling steps out of a UNet, and the run's result draws a picture."""

import json
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
from PIL import Image

from compress import evaluation, pipeline
from compress.cli import main
from compress.sampling.latents import LatentScale

pytest.importorskip("tokenizers", reason="captions go through Hugging Face's tokenizers")
pytestmark = pytest.mark.slow

NAMES = ["red", "blue", "green", "pink", "grey", "black", "white", "brown", "gold", "teal"]


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    rows = "".join(f"{name}.png\t{name}\n" for name in NAMES)
    (folder / "captions.tsv").write_text("file\tname\n" + rows)
    return folder


def recipe(folder: Path, captioned: Path, stages: list[Any]) -> Path:
    """A recipe file; JSON is YAML."""
    shown = {"source": str(captioned), "count": 2, "size": 64}
    whole = {"schema": 1, "name": "unet/steps2", "component": "tiny/unet", "seed": 0, "stages": stages}
    whole |= {"data": {"calibration": shown, "evaluation": shown}, "gates": [{"metric": "size", "max_ratio": 1.1}]}
    path = folder / "steps2.yaml"
    path.write_text(json.dumps(whole))
    return path


def test_the_whole_chain(captioned: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "JUDGED_LATENCY_SECONDS", 0.1)
    monkeypatch.setattr(pipeline, "STAGE_LATENCY_SECONDS", 0.1)
    family = families.write(tmp_path / "family", NAMES, LatentScale(mean=(0.1,) * 8, std=(0.9,) * 8))
    stage = {
        "method": "distill.progressive",
        "first": 4,
        "last": 2,
        "steps": 2,
        "batch": 2,
        "pixels": 32,
        "guidance": 2.0,
    }
    path, out = recipe(tmp_path, captioned, [stage]), tmp_path / "out"
    assert main(["run", str(path), "--out", str(out), "--checkpoint", str(family)]) == 0
    verdicts = json.loads((out / "verdicts.json").read_text())
    assert any("sampling steps" in row["statistic"] and row["value"] == 2 for row in verdicts)
    capsys.readouterr()
    line = ["generate", "red", "--model", str(family), "--unet", str(out), "--pixels", "32", "--steps", "2"]
    assert main([*line, "--guidance", "1", "--solver", "ddim", "--out", str(tmp_path / "red.png")]) == 0
    assert "--steps 2 --guidance 1" in capsys.readouterr().err
    assert (tmp_path / "red.png").exists()


def test_a_family_that_lacks_a_part_is_told_so(captioned: Path, tmp_path: Path, capsys: Any) -> None:
    family = families.write(tmp_path / "family", NAMES, LatentScale(mean=(0.1,) * 8, std=(0.9,) * 8))
    (family / "latents.json").unlink()
    path = recipe(tmp_path, captioned, [{"method": "distill.consistency", "steps": 2, "pixels": 32}])
    assert main(["run", str(path), "--out", str(tmp_path / "out"), "--checkpoint", str(family)]) == 2
    assert "does not have beside it encoder/, text_encoder/" in " ".join(capsys.readouterr().err.split())
