"""Prompts to rows of token ids of one length: byte-level BPE, trained on the captions.

Source: Sennrich et al. 2016 (arXiv:1508.07909) on bytes (Radford et al. 2019), by Hugging Face's `tokenizers`; the row
is CLIP's: start, text, end, and the end token again up to the length.
Differs: lower case, NFKC and plain quotation marks for everything, so that no prompt has unknown characters.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from compress.errors import UserError, require
from compress.files import read_json, write_text

START, END = "<|start|>", "<|end|>"
SPACE = "\u0120"  # how byte-level BPE writes a space


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoded:
    """Token ids, and what of each text did not fit (empty: nothing)."""

    ids: Int[np.ndarray, "n length"]
    cut: tuple[str, ...]


class Tokenizer:
    """Texts to ids, from a `tokenizer.json`."""

    def __init__(self, inner: Any, length: int) -> None:
        inner.encode_special_tokens = True  # "<|end|>" in a prompt is text like any other
        self._inner = inner
        self.length = length
        self._start, self._end = inner.token_to_id(START), inner.token_to_id(END)

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return self._inner.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> Encoded:
        """One row per text. What is beyond the length is cut off and given back, for the caller to say so."""
        room = self.length - 2
        ids = np.full((len(texts), self.length), self._end, dtype=np.int64)
        cut = []
        for row, (text, encoding) in enumerate(
            zip(texts, self._inner.encode_batch(list(texts), add_special_tokens=False), strict=True)
        ):
            kept = encoding.ids[:room]
            ids[row, 0] = self._start
            ids[row, 1 : 1 + len(kept)] = kept
            cut.append(text[encoding.offsets[room][0] :].strip() if len(encoding.ids) > room else "")
        return Encoded(ids=ids, cut=tuple(cut))

    def unknown(self, text: str) -> str:
        """The characters of a text that its training never had: beyond ASCII, and single bytes to it."""
        return "".join(c for c in dict.fromkeys(text) if not c.isascii() and self._is_bytes(c))

    def _is_bytes(self, character: str) -> bool:
        tokens = self._inner.encode(character, add_special_tokens=False).tokens
        plain = "".join(tokens).removeprefix(SPACE).isascii()  # NFKC made it ASCII, as it does of a full-width letter
        return not plain and any(len(token.removeprefix(SPACE)) == 1 for token in tokens)

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`; the length is in it as the truncation setting."""
        self._inner.enable_truncation(self.length)
        text = self._inner.to_str(pretty=True)
        self._inner.no_truncation()
        write_text(path, text + "\n")


def train(texts: Iterable[str], *, vocabulary: int, length: int) -> Tokenizer:
    """A tokenizer of at most `vocabulary` entries learned from texts; the same texts in the same order give the same.

    Raises:
        MissingExtra: the package `tokenizers` is not installed.
    """
    hf = _tokenizers()
    inner = hf.Tokenizer(hf.models.BPE())
    inner.normalizer = hf.normalizers.Sequence(
        [
            hf.normalizers.NFKC(),
            hf.normalizers.Lowercase(),
            hf.normalizers.Replace(hf.Regex(r"[\u2018\u2019]"), "'"),
            hf.normalizers.Replace(hf.Regex(r"[\u201c\u201d]"), '"'),
            hf.normalizers.Replace(hf.Regex(r"\s+"), " "),
            hf.normalizers.Strip(),
        ]
    )
    inner.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[START, END],
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return Tokenizer(inner, length)


def load(path: Path) -> Tokenizer:
    """Read a `tokenizer.json` that `save` wrote.

    Raises:
        UserError: missing, or not such a file.
        MissingExtra: the package `tokenizers` is not installed.
    """
    hf = _tokenizers()
    data = read_json(path)
    parts = {key: data.get(key) for key in ("model", "truncation")} if isinstance(data, dict) else {}
    model, truncation = parts.get("model"), parts.get("truncation")
    length = truncation.get("max_length") if isinstance(truncation, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) and model.get("type") == "BPE" else None
    if not isinstance(vocabulary, dict) or not {START, END} <= set(vocabulary):
        raise UserError(f"{path}: not a tokenizer of this kind; it needs a BPE model with the tokens {START} and {END}")
    if not isinstance(length, int) or length < 3:
        raise UserError(f"{path}: truncation.max_length is {length}; it must be the number of tokens, at least 3")
    inner = hf.Tokenizer.from_str(json.dumps(data))
    inner.no_truncation()
    return Tokenizer(inner, length)


def _tokenizers() -> Any:
    return require("tokenizers", extra="generate", purpose="a text prompt")
