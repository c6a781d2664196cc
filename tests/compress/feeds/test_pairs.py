"""Clean latents and states belong to the same picture, and come the same for the same step."""

from pathlib import Path

import families
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

pytest.importorskip("tokenizers", reason="captions go through Hugging Face's tokenizers")

from compress.components import load_variant
from compress.feeds import Source, _pairs
from compress.sampling import tokenizer
from compress.sampling.latents import LatentScale
from compress.sampling.schedule import Schedule
from compress.written import Data

NAMES = ["red", "blue", "green", "pink", "grey", "black", "white", "brown", "gold", "teal"]
SCALE = LatentScale(mean=(0.5,) * 8, std=(2.0,) * 8)


@pytest.fixture
def family(tmp_path) -> Path:
    return families.write(tmp_path / "family", NAMES, SCALE)


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    rows = "".join(f"{name}.png\t{name}\n" for name in NAMES)
    (folder / "captions.tsv").write_text("file\tname\n" + rows)
    return folder


def source_of(family: Path, pictures: Path) -> Source:
    chosen = {"source": str(pictures), "count": 3, "size": 64}
    return Source(
        arch=tiny.unet().arch,
        folder=family / "unet",
        companions={"encoder": family / "encoder", "text_encoder": family / "text_encoder"},
        data=Data.model_validate({"calibration": chosen, "evaluation": chosen | {"count": 1}}),
        seed=5,
    )


def test_each_latent_comes_with_its_own_caption(family, pictures):
    modules = {leaf: load_variant(family / leaf).module for leaf in ("encoder", "text_encoder")}
    found = _pairs.diffusion(source_of(family, pictures), modules.__getitem__)
    clean, states = found.clean(7, 6, 64)
    words = tokenizer.load(family / "tokenizer.json")
    seen = set()
    for latent, state in zip(clean, states, strict=True):
        with torch.no_grad():
            distances = {
                name: float(
                    (modules["text_encoder"](torch.from_numpy(words.encode([name]).ids))[0] - state).abs().max()
                )
                for name in NAMES
            }
            name = min(distances, key=distances.get)
            with Image.open(pictures / f"{name}.png") as opened:
                pixels = torch.from_numpy(np.asarray(opened).copy()).permute(2, 0, 1)[None].float() / 255
            expected = (modules["encoder"](pixels)[0] - 0.5) / 2.0
        assert distances[name] < 1e-5 and torch.allclose(latent, expected, atol=1e-4)
        seen.add(name)
    assert len(seen) > 1
    again = found.clean(7, 6, 64)
    assert torch.equal(again[0], clean) and torch.equal(again[1], states)
    assert not torch.equal(found.clean(8, 6, 64)[0], clean)
    assert found.clean(0, 2, 32)[0].shape == (2, 8, 4, 4)
    assert found.schedule == Schedule() and found.empty[0].shape == (1, 5, 12)


@pytest.mark.parametrize("missing", ["latents.json", "scheduler.json", "tokenizer.json"])
def test_a_family_that_lacks_a_part_has_no_pairs(family, pictures, missing):
    (family / missing).unlink()
    assert _pairs.diffusion(source_of(family, pictures), lambda leaf: load_variant(family / leaf).module) is None
