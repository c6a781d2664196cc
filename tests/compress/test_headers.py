"""Damaged folders are refused by headers and JSON alone, before torch is there."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import folders
import pytest

from compress import headers
from compress.components._checkpoints._grammar import grammars
from compress.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"
PROGRAM = """
import sys
from compress.cli import main
code = main(sys.argv[1:])
sys.exit(99 if "torch" in sys.modules else code)
"""


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    return folders.write(folders.UNET, tmp_path / "unet")


def lying(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 10**12) + data[8:])


def short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path: Path) -> None:
    config = path.parent / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "FluxTransformer2DModel"}))


def no_json(path: Path) -> None:
    (path.parent / "config.json").write_text("{")


def shardless(path: Path) -> None:
    path.rename(path.with_name("other.safetensors"))
    index = {"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    path.with_name(f"{WEIGHTS}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lying, "claims 1000000000000 bytes"),
        (short, "promised"),
        (foreign, "FluxTransformer2DModel"),
        (no_json, "config.json"),
        (shardless, "00001-of-00002"),
    ],
)
def test_what_is_damaged_is_named(unet: Path, harm, said: str) -> None:
    headers.look(unet)
    harm(unet / WEIGHTS)
    with pytest.raises(UserError, match=said):
        headers.look(unet)
    with pytest.raises(UserError, match=said):
        headers.look(unet.parent, "unet")


def test_other_parts_of_a_pipeline_are_not_looked_at(tmp_path: Path) -> None:
    pipeline = folders.pipeline(tmp_path / "pipeline")
    short(pipeline / "vae" / WEIGHTS)
    headers.look(pipeline, "unet")
    for path, part in ((pipeline, "decoder"), (pipeline / "vae", "decoder"), (pipeline / "vae" / "decoder", "")):
        with pytest.raises(UserError, match="promised"):
            headers.look(path, part)


def test_every_class_that_can_be_read_is_known() -> None:
    assert set(headers.classes()) == set(grammars())


def test_no_torch_is_needed_to_refuse_a_damaged_header(unet: Path) -> None:
    lying(unet / WEIGHTS)
    arguments = [sys.executable, "-c", PROGRAM, "models", "show", str(unet)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 2, done.stderr
    assert "claims 1000000000000 bytes" in done.stderr
