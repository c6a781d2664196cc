"""The training script on six small pictures: resumed to the bit, scored from its own folder."""

import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

pytest.importorskip("tokenizers", reason="prompts go through Hugging Face's tokenizers")
SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import pipelines_table  # noqa: E402
import score_t2i  # noqa: E402
import steps_table  # noqa: E402
import train_t2i  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from compress import components  # noqa: E402
from compress.sampling.schedule import Schedule, signal_shares  # noqa: E402

STAGE = {"width": 16, "head_dim": 16, "separable": False, "resample": False}
LAYER = {"self_heads": 1, "cross_heads": 1, "feed_forward": 16}
BLOCK = {"hidden": 16, "transformer": [LAYER]}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(train_t2i, "SHOWN", 4)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        rgba = np.random.default_rng(i).integers(0, 256, (8, 8, 4), dtype=np.uint8)
        Image.fromarray(rgba).save(folder / f"{i}.png")
    rows = "".join(f"{i}.png\tthing {name}\tone|two\n" for i, name in enumerate("abcdef"))
    (folder / "captions.tsv").write_text("file\tname\tkeywords\n" + rows)
    return folder


@pytest.fixture
def spec(tmp_path):
    data = YAML(typ="safe").load((SCRIPTS / "train_t2i.yaml").read_text())
    data |= {"size": 32, "batch": 4, "warm_up": 2}
    data["text_encoder"] |= {"vocabulary": 300, "positions": 12, "width": 16, "head_dim": 16}
    data["text_encoder"]["layers"] = [{"heads": 1, "feed_forward": 16}]
    data["unet"] |= {"context_width": 16, "time_width": 16, "down": [STAGE | {"blocks": [BLOCK]}]}
    data["unet"]["up"] = [STAGE | {"blocks": [BLOCK, BLOCK]}]
    path = tmp_path / "spec.yaml"
    with path.open("w") as file:
        YAML().dump(data, file)
    return path


def train(monkeypatch, spec, pictures, out, *more):
    monkeypatch.setattr(
        sys, "argv", ["train_t2i.py", str(spec), "--pictures", str(pictures), "--out", str(out), *map(str, more)]
    )
    train_t2i.main()


def test_resumed_training_ends_with_the_same_bytes(monkeypatch, spec, pictures, tmp_path):
    train(monkeypatch, spec, pictures, tmp_path / "whole", "--until", 4)
    train(monkeypatch, spec, pictures, tmp_path / "parts", "--until", 2)
    train(monkeypatch, spec, pictures, tmp_path / "parts", "--until", 4)
    whole, parts = ((tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    log = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "pictures" in row] == [0, 2]
    assert (tmp_path / "parts" / "grid_0000004.png").exists()

    out = tmp_path / "score.json"
    argv = ["score_t2i.py", tmp_path / "whole", "--pictures", pictures, "--size", 32, "--prompts", 5, "--out", out]
    monkeypatch.setattr(sys, "argv", [*map(str, argv), "--steps", "2"])
    score_t2i.main()
    scored = json.loads(out.read_text())
    assert scored["among_10_nearest"] == 1.0  # of 6 pictures
    assert len(scored["each"]) == 5
    assert all(0 <= row["place"] < 6 for row in scored["each"])

    table = tmp_path / "steps.json"
    argv = ["steps_table.py", tmp_path / "whole", "--pictures", pictures, "--size", 32, "--prompts", 3, "--json", table]
    student = f"the same, called a student={tmp_path / 'whole' / 'unet'}:2"
    monkeypatch.setattr(sys, "argv", [*map(str, argv), "--steps", "1", "2", "--students", student, "--guidance", "1"])
    steps_table.main()
    rows = json.loads(table.read_text())
    assert [(row["steps"], row["calls"]) for row in rows] == [(2, 2), (1, 1), (2, 2), (1, 1), (2, 2)]
    assert rows[0]["lpips"] == rows[4]["lpips"] == 0.0  # the teacher's own way, and its weights under another name
    assert rows[1]["lpips"] > 0

    whole, made = tmp_path / "whole", tmp_path / "pipelines.json"
    shutil.copytree(components.find("md-tiny/decoder"), whole / "decoder")
    (whole / "sampling.json").write_text(json.dumps({"pixels": 32, "steps": 2, "guidance": 3.0}))
    argv = ["pipelines_table.py", whole, "--pictures", pictures, "--prompts", 3, "--json", made]
    monkeypatch.setattr(sys, "argv", [*map(str, argv)])
    pipelines_table.main()
    (found,) = json.loads(made.read_text())["rows"]
    megabytes = sum(path.stat().st_size for path in whole.glob("*/weights.safetensors")) / 1e6
    assert (found["calls"], found["bytes"], found["runs"]) == (4, f"{megabytes:.2f}", "torch")
    assert found["training"] == found["held-out"] == "100.0 %"  # of 6 pictures


def test_training_starts_from_the_weights_and_settings_of_another(monkeypatch, spec, pictures, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train(monkeypatch, spec, pictures, first, "--until", 1)
    train(monkeypatch, spec, pictures, second, "--until", 0, "--start", first)
    tensors = load_file(second / "checkpoint.safetensors")
    for part in ("unet", "text_encoder"):
        for name, tensor in load_file(first / part / "weights.safetensors").items():
            assert torch.equal(tensors[f"model.{part}.{name}"], tensor.float())
            assert torch.equal(tensors[f"average.{part}.{name}"], tensor.float())
    for name in ("tokenizer.json", "latents.json", "scheduler.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_learning_rate_warms_up_stays_and_falls():
    spec = {"lr": 2.0, "warm_up": 4, "decay_steps": 10}
    assert [train_t2i.learning_rate(spec, step, None) for step in (0, 1, 3, 4, 10_000)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert [train_t2i.learning_rate(spec, step, 100) for step in (99, 100, 105, 110, 200)] == [2.0, 2.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("step", [0, 300, 999])
def test_the_loss_is_that_of_the_velocity(step):
    shares = torch.from_numpy(signal_shares(Schedule())).float()
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 8, 4, 4, generator=generator) for _ in range(2))
    batch = (clean, torch.zeros(3, 2), torch.full((3,), step), noise)
    share = shares[step].double()
    velocity = share.sqrt() * noise - (1 - share).sqrt() * clean
    assert float(train_t2i.loss_of(lambda *_: velocity, batch, shares, 5.0)) == pytest.approx(0, abs=1e-10)
    ratio = 1e8 if share == 1 else float(share / (1 - share))
    weight = min(ratio + 1, 5.0) / (ratio + 1)
    found = float(train_t2i.loss_of(lambda x, *_: torch.zeros_like(x), batch, shares, 5.0))
    assert found == pytest.approx(weight * float(velocity.square().mean()), rel=1e-3)
