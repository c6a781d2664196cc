"""transformers' `CLIPTextModel`: the text encoder of Stable Diffusion 1.x and 2.x, as ours.

Source: transformers 5.23, models/clip/modeling_clip.py; files of transformers 4 put `text_model.` before every name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import PositiveInt

from compress.components._checkpoints._grammar import Grammar, only, settings
from compress.components.text_encoder import NORM_EPS, TextEncoderConfig, TextLayerConfig
from compress.errors import UserError
from compress.files import read_json
from compress.schema import Schema

UNSTATED = 10**9  # what a tokenizer without a limit writes as its limit is larger


class _Config(Schema):
    """Keys of config.json that say how the network is built; it holds many that do not."""

    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_hidden_layers: PositiveInt
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: Annotated[float, only(NORM_EPS)] = NORM_EPS


def read(config: Mapping[str, Any], part: str) -> TextEncoderConfig:
    """The record of the encoder."""
    given = settings(_Config, config, closed=False)
    heads = given.num_attention_heads
    if given.hidden_size % heads:
        raise UserError(f"num_attention_heads: {heads}: hidden_size {given.hidden_size} is no multiple of it")
    layer = TextLayerConfig(heads=heads, feed_forward=given.intermediate_size)
    return TextEncoderConfig(
        vocabulary=given.vocab_size,
        positions=given.max_position_embeddings,
        width=given.hidden_size,
        head_dim=given.hidden_size // heads,
        activation=given.hidden_act,
        layers=(layer,) * given.num_hidden_layers,
    )


def write(records: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that may fit."""
    record = records["text_encoder"]
    return {
        "architectures": ["CLIPTextModel"],
        "hidden_act": record.activation,
        "hidden_size": record.width,
        "intermediate_size": max(
            (layer.feed_forward for layer in record.layers if not isinstance(layer, str)), default=1
        ),
        "layer_norm_eps": NORM_EPS,
        "max_position_embeddings": record.positions,
        "model_type": "clip_text_model",
        "num_attention_heads": max(record.width // record.head_dim, 1),
        "num_hidden_layers": len(record.layers),
        "vocab_size": record.vocabulary,
    }


def names(part: str, ours: str, record: Any) -> tuple[str, ...]:
    """The name without and with the prefix of transformers 4, which transformers 5 reads as well."""
    return (f"text_model.{ours}", ours)


def check_tokenizer(folder: Path, record: TextEncoderConfig) -> None:
    """Compare the encoder with the tokenizer in its folder or beside it, where there is one.

    Raises:
        UserError: the tokenizer gives ids, or texts, that the encoder has no rows for.
    """
    for place in (folder, folder.parent / "tokenizer"):
        ids = [token for name in ("vocab.json", "added_tokens.json") for token in _ids(place / name)]
        if ids and max(ids) >= record.vocabulary:
            raise UserError(
                f"{place} gives token ids up to {max(ids)}, but {folder}/config.json has vocab_size "
                f"{record.vocabulary}; use the tokenizer that the text encoder was trained with"
            )
        if (place / "tokenizer_config.json").exists():
            told = read_json(place / "tokenizer_config.json")
            longest = told.get("model_max_length") if isinstance(told, dict) else None
            if isinstance(longest, int | float) and record.positions < longest < UNSTATED:
                raise UserError(
                    f"{place}/tokenizer_config.json has model_max_length {longest}, but {folder}/config.json has "
                    f"max_position_embeddings {record.positions}; use the tokenizer that the text encoder came with"
                )


def _ids(path: Path) -> list[int]:
    held = read_json(path) if path.exists() else {}
    if not isinstance(held, dict) or not all(isinstance(value, int) for value in held.values()):
        raise UserError(f"{path} is no vocabulary; it needs to be a JSON object of token ids")
    return list(held.values())


GRAMMAR = Grammar(
    name="CLIPTextModel",
    library="transformers",
    folder="text_encoder",
    parts={"text_encoder": "text_encoder.text_encoder"},
    prefixes={"text_encoder": ("",)},
    read=read,
    write=write,
    names=names,
    ignored=("embeddings.position_ids",),
    beside=check_tokenizer,
)
