"""Words to a PNG, by torch variants and by exported files without torch; what does not belong together is named."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import families
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

pytest.importorskip("tokenizers", reason="prompts go through Hugging Face's tokenizers")

from compress import drawn, registry
from compress.cli import main
from compress.components import build, load_variant, save_variant
from compress.files import read_json, write_json
from compress.records import Achieved, StageRecord
from compress.written import Data, Drawn, Pictures
from eval.compare import Metric

PACKAGES = {
    "onnx": "onnxruntime",
    "litert": "ai_edge_litert",
    "openvino": "openvino",
    "executorch": "executorch",
}


@pytest.fixture
def model(words_model) -> Path:
    """A model of three variants, for 32 pixels."""
    return words_model


@pytest.fixture
def exported(words_files) -> Path:
    """The same as three ONNX files."""
    return words_files


def written(model: Path, folder: Path, name: str) -> Path:
    """The model as three exported files."""
    pytest.importorskip(PACKAGES[name], reason="the files are run")
    return families.exported(model, folder, name)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened).astype(int)


def test_the_same_words_and_seed_give_the_same_picture(model, tmp_path, capsys):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        out = tmp_path / f"{name}.png"
        assert main(["generate", "red apple", "--model", str(model), "--seed", str(seed), "--out", str(out)]) == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert pixels(tmp_path / "one.png").shape == (32, 32, 3)
    assert not np.array_equal(pixels(tmp_path / "one.png"), pixels(tmp_path / "other.png"))
    said = capsys.readouterr().out
    assert "32x32, 2 steps of ddim, guidance 2, seed 3" in said and "unet: torch" in said


RUNTIMES = {
    "onnx": "ONNX Runtime",
    "litert": "LiteRT",
    "openvino": "OpenVINO",
    "executorch": "ExecuTorch",
}


@pytest.mark.parametrize("name", [n for n in RUNTIMES if f"export.{n}" in registry.names("export")])
def test_exported_files_draw_what_the_variants_draw_without_torch(model, tmp_path, request, name):
    folder, leaf = request.getfixturevalue("exported"), "unet"
    if (
        name == "executorch"
    ):  # which takes a minute for a tiny UNet: its text encoder, and the other two from ONNX files
        pytest.importorskip("executorch", reason="the files are run")
        onnx, leaf = folder, "text_encoder"
        folder = families.exported(model, tmp_path, name, (leaf,))
        for other in ("unet.onnx", "decoder.onnx"):
            shutil.copy(onnx / other, folder)
    elif name != "onnx":
        folder = written(model, tmp_path, name)
    line = ["generate", "red apple", "--model", str(model), "--out", str(tmp_path / "torch.png")]
    assert main(line) == 0
    for setting in model.glob("*.json"):
        (folder / setting.name).write_bytes(setting.read_bytes())
    line = ["generate", "red apple", "--model", str(folder), "--out", str(tmp_path / "files.png")]
    without = "" if name == "executorch" else "sys.modules['torch'] = None; "  # its own package is made of tensors
    code = f"import sys; {without}from compress.cli import main; sys.exit(main({line!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{leaf}: {RUNTIMES[name]}" in done.stdout
    assert np.abs(pixels(tmp_path / "torch.png") - pixels(tmp_path / "files.png")).max() <= 1


def test_parts_are_taken_from_where_the_user_says(model, exported, tmp_path, capsys):
    line = ["generate", "red apple", "--model", str(model), "--out", str(tmp_path / "mixed.png")]
    assert main([*line, "--unet", str(exported / "unet.onnx"), "--decoder", str(model / "decoder")]) == 0
    said = capsys.readouterr().out
    assert "unet: ONNX Runtime" in said and "decoder: torch" in said


def test_what_the_user_should_know_is_said(model, tmp_path, capsys):
    line = ["--model", str(model), "--steps", "1", "--out", str(tmp_path / "a.png")]
    assert main(["generate", "a red apple and a blue heart", *line]) == 0
    assert "note: prompt 1 is longer than 3 tokens; left out: '" in capsys.readouterr().err
    assert main(["generate", "", *line]) == 0
    assert "prompt 1 is empty" in capsys.readouterr().err
    assert main(["generate", "\u732b heart", *line]) == 0
    assert "characters that training never had: \u732b" in capsys.readouterr().err


def test_a_distilled_unet_says_how_it_wants_to_be_sampled(model, tmp_path, capsys):
    done = Achieved(what="sampling steps", requested=4, achieved=4, unit="steps", met=True)
    record = StageRecord(method="distill.progressive", config={"guidance": 3.0}, key="0" * 64, achieved=(done,))
    save_variant(replace(tiny.unet(), lineage=(record,)), tmp_path / "student")
    line = ["generate", "red apple", "--model", str(model), "--out", str(tmp_path / "a.png")]
    assert main([*line, "--unet", str(tmp_path / "student")]) == 0
    assert "to 4 sampling steps, guidance 3 included: sample it with --steps 4 --guidance 1" in capsys.readouterr().err


class Broken(torch.nn.Module):
    config = tiny.UNET

    def forward(self, latents, times, states):
        return latents * float("nan")


def test_a_picture_that_shows_nothing_is_not_written(model, tmp_path, capsys, monkeypatch):
    from compress import generation

    out = tmp_path / "a.png"
    line = ["generate", "red apple", "--model", str(model), "--out", str(out)]
    normal = generation._module
    monkeypatch.setattr(generation, "_module", lambda place: Broken() if place.name == "unet" else normal(place))
    assert main(line) == 2 and "UNet, time step 999: the latents of picture 0 are not finite" in capsys.readouterr().err

    def black(place):
        module = normal(place)
        if place.name == "decoder":
            module = build(tiny.decoder().arch).requires_grad_(False).eval()
            for tensor in module.parameters():
                tensor.zero_()
        return module

    monkeypatch.setattr(generation, "_module", black)
    assert main(line) == 2 and "one flat colour (0.000 of 1)" in capsys.readouterr().err
    assert not out.exists()


def copied(model: Path, folder: Path, **changes) -> Path:
    """The model with other values in its settings: `scheduler__beta_end=0.5`."""
    shutil.copytree(model, folder)
    for key, value in changes.items():
        name, _, field = key.partition("__")
        write_json(folder / f"{name}.json", read_json(folder / f"{name}.json") | {field: value})
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler__shift": 3.0}, "scheduler.json: needs exactly the keys"),
        ({"scheduler__prediction_type": "epsilon"}, "epsilon cannot start from pure noise"),
        ({"sampling__sampler": "euler"}, r"\['sampler'\] does not belong here"),
        ({"sampling__steps": "many"}, "sampling.json: steps"),
        ({"latents__mean": [0.0] * 4, "latents__std": [1.0] * 4}, "latent channels in latents.json 4, channels of the UNet 8"),
        ({"latents__std": [1.0] * 7 + [0.0]}, "deviations finite and above 0"),
    ],
)  # fmt: skip
def test_settings_that_do_not_belong_are_named(model, tmp_path, capsys, changes, message):
    folder = copied(model, tmp_path / "changed", **changes)
    assert main(["generate", "red apple", "--model", str(folder), "--out", str(tmp_path / "a.png")]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_a_part_of_another_training_is_refused(model, tmp_path, capsys):
    other = copied(model, tmp_path / "other", latents__std=[1.1] * 8)
    line = ["generate", "red apple", "--model", str(model), "--out", str(tmp_path / "a.png")]
    assert main([*line, "--unet", str(other / "unet")]) == 2
    assert "this unet was trained with other settings than the model's" in capsys.readouterr().err
    assert main([*line, "--decoder", str(other / "decoder")]) == 0
    assert "the decoder's family has another scale of latents" in capsys.readouterr().err
    assert main([*line, "--text-encoder", str(other / "text_encoder")]) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--unet", "nowhere"], "nowhere: no such part"),
        (["--model", "nowhere"], "nowhere: no text-to-image model"),
        (["--unet", "mobilediffusion/unet"], "mobilediffusion/unet comes without weights: train it"),
        (["--out", "a.jpg"], "a name that ends in .png"),
        (["--out", "nowhere/a.png"], "nowhere is no folder"),
        (["--pixels", "30"], "a multiple of 8"),
        (["--steps", "0"], "0 steps asked; this schedule takes 1 to 1000"),
        (["--guidance", "nan"], "guidance nan"),
        (["--seed", "-1"], "seed -1"),
    ],
)
def test_mistakes_are_named(model, tmp_path, monkeypatch, capsys, line, message):
    monkeypatch.chdir(tmp_path)
    given = {"--model": str(model), "--out": "a.png"} | dict(zip(line[::2], line[1::2], strict=True))
    assert main(["generate", "red apple", *(word for pair in given.items() for word in pair)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_damaged_and_foreign_files_are_named(model, exported, tmp_path, capsys):
    line = ["generate", "red apple", "--model", str(exported), "--out", str(tmp_path / "a.png")]
    damaged = tmp_path / "unet.onnx"
    damaged.write_bytes((exported / "unet.onnx").read_bytes()[:500])
    assert main([*line, "--unet", str(damaged)]) == 2 and "not a readable .onnx file" in capsys.readouterr().err
    assert main([*line, "--unet", str(exported / "decoder.onnx")]) == 2
    assert "latents.json 8, channels out of the UNet 3" in " ".join(capsys.readouterr().err.split())
    assert main([*line, "--decoder", str(exported / "unet.onnx")]) == 2
    assert "it is another component's file" in " ".join(capsys.readouterr().err.split())
    assert main([*line, "--pixels", "64"]) == 2
    assert "this UNet makes pictures of 32 pixels, not 64" in capsys.readouterr().err


def test_presets_with_settings_are_models():
    from compress.generation import PRESETS, Usual

    assert (PRESETS / "md-tiny" / "scheduler.json").is_file()
    found = PRESETS / "md-tiny" / "sampling.json"
    assert set(json.loads(found.read_text())) <= set(Usual.__dataclass_fields__)


def test_a_file_draws_for_gates_what_its_variant_draws(model, exported):
    captions = Pictures.model_construct(source="captions", count=1, size=32)  # what the files were exported for
    how = Drawn(count=1, solver="ddim", steps=2, guidance=2.0)
    data = Data.model_construct(calibration=captions, evaluation=captions, drawn=how)
    folders = {leaf: model / leaf for leaf in ("text_encoder", "decoder")}
    sheet = drawn.draw_teacher("unet", load_variant(model / "unet").module, folders, model, data, 0)
    run = registry.load("export.onnx").load(exported / "unet.onnx", threads=1)
    (psnr,) = drawn.measure(sheet, run, 1, (Metric(name="psnr"),)).measurements
    assert psnr.values[0] > 60
