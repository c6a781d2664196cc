"""Clean latents and states belong to the same picture, and come the same for the same step."""

from pathlib import Path

import families
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

pytest.importorskip("tokenizers", reason="captions go through Hugging Face's tokenizers")

from calibration.captions import TEMPLATES
from compress.components import load_variant
from compress.feeds import Source, _pairs
from compress.feeds.pictures import photographs
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


def parts(family: Path) -> dict[str, torch.nn.Module]:
    return {leaf: load_variant(family / leaf).module for leaf in ("encoder", "text_encoder")}


def encoded(modules, folder: Path, name: str) -> torch.Tensor:
    """The latents of one picture, as the UNet sees them."""
    with torch.no_grad(), Image.open(folder / f"{name}.png") as opened:
        pixels = torch.from_numpy(np.asarray(opened).copy()).permute(2, 0, 1)[None].float() / 255
        return (modules["encoder"](pixels)[0] - 0.5) / 2.0


def test_each_latent_of_a_captioned_folder_comes_with_a_training_caption_of_its_own(family, pictures):
    modules = parts(family)
    found = _pairs.diffusion(source_of(family, pictures), modules.__getitem__)
    words = tokenizer.load(family / "tokenizer.json")
    clean, states = found.clean(7, 24, 64)
    known = {name: encoded(modules, pictures, name) for name in NAMES}
    seen, phrases = set(), set()
    for latent, state in zip(clean, states, strict=True):
        name = min(NAMES, key=lambda name: float((known[name] - latent).abs().max()))
        assert torch.allclose(latent, known[name], atol=1e-4)
        texts = [template.format(name=name) for template in TEMPLATES["training"]]
        with torch.no_grad():
            theirs = modules["text_encoder"](torch.from_numpy(words.encode(texts).ids))
        distances = (theirs - state).abs().flatten(1).amax(1)
        assert distances.min() < 1e-5
        seen.add(name)
        phrases.add(int(distances.argmin()))
    assert len(seen) > 3 and len(phrases) > 3  # more than the calibration set's three pictures, and not one phrase
    again = found.clean(7, 24, 64)
    assert torch.equal(again[0], clean) and torch.equal(again[1], states)
    assert not torch.equal(found.clean(8, 24, 64)[0], clean)
    assert found.clean(0, 2, 32)[0].shape == (2, 8, 4, 4)
    assert found.schedule == Schedule() and found.empty[0].shape == (1, 5, 12)


def test_pictures_without_captions_are_the_calibration_sets(family, pictures):
    (pictures / "captions.tsv").unlink()
    modules, source = parts(family), source_of(family, pictures)
    clean, _ = _pairs.diffusion(source, modules.__getitem__).clean(0, 24, 64)
    chosen = [name.split("@")[0].removesuffix(".png") for name in photographs(source.data, "calibration").names]
    known = torch.stack([encoded(modules, pictures, name) for name in chosen])
    nearest = (clean[:, None] - known[None]).abs().flatten(2).amax(2)
    assert (nearest.amin(1) < 1e-4).all() and len(set(nearest.argmin(1).tolist())) == len(chosen) == 3


def test_another_picture_or_name_gives_stages_another_key(family, pictures):
    digests = [_pairs.digest(source_of(family, pictures))]
    (pictures / "captions.tsv").write_text((pictures / "captions.tsv").read_text().replace("\tred", "\tcrimson"))
    digests.append(_pairs.digest(source_of(family, pictures)))
    Image.new("RGB", (64, 64), "red").save(pictures / "blue.png")
    digests.append(_pairs.digest(source_of(family, pictures)))
    (pictures / "captions.tsv").unlink()
    digests.append(_pairs.digest(source_of(family, pictures)))
    assert len(set(digests)) == 4 and digests[3] is None


@pytest.mark.parametrize("missing", ["latents.json", "scheduler.json", "tokenizer.json"])
def test_a_family_that_lacks_a_part_has_no_pairs(family, pictures, missing):
    (family / missing).unlink()
    assert _pairs.diffusion(source_of(family, pictures), lambda leaf: load_variant(family / leaf).module) is None
