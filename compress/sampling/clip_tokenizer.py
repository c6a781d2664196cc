"""Prompts to token ids by the tokenizer of a transformers folder (CLIP's), without transformers.

Source: CLIPTokenizer of transformers: NFC, single spaces, lower case, byte-level BPE whose words end in `</w>`; a row
is start, text, end, then the padding token: the end token in Stable Diffusion 1.x, "!" in 2.x.
"""

from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import UserError, require
from compress.files import read_json
from compress.sampling.tokenizer import Encoded

FILES = ("vocab.json", "merges.txt")
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """Texts to ids, in rows of `length`."""

    def __init__(self, inner: Any, length: int, special: dict[str, int]) -> None:
        self._inner, self.length, self._special = inner, length, special

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return int(self._inner.get_vocab_size())

    def encode(self, texts: list[str]) -> Encoded:
        """One row per text. What is beyond the length is cut off and given back."""
        room, special = self.length - 2, self._special
        ids = np.full((len(texts), self.length), special["pad"], dtype=np.int64)
        cut = []
        for row, text in enumerate(texts):
            encoding = self._inner.encode(text, add_special_tokens=False)
            kept = [special["start"], *encoding.ids[:room], special["end"]]
            ids[row, : len(kept)] = kept
            cut.append(text[encoding.offsets[room][0] :].strip() if len(encoding.ids) > room else "")
        return Encoded(ids=ids, cut=tuple(cut))


def is_there(folder: Path) -> bool:
    """Whether a folder holds such a tokenizer, in the form of old or of new versions."""
    return (folder / "tokenizer.json").is_file() or all((folder / name).is_file() for name in FILES)


def load(folder: Path, length: int) -> ClipTokenizer:
    """Read tokenizer.json, or vocab.json and merges.txt.

    Raises:
        UserError: they are no vocabulary with merges, or the special tokens are not in it.
        MissingExtra: the package `tokenizers` is not installed.
    """
    hf = require("tokenizers", extra="generate", purpose="a text prompt")
    vocabulary, merges = _whole(folder) if (folder / "tokenizer.json").is_file() else _apart(folder)
    names = {name: _special(folder, key) for name, key in (("start", "bos"), ("end", "eos"), ("pad", "pad"))}
    missing = {token for token in names.values() if token not in vocabulary}
    missing |= {part for pair in merges for part in (*pair, "".join(pair)) if part not in vocabulary}
    if missing:
        raise UserError(
            f"{folder}: the vocabulary has no entry for {', '.join(sorted(missing)[:5])}; copy the tokenizer again"
        )
    inner = hf.Tokenizer(hf.models.BPE(vocabulary, merges, unk_token=names["end"], end_of_word_suffix="</w>"))
    inner.add_special_tokens(sorted(set(names.values())))  # as transformers does: in a text too they are themselves
    inner.normalizer = hf.normalizers.Sequence(
        [hf.normalizers.NFC(), hf.normalizers.Replace(hf.Regex(r"\s+"), " "), hf.normalizers.Lowercase()]
    )
    split = hf.pre_tokenizers.Split(hf.Regex(WORDS), behavior="removed", invert=True)
    in_bytes = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = hf.pre_tokenizers.Sequence([split, in_bytes])
    return ClipTokenizer(inner, length, {name: vocabulary[token] for name, token in names.items()})


def _whole(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a tokenizer.json."""
    path = folder / "tokenizer.json"
    data = read_json(path)
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, dict) or model.get("end_of_word_suffix") != "</w>":
        raise UserError(
            f"{path}: not CLIP's tokenizer (byte-level BPE whose words end in </w>), the only kind that is read"
        )
    rows = model.get("merges")
    merges = [tuple(row.split(" ") if isinstance(row, str) else row) for row in rows] if isinstance(rows, list) else []
    return _checked(path, model.get("vocab"), merges)


def _apart(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of the two files that older versions write."""
    try:
        lines = (folder / FILES[1]).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / FILES[1]} cannot be read: {error}; copy the tokenizer again, whole") from error
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    return _checked(folder / FILES[0], read_json(folder / FILES[0]), merges)


def _checked(
    path: Path, vocabulary: Any, merges: list[tuple[str, ...]]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    words = isinstance(vocabulary, dict) and all(isinstance(number, int) for number in vocabulary.values())
    if not words or any(len(pair) != 2 for pair in merges):
        raise UserError(f"{path}: no vocabulary of tokens and numbers with its merges; copy the tokenizer again, whole")
    return vocabulary, [(first, second) for first, second in merges]


def _special(folder: Path, key: str) -> str:
    """A special token as tokenizer_config.json or special_tokens_map.json names it; else CLIP's."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        known = read_json(folder / name) if (folder / name).is_file() else {}
        token = known.get(f"{key}_token") if isinstance(known, dict) else None
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return "<|startoftext|>" if key == "bos" else "<|endoftext|>"
