import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tokenizers", reason="byte-level BPE comes from Hugging Face's tokenizers")
from compress.errors import UserError
from compress.sampling import tokenizer

TEXTS = ["red heart", "a red apple", "cat face", "the cat's face", "hearts and apples"] * 3
WORDS = tokenizer.train(TEXTS, vocabulary=300, length=10)
START, END = 0, 1


def test_a_row_is_start_text_end_and_end_again():
    (row,) = WORDS.encode(["red heart"]).ids
    assert row.shape == (10,)
    assert row[0] == START
    text = row[1:][row[1:] != END]
    assert (row[1 + len(text) :] == END).all()
    assert len(text) >= 2
    assert END not in text


def test_texts_that_mean_the_same_have_the_same_ids():
    same = [
        "the cat's face",
        "The  CAT\N{LEFT SINGLE QUOTATION MARK}S face ",
        "the cat\N{RIGHT SINGLE QUOTATION MARK}s\tface",
    ]
    ids = WORDS.encode(same).ids
    assert (ids == ids[0]).all()


def test_other_texts_have_other_ids():
    ids = WORDS.encode(["red heart", "heart red", "", "☕", "🍎"]).ids
    assert len({tuple(row) for row in ids.tolist()}) == 5


def test_what_is_too_long_is_cut_and_given_back():
    text = "red heart and a cat face and an apple with a long story"
    encoded = WORDS.encode(["cat", text])
    assert encoded.ids.shape == (2, 10)
    assert encoded.cut[0] == ""
    assert encoded.cut[1]
    assert text.endswith(encoded.cut[1])
    kept = text.removesuffix(encoded.cut[1])
    np.testing.assert_array_equal(WORDS.encode([kept]).ids[0], encoded.ids[1])


@given(st.text(max_size=40))
def test_no_text_has_unknown_characters(text):
    encoded = WORDS.encode([text])
    assert 0 <= encoded.ids.min() <= encoded.ids.max() < WORDS.vocabulary
    assert encoded.ids[0, 0] == START
    assert encoded.ids[0, -1] == END


def test_special_tokens_cannot_be_written_in_a_prompt():
    for text in ("<|end|>", "<|start|>", "a<|end|>b"):
        (row,) = tokenizer.train(TEXTS, vocabulary=300, length=40).encode([text]).ids
        end = row.tolist().index(END)
        assert (row[end:] == END).all()
        assert START not in row[1:]
        assert end > len("<|end|>") / 2


def test_file_round_trip(tmp_path):
    WORDS.save(tmp_path / "tokenizer.json")
    again = tokenizer.load(tmp_path / "tokenizer.json")
    assert (again.length, again.vocabulary) == (WORDS.length, WORDS.vocabulary)
    long = "a very long text about a red heart and everything else"
    np.testing.assert_array_equal(again.encode([long, ""]).ids, WORDS.encode([long, ""]).ids)
    assert again.encode([long]).cut == WORDS.encode([long]).cut


def test_the_same_texts_give_the_same_file(tmp_path):
    for name in ("a.json", "b.json"):
        tokenizer.train(TEXTS, vocabulary=300, length=10).save(tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match="does not exist"):
        tokenizer.load(path)
    for data in ([], {}, {"model": {"type": "BPE", "vocab": {}}}, {"model": {"type": "WordPiece"}}):
        path.write_text(json.dumps(data))
        with pytest.raises(UserError, match="not a tokenizer of this kind"):
            tokenizer.load(path)
    WORDS.save(path)
    data = json.loads(path.read_text())
    for truncation in (None, {"max_length": 2}):
        path.write_text(json.dumps(data | {"truncation": truncation}))
        with pytest.raises(UserError, match="truncation.max_length"):
            tokenizer.load(path)
