"""Captioned folders, good and bad; what pictures look like; captions and what may be mirrored."""

import json

import numpy as np
import pytest
from PIL import Image

from calibration import captions
from calibration.captions import (
    BACKGROUNDS,
    PLAIN,
    TEMPLATES,
    Captioned,
    caption,
    keyword_caption,
    read_captions,
    render,
    ways_to_show,
)
from calibration.errors import DataError

HEART = Captioned(file="a.png", name="red heart", keywords=("love", "card suit"))


def folder_with(path, table: str, name: str = "captions.tsv", files: tuple[str, ...] = ("a.png", "b.png")):
    for file in files:
        Image.new("RGBA", (4, 4), (255, 0, 0, 255)).save(path / file)
    (path / name).write_text(table, encoding="utf-8")
    return path


def test_a_table_is_read_in_order_of_files(tmp_path):
    folder = folder_with(tmp_path, "name\tfile\tkeywords\nred heart\tb.png\tlove| card suit |\nblue “x”\ta.png\t\n")
    assert read_captions(folder) == (
        Captioned(file="a.png", name="blue “x”"),
        Captioned(file="b.png", name="red heart", keywords=("love", "card suit")),
    )


def test_json_and_tables_say_the_same(tmp_path):
    rows = [{"file": "a.png", "caption": "red heart", "keywords": ["love", "card suit"]}]
    assert read_captions(folder_with(tmp_path, json.dumps(rows), "captions.json")) == (HEART,)


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("other.txt", "", "no captions.tsv or captions.json"),
        ("captions.tsv", "picture\ttext\na.png\tx\n", r"columns \['picture', 'text'\]; 'file'"),
        ("captions.tsv", "", "columns"),
        ("captions.tsv", "file\tname\n", "no rows"),
        ("captions.tsv", "file\tname\na.png\tx\na.png\ty\n", "captions.tsv:3: a.png is named twice"),
        ("captions.tsv", "file\tname\nz.png\tx\na.png\t \n", "2 rows cannot be used:\n.*z.png is not in (.|\n)*empty"),
        ("captions.json", "{", "not valid JSON"),
        ("captions.json", '{"a.png": "x"}', "list of objects"),
        ("captions.json", '[{"file": 3}]', "must not be empty"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, name, table, message):
    with pytest.raises(DataError, match=message):
        read_captions(folder_with(tmp_path, table, name))


def test_text_of_another_encoding_is_named(tmp_path):
    (tmp_path / "captions.tsv").write_bytes("file\tname\na.png\tcafé\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_captions(tmp_path)


def test_a_long_list_of_problems_is_shortened(tmp_path):
    table = "file\tname\n" + "".join(f"{i}.png\tx\n" for i in range(25))
    with pytest.raises(DataError, match="25 rows cannot be used(.|\n)*and 15 more"):
        read_captions(folder_with(tmp_path, table))


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_transparent_parts_show_the_background(tmp_path, background):
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[2:6, 2:6] = (255, 0, 0, 255)
    picture[0, 0] = (255, 255, 255, 128)
    Image.fromarray(picture).save(tmp_path / "a.png")
    pixels = render(tmp_path / "a.png", size=8, background=background)
    colour = np.array(BACKGROUNDS[background])
    assert (pixels[4, 4] == (255, 0, 0)).all()
    assert (pixels[7, 7] == colour).all()
    assert np.abs(pixels[0, 0] - (255 * 128 + colour * 127) / 255).max() <= 1


def test_pictures_that_are_not_square_are_centred_whole(tmp_path):
    Image.new("RGB", (20, 10), (0, 0, 255)).save(tmp_path / "wide.png")
    pixels = render(tmp_path / "wide.png", size=8)
    assert (pixels[2:6] == (0, 0, 255)).all()
    assert (pixels[:2] == 255).all()
    assert (pixels[6:] == 255).all()


def test_mirrored_is_the_mirror_image(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (16, 16, 4), dtype=np.uint8)).save(tmp_path / "a.png")
    plain, mirrored = (render(tmp_path / "a.png", size=16, mirrored=m) for m in (False, True))
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])


def test_broken_pictures_and_unknown_backgrounds_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match="a.png"):
        render(tmp_path / "a.png", size=8)
    with pytest.raises(DataError, match="a.png cannot be read"):
        render(tmp_path / "missing" / "a.png", size=8)
    with pytest.raises(DataError, match="no background 'teal'; known: white"):
        render(tmp_path / "a.png", size=8, background="teal")


@pytest.mark.parametrize(
    ("name", "keywords", "allowed"),
    [
        ("red apple", ("fruit",), True),
        ("cat face", (), True),
        ("left arrow", (), False),
        ("pointing hand", ("right",), False),
        ("three o\N{RIGHT SINGLE QUOTATION MARK}clock", (), False),
        ("keycap: #", (), False),
        ("OK button", (), False),
        ("medal", ("1st",), False),
        ("rightful owner", (), True),  # a whole word, not a part of one
    ],
)
def test_what_may_be_mirrored(name, keywords, allowed):
    assert Captioned(file="a.png", name=name, keywords=keywords).may_be_mirrored is allowed


def test_captions_depend_on_the_generator_alone():
    def drawn(seed):
        rng = np.random.default_rng(seed)
        return [caption(HEART, rng, templates=TEMPLATES["training"]) for _ in range(20)]

    assert drawn(1) == drawn(1)
    assert len(set(drawn(1))) > 4
    assert all("red heart" in text for text in drawn(1))


def test_backgrounds_are_named_unless_plain():
    rng = np.random.default_rng(0)
    assert caption(HEART, rng, templates=("{name}",), background=PLAIN) == "red heart"
    assert caption(HEART, rng, templates=("{name}",), background="blue") == "red heart on a blue background"


def test_no_phrase_is_on_both_sides():
    assert not set(TEMPLATES["training"]) & set(TEMPLATES["held-out"])
    assert all(t.count("{name}") == 1 for templates in TEMPLATES.values() for t in templates)


def test_keywords_come_with_and_without_the_name():
    rng = np.random.default_rng(0)
    found = {keyword_caption(HEART, rng) for _ in range(60)}
    assert found == {
        "love",
        "card suit",
        "love, card suit",
        "card suit, love",
        "red heart, love",
        "red heart, card suit",
        "red heart, love, card suit",
        "red heart, card suit, love",
    }
    assert keyword_caption(Captioned(file="a.png", name="cat"), rng, background="pink") == "cat on a pink background"


def test_ways_to_show():
    pictures = (Captioned(file="a.png", name="red apple"), Captioned(file="b.png", name="left arrow"))
    ways = ways_to_show(pictures, seed=0, mirrored=True, backgrounds=3)
    assert [w.picture for w in ways] == sorted(w.picture for w in ways)
    assert [w.picture for w in ways if w.mirrored] == [0]
    for picture in (0, 1):
        colours = [w.background for w in ways if w.picture == picture and w.background != PLAIN]
        assert len(set(colours)) == 3
    assert ways_to_show(pictures[:1], seed=0, mirrored=True, backgrounds=3) == [w for w in ways if w.picture == 0]
    assert not any(w.mirrored for w in ways_to_show(pictures, seed=0, mirrored=False, backgrounds=3))
    assert captions.PLAIN in BACKGROUNDS
