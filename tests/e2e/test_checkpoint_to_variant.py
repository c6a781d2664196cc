"""A diffusers folder through a recipe on the command line: a half-width 8-bit variant that loads, or one clear error."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import folders
import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.cli import main
from compress.components import load_variant, read_arch
from compress.nn.qmodules import quantized

KL: dict[str, Any] = folders.KL | {"scaling_factor": 0.18215}
KL_FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def recipe(pictures: Path, tmp_path: Path) -> str:
    data = {"source": str(pictures), "count": 3, "size": 64}
    whole = {
        "schema": 1,
        "name": "decoder/tiny",
        "component": "stable-diffusion-1.5/decoder",
        "seed": 0,
        "data": {"calibration": data, "evaluation": data},
        "stages": [
            {"method": "prune.width", "ratio": 0.5, "round_to": 4, "reconstruct": False},
            {"method": "quantize.static", "observer": "min_max", "clip": False},  # 8 bits both
        ],
        "gates": [{"metric": "psnr", "max_drop": 60.0}, {"metric": "size", "max_ratio": 0.5}],
        "export": [],
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(whole), encoding="utf-8")
    return str(path)


@pytest.fixture(params=["ours", "diffusers", "pipeline"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Written by us, by diffusers itself, or as a part of a pipeline."""
    if request.param != "diffusers":
        place = tmp_path / "sd" / "vae"
        folders.write(KL, place)
        if request.param == "pipeline":
            (place.parent / "model_index.json").write_text("{}")
        return place if request.param == "ours" else place.parent
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("needs diffusers, a test oracle")
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    keys = ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "norm_num_groups")
    AutoencoderKL(**{key: KL[key] for key in keys}).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.mark.filterwarnings("ignore")
def test_a_folder_becomes_a_half_width_variant_in_8_bits(folder: Path, recipe: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["run", recipe, "--checkpoint", str(folder), "--out", str(out)]) == 1
    verdicts = json.loads((out / "verdicts.json").read_text(encoding="utf-8"))
    failed = [verdict for verdict in verdicts if not verdict["passed"]]
    # random weights make no pictures, and it says so; nothing else fails
    assert {verdict["metric"] for verdict in failed if verdict["of"] == "candidate"} <= {"sanity"}
    assert "reference" in {verdict["of"] for verdict in failed}
    variant = load_variant(out / "variant")
    layers = quantized(variant.module)
    assert [level.width for level in variant.arch.config.levels] == [8, 8, 4, 4]
    assert {q.layer.bits for q in layers.values()} == {8} and len(layers) > 20
    assert variant.arch.config.scaling_factor == 0.18215
    image = variant.module(torch.zeros(1, 4, 8, 8))
    assert image.shape == (1, 3, 64, 64) and image.isfinite().all()
    teacher = read_arch(folder / "decoder")
    assert [level.width for level in teacher.config.levels] == [16, 16, 8, 8]


def damaged(name: str, vae: Path) -> None:
    """One kind of damage to a folder."""
    config = json.loads((vae / "config.json").read_text())
    tensors = load_file(vae / KL_FILE)
    match name:
        case "another class":
            config["_class_name"] = "VQModel"
        case "a key":
            config["act_fn"] = "mish"
        case "a shape":
            tensors["decoder.conv_in.weight"] = torch.ones(16, 4, 5, 5)
        case "a tensor of the encoder":
            del tensors["encoder.conv_in.weight"]
        case "a number":
            tensors["decoder.conv_in.weight"][0] = float("nan")
    (vae / "config.json").write_text(json.dumps(config))
    save_file(tensors, vae / KL_FILE)
    if name == "a shard":
        folders.sharded(vae, "diffusion_pytorch_model", tensors)
        (vae / "diffusion_pytorch_model-00001-of-00003.safetensors").unlink()
    if name == "a pickle":
        (vae / KL_FILE).rename(vae / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("another class", "of the class VQModel, which cannot be read; known: AutoencoderKL"),
        ("a key", 'act_fn: "mish"'),
        ("a shape", "conv_in.weight is [16, 4, 5, 5] in the file, [16, 4, 3, 3] in config.json"),
        ("a tensor of the encoder", "missing tensor conv_in.weight"),
        ("a number", "conv_in.weight holds NaN or Inf"),
        ("a shard", "names shards that are not there"),
        ("a pickle", "convert it with"),
    ],
)
def test_a_damaged_folder_is_one_error(
    name: str, words: str, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders.write(KL, tmp_path / "vae")
    damaged(name, tmp_path / "vae")
    command = "run" if name == "a number" else "plan"
    out = ["--out", str(tmp_path / "out")] if command == "run" else []
    assert main([command, recipe, "--checkpoint", str(tmp_path / "vae"), *out]) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and words in error and "Traceback" not in error
