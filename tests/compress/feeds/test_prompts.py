"""Captions as token ids: by the tokenizer beside the encoder, or drawn word by word and said."""

import json
from pathlib import Path

import pytest
import tiny
import torch

from calibration import prompts as captions
from calibration.errors import DataError
from compress.errors import UserError
from compress.feeds import Source, _tokens, prompts
from compress.written import Data, Pictures


def source(home: Path, where: str = "captions", count: int = 5) -> Source:
    wanted = Pictures(source=where, count=count)
    data = Data(calibration=wanted, evaluation=wanted)
    return Source(arch=tiny.text().arch, folder=home / "text_encoder", companions={}, data=data, seed=0)


def test_without_a_tokenizer_ids_are_drawn_and_it_is_said(tmp_path: Path) -> None:
    feed = prompts.feed(source(tmp_path), lambda name: torch.nn.Identity())
    (rows,) = feed.calibration()
    assert rows.shape == (5, 9) and rows.dtype == torch.int64
    assert (rows[:, 0] == 38).all() and (rows[:, -1] == 39).all()
    assert rows[:, 1].max() < 38
    assert "no tokenizer" in feed.notes[0]
    assert torch.equal(rows, feed.calibration()[0])
    assert feed.evaluation().names != ()


def test_sides_share_no_subject_and_no_caption() -> None:
    sides = [set(captions.every("captions", split).texts) for split in ("calibration", "evaluation")]
    assert not sides[0] & sides[1]
    assert min(map(len, sides)) > 500
    for subject in captions.SUBJECTS:
        assert sum(any(subject in text for text in side) for side in sides) == 1, subject


def test_a_file_of_captions_is_split_by_their_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(
        "\n".join(
            f"a {word} thing"
            for word in ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
        )
    )
    sides = [captions.every(str(file), split).texts for split in ("calibration", "evaluation")]
    assert sorted((*sides[0], *sides[1])) == sorted(set(file.read_text().splitlines()))
    assert min(map(len, sides)) >= 1
    with pytest.raises(DataError, match="lower the count"):
        captions.load(str(file), split="calibration", count=11)
    with pytest.raises(DataError, match="no captions at"):
        captions.every(str(tmp_path / "none.txt"), "calibration")


def test_the_familys_own_tokenizer_is_used(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="extra generate is not installed")
    from compress.sampling import tokenizer

    trained = tokenizer.train(["a red heart"] * 3, vocabulary=300, length=9)
    trained.save(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="not of one model"):
        prompts.digests(source(tmp_path))
    config = tiny.TEXT.__class__(**{**vars_of(tiny.TEXT), "vocabulary": trained.vocabulary})
    ids = _tokens.ids(tmp_path / "text_encoder", config, ["a red heart"])
    assert ids.tolist() == trained.encode(["a red heart"]).ids.tolist()
    assert _tokens.found(tmp_path / "text_encoder") == tmp_path


def vars_of(config: object) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}  # type: ignore[attr-defined]


def test_clips_tokenizer_gives_what_transformers_gives(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from compress.sampling import clip_tokenizer

    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{x}</w>" for x in [*letters, ",", "!", "'", "1"]), *letters, ",", "!", "'", "1"]
    merges = [("r", "e"), ("re", "d</w>"), ("h", "e"), ("he", "a"), ("r", "t</w>"), ("hea", "rt</w>")]
    made = ["".join(pair) for pair in merges]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys([*words, *made, "<|startoftext|>", "<|endoftext|>"]))}
    theirs = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token="!", model_max_length=9)
    texts = ["A red  heart!", "don't", "", "the heart of a red, red 11"]
    rows = theirs(texts, padding="max_length", truncation=True, max_length=9)["input_ids"]
    theirs.save_pretrained(tmp_path / "new")
    old = tmp_path / "old"
    old.mkdir()
    (old / "vocab.json").write_text(json.dumps(vocabulary))
    (old / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    (old / "tokenizer_config.json").write_text(json.dumps({"pad_token": "!"}))
    for folder in (tmp_path / "new", old):
        assert clip_tokenizer.load(folder, 9).encode(texts).ids.tolist() == rows, folder
