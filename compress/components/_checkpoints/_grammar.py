"""What is known of one class of another library: how its configuration and its tensors are ours, and back."""

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import AfterValidator, ValidationError

from compress.errors import UserError
from compress.schema import Schema

Settings = TypeVar("Settings", bound=Schema)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """One class; each file of this folder declares its own as GRAMMAR."""

    name: str  # as config.json names it
    library: Literal["diffusers", "transformers"]
    folder: str  # of a whole pipeline
    parts: Mapping[str, str]  # our component -> its kind: {"decoder": "vae.decoder", "encoder": "vae.encoder"}
    prefixes: Mapping[str, tuple[str, ...]]  # component -> how its tensors' names begin
    read: Callable[[Mapping[str, Any], str], Any]  # (config.json, component) -> our configuration record
    write: Callable[[Mapping[str, Any]], dict[str, Any]]  # component -> our record, to a config.json that may fit
    names: Callable[[str, str, Any], tuple[str, ...]]  # (component, our tensor, record) -> theirs, the newest first
    flat: Callable[[str], bool] = lambda name: False  # our 1x1 convolutions that they keep as linear layers
    ignored: tuple[str, ...] = ()  # ends of names of tensors that are no weights
    beside: Callable[[Path, Any], None] = lambda folder, record: None  # refuses what lies beside and does not fit

    @property
    def stem(self) -> str:
        """Of the weights' file."""
        return "diffusion_pytorch_model" if self.library == "diffusers" else "model"


def grammars() -> dict[str, Grammar]:
    """Every class that can be read, by name."""
    found = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.name.startswith("_"):
            grammar = importlib.import_module(f"{__package__}.{module.name}").GRAMMAR
            found[grammar.name] = grammar
    return found


def only(*values: Any) -> AfterValidator:
    """For a key that our components are built for with these values alone."""

    def check(value: Any) -> Any:
        if value not in values:
            raise ValueError(f"only {' or '.join(map(json.dumps, values))} can be read")
        return value

    return AfterValidator(check)


def settings(model: type[Settings], config: Mapping[str, Any], *, closed: bool = True) -> Settings:
    """A config.json as a record of one class.

    Args:
        model: The record.
        config: The file's content; keys that begin with an underscore say nothing of the network.
        closed: Whether a key that the record does not have is refused, where it holds anything.

    Raises:
        UserError: every key that is missing, or whose value cannot be read, with the value.
    """
    known = model.model_fields
    kept = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and (key in known or (closed and value is not None))
    }
    try:
        return model.model_validate_json(json.dumps(kept))
    except ValidationError as error:
        raise UserError("\n".join(_explained(dict(e), kept) for e in error.errors())) from error


def _explained(error: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    place = [str(part) for part in error["loc"]]
    key = place[0] if place else "the file"
    match error["type"]:
        case "missing":
            return f"{key} is missing"
        case "extra_forbidden":
            return f"{key}: {json.dumps(config[key])} is a key that cannot be read"
        case _:
            reason = error["msg"].removeprefix("Value error, ")
            return f"{key}: {json.dumps(config.get(key))}: {reason}"


def renamed(name: str, pairs: Mapping[str, str]) -> str:
    """A dotted name with some of its parts in other words; longer words first."""
    padded = f".{name}."
    for ours, theirs in pairs.items():
        padded = padded.replace(f".{ours}.", f".{theirs}.")
    return padded.strip(".")
