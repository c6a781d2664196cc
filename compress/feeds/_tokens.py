"""Captions as token ids: by the tokenizer that lies beside a text encoder, or else by ids drawn for each word."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.prompts import PromptSet
from compress.components.text_encoder import TextEncoderConfig
from compress.errors import UserError
from compress.files import read_json, sha256
from compress.sampling import clip_tokenizer, tokenizer
from compress.store import key_of

FILES = ("tokenizer.json", *clip_tokenizer.FILES, "tokenizer_config.json", "special_tokens_map.json")
DRAWN = (
    "no tokenizer lies beside the text encoder: each word of a caption became one token drawn at random (frequent ones "
    "more often), between the last two entries of the vocabulary as start and end"
)


def found(folder: Path) -> Path | None:
    """The tokenizer of a text encoder: in its family's folder, its own, or the pipeline's tokenizer/."""
    for place in (folder.parent, folder, folder.parent / "tokenizer"):
        if clip_tokenizer.is_there(place):
            return place
    return None


def digest(folder: Path, texts: PromptSet) -> str:
    """Of the ids that captions become: of the captions, and of the tokenizer."""
    place = found(folder)
    files = [place / name for name in FILES if (place / name).is_file()] if place else []
    return key_of({"captions": texts.digest, "tokenizer": {path.name: sha256(path) for path in files} or "drawn"})


def ids(folder: Path, config: TextEncoderConfig, texts: Sequence[str]) -> torch.Tensor:
    """Rows of token ids [n, positions], int64.

    Raises:
        UserError: the tokenizer is damaged, or not this text encoder's.
        MissingExtra: there is a tokenizer, and the package that reads it is not installed.
    """
    place = found(folder)
    if place is None:
        return torch.from_numpy(np.stack([_drawn(text, config) for text in texts]))
    reader: Any = _own(place) or clip_tokenizer.load(place, config.positions)
    if reader.vocabulary > config.vocabulary or reader.length > config.positions:
        raise UserError(
            f"{place}: a tokenizer of {reader.vocabulary} entries and {reader.length} tokens, but the text encoder has "
            f"{config.vocabulary} and {config.positions}: they are not of one model"
        )
    return torch.from_numpy(reader.encode(list(texts)).ids)


def _own(place: Path) -> tokenizer.Tokenizer | None:
    """A tokenizer of this project's own kind, if the file is one."""
    path = place / "tokenizer.json"
    data = read_json(path) if path.is_file() else None
    model = data.get("model") if isinstance(data, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    return tokenizer.load(path) if isinstance(vocabulary, dict) and tokenizer.START in vocabulary else None


def _drawn(text: str, config: TextEncoderConfig) -> np.ndarray:
    """The same text, the same ids: log-uniform, as the frequency of words falls with their rank."""
    start, end = max(config.vocabulary - 2, 0), config.vocabulary - 1
    rng = np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))
    words = min(len(re.findall(r"\w+|[^\w\s]", text)), max(config.positions - 2, 0))
    row = np.full(config.positions, end, dtype=np.int64)
    row[0] = start
    row[1 : 1 + words] = np.exp(rng.uniform(0, np.log(max(start, 2)), words)).astype(np.int64)
    return row
