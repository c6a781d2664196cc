"""A YAML file as plain data with the place of every key, and mistakes that say where they are.

Read as YAML 1.2 from the node tree, so `1e-3` is a number and `yes` is a word, and every key and list item knows its
line and column. Whatever would hide a value from the reader of the file (anchors, aliases, tags, directives, duplicate
keys) is a mistake; an alias is never followed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
)
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from compress.errors import UserError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
TAG = "tag:yaml.org,2002:"

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Mistake:
    """One thing to put right. Lines and columns count from 1; line 0 means the file as a whole."""

    line: int
    column: int
    key: str
    message: str


class RecipeError(UserError):
    """Every mistake of one recipe, one a line: `file:line:column: key: message`."""

    def __init__(self, path: Path, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(sorted(set(mistakes)))
        super().__init__("\n".join(_line(path, mistake) for mistake in self.mistakes))


def _line(path: Path, mistake: Mistake) -> str:
    place = f":{mistake.line}:{mistake.column}" if mistake.line else ""
    key = f"{mistake.key}: " if mistake.key else ""
    return f"{path}{place}: {key}{mistake.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What a YAML file says, and where: `places` has (line, column) of each key and of each list item."""

    path: Path
    data: Any
    places: dict[Location, tuple[int, int]]
    mistakes: tuple[Mistake, ...]  # found while reading: duplicate keys and the like

    def mistake(self, location: Location, message: str, *, missing: bool = False) -> Mistake:
        """A mistake at `location`, or at the nearest thing around it that the file has.

        `missing` says that the location's last step is a key that should be there and is not.
        """
        known = location[:-1] if missing else location
        while known not in self.places:
            known = known[:-1]
        line, column = self.places[known]
        named = (*known, location[-1]) if missing else known
        return Mistake(line=line, column=column, key=_dotted(named), message=message)


def _dotted(location: Location) -> str:
    return ".".join(str(step) for step in location)


def read_document(path: Path) -> Document:
    """Read one YAML file whose top level is a mapping.

    Raises:
        RecipeError: the file cannot be read, is no YAML, or hides values behind anchors, tags or directives.
    """
    text = _decoded(path)
    try:
        hidden = [_at(event, message) for event, message in _hidden(text)]
        if hidden:
            raise RecipeError(path, hidden)
        root = YAML(typ="safe", pure=True).compose(text)
    except ReaderError as error:
        line, column = _line_column(text[: error.position])
        raise _refused(path, f"character {error.character:#x} is not allowed in YAML", line, column) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _refused(path, _syntax(error), mark.line + 1, mark.column + 1) from error
    except YAMLError as error:
        raise _refused(path, f"not valid YAML: {error}") from error
    if root is None or (isinstance(root, ScalarNode) and root.value == ""):
        raise _refused(path, "the file is empty; a recipe starts with 'schema: 1'", 1, 1)
    if not isinstance(root, MappingNode):
        raise _refused(path, "the top level must be a mapping that starts with 'schema: 1'", 1, 1)
    places: dict[Location, tuple[int, int]] = {(): (1, 1)}
    mistakes: list[Mistake] = []
    data = _plain(root, (), places, mistakes)
    return Document(path=path, data=data, places=places, mistakes=tuple(mistakes))


def _refused(path: Path, message: str, line: int = 0, column: int = 0) -> RecipeError:
    return RecipeError(path, [Mistake(line=line, column=column, key="", message=message)])


def _decoded(path: Path) -> str:
    if path.is_dir():
        raise _refused(path, "this is a folder; give one YAML file")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise _refused(path, "no such file") from error
    except (OSError, ValueError) as error:
        raise _refused(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(raw) > MAX_BYTES:
        raise _refused(path, f"larger than {MAX_BYTES} bytes; a recipe is a few dozen lines")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _line_column(raw[: error.start].decode("utf-8", errors="replace"))
        raise _refused(
            path, f"byte {raw[error.start]:#x} is not UTF-8; save the file as UTF-8", line, column
        ) from error


def _line_column(before: str) -> tuple[int, int]:
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _syntax(error: MarkedYAMLError) -> str:
    problem = error.problem or error.context or "not valid YAML"
    if r"'\t'" in problem:
        return "a tab where YAML wants spaces; indent with spaces"
    if "another document" in problem:
        return "a second document; a recipe is one document, without '---' in the middle"
    return f"not valid YAML: {problem}"


def _at(event: Event, message: str) -> Mistake:
    return Mistake(line=event.start_mark.line + 1, column=event.start_mark.column + 1, key="", message=message)


def _hidden(text: str) -> Iterator[tuple[Event, str]]:
    """What a reader of the file could not see in place. Events come one by one, so that nothing is expanded."""
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            yield event, f"nested deeper than {MAX_DEPTH} levels"
            return
        if isinstance(event, AliasEvent):
            yield event, f"alias *{event.anchor}: a recipe is whole and visible; write the value out"
        elif getattr(event, "anchor", None) is not None:
            yield event, f"anchor &{event.anchor}: a recipe is whole and visible; write the value out where it is used"
        elif getattr(event, "tag", None) is not None:
            yield event, f"tag {event.tag}: tags are not allowed; write the plain value"
        elif isinstance(event, DocumentStartEvent) and (event.version or event.tags):
            yield event, "directives (%YAML, %TAG) are not allowed; recipes are YAML 1.2"


def _plain(node: Node, location: Location, places: dict[Location, tuple[int, int]], mistakes: list[Mistake]) -> Any:
    """The node as dict, list, str, int, float, bool or None; fills `places` and `mistakes` on the way."""
    if isinstance(node, SequenceNode):
        for index, child in enumerate(node.value):
            places[*location, index] = _place(child)
        return [_plain(child, (*location, index), places, mistakes) for index, child in enumerate(node.value)]
    if isinstance(node, ScalarNode):
        return _scalar(node)
    data: dict[str, Any] = {}
    for key_node, child in node.value:
        line, column = _place(key_node)
        key = key_node.value if isinstance(key_node, ScalarNode) else "?"
        here = (*location, key)
        if not isinstance(key_node, ScalarNode):
            wrong = "a key must be a single word"
        elif key in data:
            wrong = f"the key is there twice (first in line {places[here][0]}); keep one"
        else:
            places[here] = (line, column)
            data[key] = _plain(child, here, places, mistakes)
            continue
        mistakes.append(Mistake(line=line, column=column, key=_dotted(here), message=wrong))
    return data


def _place(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _scalar(node: ScalarNode) -> Any:
    """A scalar by its YAML 1.2 tag; what looks like a number but is none (`1_`) and dates stay words."""
    text: str = node.value
    tag = str(node.tag).removeprefix(TAG)
    try:
        if tag == "int":
            return int(text, 0) if text.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else int(text)
        if tag == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return text
    if tag == "bool":
        return text.lower() == "true"
    return None if tag == "null" else text
