"""YAML -> Recipe: every mistake of a file at once, each as `file:line:column: key: message`.

Validated in two steps: `method` (or `format`) names a file, and that file's own `Config` validates the other keys. So
there is no central union of all methods, and reading a recipe imports the methods that it names and no other.
"""

import difflib
import hashlib
import io
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

from compress import registry
from compress.editor_schema import json_schema
from compress.errors import UserError
from compress.located import Document, Location, Mistake, RecipeError, read_document
from compress.schema import Schema
from compress.written import Data, Gate, Order, Whole

__all__ = [
    "Data",
    "Gate",
    "PlannedConfig",
    "PlannedExport",
    "Recipe",
    "RecipeError",
    "as_written",
    "digest",
    "find",
    "json_schema",
    "names_under",
    "read_recipe",
    "shipped",
    "to_yaml",
    "with_formats",
]

RECIPE_FOLDERS = ("recipes", "_recipes")  # in a checkout, in a wheel
SUFFIX = ".yaml"
SHOWN = 60  # characters of a wrong value that a message repeats

Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedConfig:
    """One stage: a method, its validated options, and why it may stand out of order."""

    method: str
    config: Schema
    out_of_order: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedExport:
    """One format to write, with its validated options."""

    format: str
    config: Schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One variant as its author wrote it, validated, defaults filled in."""

    name: str
    component: str
    seed: int
    data: Data
    stages: tuple[PlannedConfig, ...]
    gates: tuple[Gate, ...]
    export: tuple[PlannedExport, ...] = ()


def read_recipe(path: Path | str) -> Recipe:
    """Read and validate a recipe; where it lies under a folder called recipes, its name must equal its path there.

    Raises:
        RecipeError: the message has every mistake, one a line.
    """
    path = Path(path)
    reading = Reading(read_document(path))
    whole = reading.validated(Whole, reading.written, ())
    stages = [_stage(reading, index, entry) for index, entry in enumerate(reading.listed("stages"))]
    gates = [reading.validated(Gate, entry, ("gates", index)) for index, entry in enumerate(reading.listed("gates"))]
    export = [_export(reading, index, entry) for index, entry in enumerate(reading.listed("export"))]
    _check_order(reading)
    _check_formats(reading)
    _check_name(reading)
    for index, gate in enumerate(gates):
        if gate and gate.against == "baseline":
            reading.note(
                ("gates", index, "against"), "a baseline belongs to a gates file: mdcompress gate --gates FILE"
            )
    if reading.mistakes or whole is None:
        raise RecipeError(path, reading.mistakes)
    return Recipe(
        name=whole.name,
        component=whole.component,
        seed=whole.seed,
        data=whole.data,
        stages=tuple(stage for stage in stages if stage),
        gates=tuple(gate for gate in gates if gate),
        export=tuple(item for item in export if item),
    )


def as_written(recipe: Recipe) -> dict[str, Any]:
    """The recipe as the plain mapping that a file would hold, every default written out."""
    stages = []
    for stage in recipe.stages:
        reason = {} if stage.out_of_order is None else {"out_of_order": stage.out_of_order}
        stages.append({"method": stage.method, **_dumped(stage.config), **reason})
    return {
        "schema": 1,
        "name": recipe.name,
        "component": recipe.component,
        "seed": recipe.seed,
        "data": {key: value for key, value in _dumped(recipe.data).items() if value is not None},
        "stages": stages,
        "gates": [{key: value for key, value in _dumped(gate).items() if value is not None} for gate in recipe.gates],
        "export": [{"format": item.format, **_dumped(item.config)} for item in recipe.export],
    }


def _dumped(record: BaseModel) -> dict[str, Any]:
    return record.model_dump(mode="json", by_alias=True)


class _Representer(SafeRepresenter):
    """Quotes words with line breaks of any kind or other control characters: written plain, some read back changed."""


def _word(representer: SafeRepresenter, text: str) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Representer.add_representer(str, _word)


def to_yaml(recipe: Recipe) -> str:
    """A file that reads back as the same recipe."""
    yaml: Any = YAML(typ="safe", pure=True)  # its settings are untyped
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 120
    text = io.StringIO()
    yaml.dump(as_written(recipe), text)
    return text.getvalue()


def digest(recipe: Recipe) -> str:
    """SHA-256 of the validated record: comments, order of keys and 1 against 1.0 make no difference.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(as_written(recipe), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def with_formats(base: Recipe, names: Collection[str]) -> Recipe:
    """The recipe with these formats, each with its recipe's options or else its defaults; its own are first.

    Of the first file are the numbers at the head of a zoo entry's card.
    """
    written = {item.format: item for item in base.export}
    ordered = sorted(names, key=lambda name: (name not in written, name))
    made = [written.get(n) or PlannedExport(format=n, config=registry.load(f"export.{n}").Config()) for n in ordered]
    return replace(base, export=tuple(made))


def names_under(folder: Path) -> dict[str, Path]:
    """The recipes in a folder, by name: the path below the folder without .yaml."""
    found = sorted(folder.rglob(f"*{SUFFIX}"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def shipped() -> dict[str, Path]:
    """The recipes that come with this installation: in a wheel beside this file, in a checkout at the top."""
    package = Path(__file__).parent
    for folder in (package / "_recipes", package.parent / "recipes"):
        if folder.is_dir():
            return names_under(folder)
    return {}


def find(name_or_path: str) -> Path:
    """The file of a recipe that is given by path, or by the name of one that comes with mdcompress.

    Raises:
        UserError: neither a file nor a known name.
    """
    path = Path(name_or_path)
    if path.suffix in (SUFFIX, ".yml") or path.is_file():
        return path
    known = shipped()
    if name_or_path in known:
        return known[name_or_path]
    there = "a folder, not a recipe" if path.is_dir() else "neither a recipe's name nor a file"
    raise UserError(f"{name_or_path!r} is {there}{registry.did_you_mean(name_or_path, list(known))}")


class Reading:
    """One file on its way to a recipe, and what has been found wrong with it so far."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.written: dict[str, Any] = document.data
        self.mistakes: list[Mistake] = list(document.mistakes)

    def note(self, location: Location, message: str, *, missing: bool = False) -> None:
        self.mistakes.append(self.document.mistake(location, message, missing=missing))

    def listed(self, key: str) -> list[Any]:
        """The entries of a list; where there is none, step one has said so."""
        entries = self.written.get(key)
        return entries if isinstance(entries, list) else []

    def validated(
        self, model: type[Record], data: Any, location: Location, *, also: Collection[str] = ()
    ) -> Record | None:
        """The record, or None with every mistake noted; `also` are keys that were taken out before, for "did you mean".

        As JSON, because pydantic's strict mode takes a list for a tuple and a word for an enumeration only there.
        """
        try:
            return model.model_validate_json(json.dumps(data))
        except ValidationError as error:
            self._note_all(model, error, location, also)
            return None

    def _note_all(
        self, model: type[BaseModel], error: ValidationError, location: Location, also: Collection[str]
    ) -> None:
        """A union reports once for each member, all at one key: joined by "or"."""
        messages: dict[tuple[Location, bool], list[str]] = {}
        for details in error.errors(include_url=False):
            if details["type"] == "default_factory_not_called":  # the consequence of another mistake in the list
                continue
            missing = details["type"] == "missing"
            where = (*location, *details["loc"])
            if not missing:
                while where not in self.document.places:
                    where = where[:-1]
            known = [*_keys_beside(model, details["loc"]), *also]
            messages.setdefault((where, missing), []).append(_message(details, known))
        for (where, missing), texts in messages.items():
            self.note(where, " or ".join(dict.fromkeys(texts)), missing=missing)

    def chosen(self, location: Location, entry: Any, key: str, known: Sequence[str]) -> str | None:
        """The method or format that an entry names, or None with the mistake noted."""
        if not isinstance(entry, dict):
            self.note(location, f"Input should be a mapping, e.g. {{{key}: {known[0] if known else '...'}}}")
        elif key not in entry:
            close = difflib.get_close_matches(key, entry, n=1)
            self.note((*location, key), f"Field required (known: {', '.join(known) or 'none'})", missing=True)
            for wrong in close:
                self.note((*location, wrong), f"unknown key; did you mean {key!r}?")
        elif entry[key] not in known:
            given = entry[key] if isinstance(entry[key], str) else _shown(entry[key])
            self.note((*location, key), f"no {key} {given!r}{registry.did_you_mean(given, known)}")
        else:
            return str(entry[key])
        return None


def _stage(reading: Reading, index: int, entry: Any) -> PlannedConfig | None:
    location = ("stages", index)
    method = reading.chosen(location, entry, "method", registry.methods())
    if method is None:
        return None
    general = {key: entry[key] for key in Order.model_fields if key in entry}
    own = {key: value for key, value in entry.items() if key not in ("method", *general)}
    order = reading.validated(Order, general, location)
    config = reading.validated(registry.load(method).Config, own, location, also=("method", *Order.model_fields))
    if order is None or config is None:
        return None
    return PlannedConfig(method=method, config=config, out_of_order=order.out_of_order)


def _export(reading: Reading, index: int, entry: Any) -> PlannedExport | None:
    location = ("export", index)
    formats = [name.removeprefix("export.") for name in registry.names("export")]
    name = reading.chosen(location, entry, "format", formats)
    if name is None:
        return None
    own = {key: value for key, value in entry.items() if key != "format"}
    config = reading.validated(registry.load(f"export.{name}").Config, own, location, also=("format",))
    return None if config is None else PlannedExport(format=name, config=config)


def _named(entries: list[Any], key: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for index, entry in enumerate(entries):
        if isinstance(entry, dict) and isinstance(entry.get(key), str):
            yield index, entry[key], entry


def _check_order(reading: Reading) -> None:
    """Stages stand in the order of their kinds, unless they say why not; and a variant is quantized once."""
    before = quantized = ""
    for index, method, entry in _named(reading.listed("stages"), "method"):
        kind = method.partition(".")[0]
        if kind not in registry.STAGE_KINDS:
            continue
        here = ("stages", index, "method")
        if kind == "quantize" and quantized:
            reading.note(here, f"the variant is already quantized by {quantized}; keep one quantize stage")
        elif before and "out_of_order" not in entry and _rank(kind) < _rank(before.partition(".")[0]):
            order = ", ".join(registry.STAGE_KINDS)
            reading.note(
                here, f"{method} comes after {before}, but the order is {order}; move it, or add out_of_order: why"
            )
        before = method
        if kind == "quantize":
            quantized = f"stages.{index} ({method})"


def _rank(kind: str) -> int:
    return registry.STAGE_KINDS.index(kind)


def _check_formats(reading: Reading) -> None:
    seen: set[str] = set()
    for index, name, _ in _named(reading.listed("export"), "format"):
        if name in seen:
            reading.note(("export", index, "format"), f"{name} is listed twice; each format is written once")
        seen.add(name)


def _check_name(reading: Reading) -> None:
    """A recipe under recipes/ is called by its path there, so that a name in a report finds the file."""
    path, name = reading.document.path.absolute(), reading.written.get("name")
    folder = next((parent for parent in path.parents if parent.name in RECIPE_FOLDERS), None)
    if folder is None or not isinstance(name, str):
        return
    expected = path.relative_to(folder).with_suffix("").as_posix()
    if name != expected:
        reading.note(("name",), f"the name is the path under {folder.name}/: {expected!r}, not {name!r}")


def _message(details: ErrorDetails, known: Sequence[str]) -> str:
    kind, given = details["type"], details["input"]
    if kind == "missing":
        return "Field required"
    if kind == "extra_forbidden":
        return f"unknown key{registry.did_you_mean(str(details['loc'][-1]), known)}"
    if kind == "value_error":
        return str(details["ctx"]["error"])
    return details["msg"] if isinstance(given, dict | list) else f"{details['msg']}, not {_shown(given)}"


def _shown(value: Any) -> str:
    """A value as YAML and JSON write it, so that "400" and 400 differ; shortened."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _keys_beside(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """The keys of the record that `location` is in, found by walking the model's own fields."""
    for step in location[:-1]:
        by_key = {field.alias or name: field for name, field in model.model_fields.items()}
        if isinstance(step, str) and step in by_key:
            model = _record_in(by_key[step].annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _record_in(annotation: Any) -> type[BaseModel] | None:
    """The record inside of `Record`, `Record | None`, `tuple[Record, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _record_in(part))), None)
