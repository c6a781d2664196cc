"""The built-in photographs, folders of every kind of good and bad picture, and the crop sampler."""

import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calibration import images
from calibration.errors import DataError
from calibration.folder import split_of
from calibration.images import load, sampler


def picture(seed: int, width: int = 48, height: int = 40, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def save_in(folder, split: str, name: str, make, **options) -> None:
    """Save pictures of rising seeds until the bytes fall into the split."""
    for seed in range(200):
        make(seed).save(folder / name, **options)
        if split_of((folder / name).read_bytes()) == split:
            return
    raise AssertionError("no seed found")


def good(folder, count: int, split: str = "calibration") -> None:
    for index in range(count):
        save_in(folder, split, f"good{index}.png", lambda seed, index=index: picture(1000 * index + seed))


def only(folder, size: int = 16):
    return load(str(folder), split="calibration", count=1, size=size)


# The built-in photographs.


def test_recipe_defaults_are_served_and_repeat():
    for split, count in (("calibration", 32), ("evaluation", 16)):
        first, second = (load("photographs", split=split, count=count, size=256) for _ in range(2))
        assert first.images.shape == (count, 3, 256, 256)
        assert first.images.dtype == torch.float32
        assert 0 <= first.images.min() < 0.1 < 0.9 < first.images.max() <= 1
        assert len(set(first.names)) == count
        assert torch.equal(first.images, second.images)
        assert (first.digest, first.names) == (second.digest, second.names)


def test_splits_share_no_photograph():
    sides = [load("photographs", split=split, count=16, size=128) for split in ("calibration", "evaluation")]
    stems = [{name.split("@")[0] for name in side.names} for side in sides]
    assert not stems[0] & stems[1]
    assert [len(s) for s in stems] == [5, 3]
    assert sides[0].digest != sides[1].digest


def test_a_native_crop_is_the_photographs_own_pixels():
    name = "astronaut@1.00x+256+0"
    found = load("photographs", split="evaluation", count=16, size=256)
    whole = next(p.pixels for p in sampler("photographs", "evaluation").photographs if p.name == "astronaut")
    crop = found.images[found.names.index(name)].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(np.round(crop * 255), whole[0:256, 256:512])


def test_shrinking_does_not_alias():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = images._resized(stripes, 32, 32).astype(float)
    assert np.abs(shrunk[2:-2, 2:-2] - 127.5).max() < 8  # picking pixels would give 0 or 255


@given(st.integers(8, 2000), st.integers(8, 600))
@settings(max_examples=200, deadline=None)
def test_crops_lie_inside_and_overlap_by_a_third_at_most(length, size):
    offsets = images._offsets(length, size)
    assert bool(offsets) == (length >= size)
    assert all(0 <= offset <= length - size for offset in offsets)
    assert all(b - a >= size * 2 / 3 - 1 for a, b in itertools.pairwise(offsets))


def test_more_than_can_be_cropped_names_the_maximum():
    with pytest.raises(DataError, match=r"at most 18 evaluation crops of 256 pixels, 19 asked"):
        load("photographs", split="evaluation", count=19, size=256)
    assert len(load("photographs", split="evaluation", count=18, size=256).names) == 18
    with pytest.raises(DataError, match="at most 0"):
        load("photographs", split="evaluation", count=1, size=4096)


@pytest.mark.parametrize(("count", "size"), [(0, 64), (-1, 64), (1, 7)])
def test_senseless_numbers_are_refused(count, size):
    with pytest.raises(DataError, match="at least"):
        load("photographs", split="evaluation", count=count, size=size)


def test_missing_wheels_name_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scikit-image scikit-learn"):
        load("photographs", split="evaluation", count=1, size=64)


# Folders.


def test_a_folder_gives_the_centre_square_shrunk_and_sorted_by_name(tmp_path):
    pixels = np.full((40, 80, 3), 10, np.uint8)
    pixels[:, 20:60] = (200, 100, 50)
    save_in(tmp_path, "calibration", "b.png", lambda seed: Image.fromarray(pixels + np.uint8(seed)))
    good(tmp_path, 1)
    (tmp_path / "good0.png").rename(tmp_path / "a.png")
    found = load(str(tmp_path), split="calibration", count=2, size=20)
    assert found.names == ("a.png", "b.png")
    middle = found.images[1] * 255
    assert middle[:, 10, 10].sub(torch.tensor([200.0, 100.0, 50.0])).abs().max() < 200
    assert middle.std(dim=(1, 2)).max() == 0  # nothing of the dark sides


def test_splits_of_a_folder_are_disjoint_whatever_the_names(tmp_path):
    good(tmp_path, 4, "calibration")
    for index in range(3):
        save_in(tmp_path, "evaluation", f"e{index}.png", lambda seed, index=index: picture(9000 + 1000 * index + seed))
    sides = [load(str(tmp_path), split=s, count=c, size=16).names for s, c in (("calibration", 4), ("evaluation", 3))]
    assert not set(sides[0]) & set(sides[1])
    (tmp_path / "e0.png").rename(tmp_path / "zz.png")
    assert load(str(tmp_path), split="evaluation", count=3, size=16).names == ("e1.png", "e2.png", "zz.png")


def test_about_a_third_goes_to_evaluation():
    share = np.mean([split_of(str(k).encode()) == "evaluation" for k in range(3000)])
    assert abs(share - 86 / 256) < 0.03


def test_equal_files_count_once(tmp_path):
    good(tmp_path, 2)
    (tmp_path / "copy.png").write_bytes((tmp_path / "good1.png").read_bytes())
    found = load(str(tmp_path), split="calibration", count=2, size=16)
    assert found.names == ("copy.png", "good0.png")
    assert [(s.name, s.reason) for s in found.skipped] == [("good1.png", "same bytes as copy.png")]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "I;16"])
def test_other_modes_become_rgb(tmp_path, mode):
    flat = Image.new("RGB", (32, 32), (128, 128, 128))
    if mode == "I;16":
        image = Image.fromarray(np.full((32, 32), 128 * 257, np.uint16))
    elif mode == "LAB":
        image = Image.merge("LAB", [Image.new("L", (32, 32), v) for v in (137, 128, 128)])
    else:
        image = flat.convert(mode)

    def changed(seed: int) -> Image.Image:
        again = image.copy()
        again.putpixel((0, 0), 0 if mode in ("1", "L", "P", "I;16") else (seed, 0, 0, 0)[: len(again.getbands())])
        return again.crop((0, 0, 32, 32 - seed)) if seed < 12 else again

    suffix = "tif" if mode in ("CMYK", "YCbCr", "LAB") else "png"
    save_in(tmp_path, "calibration", f"x.{suffix}", changed)
    centre = only(tmp_path).images[0][:, 6:10, 6:10]
    if mode == "1":
        assert abs(centre.mean() - 128 / 255) < 0.15  # dithered
        assert torch.equal(centre[0], centre[2])
    else:
        assert centre.sub(128 / 255).abs().max() < 0.03


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    save_in(tmp_path, "calibration", "grey.png", lambda seed: Image.fromarray(np.roll(ramp, seed, axis=1)))
    found = only(tmp_path, 64).images[0]
    assert torch.equal(found[0], found[1])
    assert found.max() == 1
    assert found.min() == 0
    assert abs(found.mean() - 0.5) < 0.01


def test_floating_point_pictures_are_refused_by_name(tmp_path):
    good(tmp_path, 1)
    Image.fromarray(np.ones((32, 32), np.float32)).save(tmp_path / "float.tif")
    assert "without a known range" in only(tmp_path).skipped[0].reason


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_put_on_white_and_named(tmp_path, mode):
    def make(seed: int) -> Image.Image:
        layers = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
        layers.paste((0, 0, 0, 0), (0, 0, 32, 24 - seed % 6))
        layers.putpixel((31, 31), (seed, seed, seed, 255))
        return layers.quantize(8) if mode == "P" else layers.convert(mode)

    save_in(tmp_path, "calibration", "clear.png", make)
    found = only(tmp_path, 32)
    assert found.images[0][:, :16].min() == 1
    assert found.images[0][:, 26:30].max() == 0
    assert found.notes == ("clear.png: transparency put on white",)


def test_opaque_alpha_needs_no_note(tmp_path):
    save_in(tmp_path, "calibration", "opaque.png", lambda seed: picture(seed).convert("RGBA"))
    assert only(tmp_path).notes == ()


def test_exif_rotation_is_honoured(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise

    def make(seed: int) -> Image.Image:
        image = Image.new("RGB", (32, 32), (0, 0, seed % 9))
        image.paste((255, 255, 255), (0, 0, 16, 32))  # stored: left half white
        return image

    save_in(tmp_path, "calibration", "turned.jpg", make, exif=exif, quality=95)
    found = only(tmp_path, 32).images[0]
    assert found[:, :14].mean() > 0.95  # shown: upper half white
    assert found[:, 18:].mean() < 0.05


def broken_files(folder) -> dict[str, str]:
    """Six files that cannot be used, with a word of the reason each must get."""
    picture(1).save(folder / "cut.jpg", quality=95)
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    picture(2).save(folder / "cut.png")
    whole = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "nothing.png").touch()
    (folder / "text.jpg").write_text("not a picture at all")
    return {
        "cut.jpg": "truncated",
        "cut.png": "cannot be decoded",
        "nothing.png": "0 bytes",
        "text.jpg": "not a picture",
    }


def test_broken_files_are_skipped_by_name(tmp_path):
    good(tmp_path, 5)
    reasons = broken_files(tmp_path)
    (tmp_path / "notes.txt").write_text("bought in Lisbon")
    (tmp_path / ".hidden.png").touch()
    (tmp_path / "below").mkdir()
    reasons |= {"notes.txt": "not a picture", ".hidden.png": "hidden", "below": "folder"}
    found = load(str(tmp_path), split="calibration", count=5, size=16)
    skipped = {s.name: s.reason for s in found.skipped}
    assert skipped.keys() == reasons.keys()
    assert all(word in skipped[name] for name, word in reasons.items())


def test_more_than_half_broken_is_an_error(tmp_path):
    good(tmp_path, 3)
    broken_files(tmp_path)
    with pytest.raises(DataError, match=r"4 of 7 pictures.*cannot be read: cut.jpg \(.*truncated"):
        load(str(tmp_path), split="calibration", count=1, size=16)


def test_too_few_lists_the_first_five_and_counts_the_rest(tmp_path):
    good(tmp_path, 5)
    broken_files(tmp_path)
    for index in range(3):
        save_in(tmp_path, "calibration", f"small{index}.png", lambda seed, i=index: picture(seed + 500 * i, 12, 40))
    with pytest.raises(DataError, match=r"5 usable pictures for calibration, 6 asked.*12x40 pixels.*and 2 more"):
        load(str(tmp_path), split="calibration", count=6, size=16)


def test_unusable_folders(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        only(tmp_path)
    (tmp_path / "readme.md").write_text("# hello")
    with pytest.raises(DataError, match="has no pictures"):
        only(tmp_path)
    with pytest.raises(DataError, match="is a file"):
        only(tmp_path / "readme.md")
    with pytest.raises(DataError, match="no folder"):
        only(tmp_path / "nowhere")


def test_a_broken_link_and_a_pipe_do_not_hang(tmp_path):
    good(tmp_path, 2)
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    reasons = {s.name: s.reason for s in load(str(tmp_path), split="calibration", count=2, size=16).skipped}
    assert "cannot be read" in reasons["link.png"]
    assert reasons["pipe.png"] == "not a regular file"


def test_large_folders_are_not_decoded_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("calibration.folder.LOOKED_AT_LEAST", 3)
    good(tmp_path, 6)
    found = load(str(tmp_path), split="calibration", count=2, size=16)
    assert found.names == ("good0.png", "good1.png")
    assert "the first 3 of 6 files" in found.notes[0]


def test_the_digest_follows_pixels_names_and_size(tmp_path):
    good(tmp_path, 2)
    digests = {load(str(tmp_path), split="calibration", count=c, size=s).digest for c, s in ((1, 16), (2, 16), (1, 24))}
    (tmp_path / "good0.png").rename(tmp_path / "fair0.png")
    digests.add(only(tmp_path).digest)
    save_in(tmp_path, "calibration", "fair0.png", lambda seed: picture(77_000 + seed))
    digests.add(only(tmp_path).digest)
    assert len(digests) == 5


# The sampler.


def test_crops_depend_on_seed_and_step_alone():
    crops = sampler("photographs", "calibration")
    later = crops.crops(7, 3, 32, 1)
    again = sampler("photographs", "calibration")
    assert torch.equal(later, again.crops(7, 3, 32, 1))
    assert crops.digest == again.digest
    assert not torch.equal(later, crops.crops(8, 3, 32, 1))
    assert not torch.equal(later, crops.crops(7, 3, 32, 2))
    assert later.shape == (3, 3, 32, 32)
    assert later.dtype == torch.float32
    assert 0 <= later.min() < later.max() <= 1


def test_sampler_splits_differ():
    sides = [sampler("photographs", split) for split in ("calibration", "evaluation")]
    assert not {p.name for p in sides[0].photographs} & {p.name for p in sides[1].photographs}
    assert sides[0].digest != sides[1].digest


@given(st.integers(0, 10_000), st.sampled_from([8, 31, 64, 300]))
@settings(max_examples=40, deadline=None)
def test_a_crop_of_one_colour_stays_inside_the_photograph(seed, size):
    pixels = np.full((300, 460, 3), 90, np.uint8)
    crop = images._random_crop(pixels, size, np.random.default_rng(seed))
    assert crop.shape == (size, size, 3)
    assert (crop == 90).all()


def test_sampling_a_folder(tmp_path):
    save_in(tmp_path, "calibration", "wide.png", lambda seed: picture(seed, 2048, 300))
    good(tmp_path, 1)
    crops = sampler(str(tmp_path), "calibration")
    assert [p.pixels.shape for p in crops.photographs] == [(40, 48, 3), (150, 1024, 3)]
    assert crops.crops(0, 4, 64, 0).shape == (4, 3, 64, 64)  # from the wide one: the other is too small
    with pytest.raises(DataError, match="the largest that fits is 150"):
        crops.crops(0, 1, 151, 0)
    with pytest.raises(DataError, match="no usable picture for evaluation"):
        sampler(str(tmp_path), "evaluation")
