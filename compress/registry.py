"""The directory is the registry: `quantize.rtn` is compress/quantize/rtn.py, and there is nothing to register.

Listing reads file names and docstrings and imports no method, so it costs milliseconds; only `load` and `describe`
import, and only the one file that was asked for. Metrics are listed the same way from eval/metrics.
"""

import ast
import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path

from pydantic.fields import FieldInfo

from compress.errors import UserError

STAGE_KINDS = ("prune", "distill", "quantize")  # also the order of stages in a recipe
KINDS = (*STAGE_KINDS, "export")
LABELS = ("Source:", "Differs:", "Cost:")
_BOUNDS = (
    ("gt", ">"),
    ("ge", ">="),
    ("lt", "<"),
    ("le", "<="),
    ("multiple_of", "a multiple of"),
    ("min_length", "length >="),
    ("max_length", "length <="),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a method's file says about itself, read without importing it."""

    name: str  # "quantize.rtn"
    summary: str  # first line of the docstring
    source: str  # the docstring's `Source:` paragraph, "" where there is none
    needs: str  # "nothing", "statistics", "training"; "" for exporters


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One key that a method takes in a recipe."""

    name: str
    type: str  # "int >= 0", "8 or 4"
    default: str | None  # as written in YAML; None: the key is required
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A method with everything a recipe's author needs."""

    name: str
    summary: str
    source: str
    differs: str
    cost: str
    needs: str
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricTraits:
    """What a gate must know of a metric: which limits fit it, what it is measured of, whether it names a net."""

    name: str
    of_images: bool
    of_drawn: bool  # of a sampler's steps, so only where pictures are drawn
    of_asked: bool  # of drawn pictures and those that their prompts ask for, so only with a captioned folder
    sampled: bool  # one value per picture or tensor, not one per model
    needs_net: bool
    limits: tuple[str, ...]


def names(kind: str) -> list[str]:
    """Full names of one kind ("prune", "distill", "quantize", "export"), sorted: `["quantize.rtn", "quantize.static"]`.

    Raises:
        UserError: no such kind.
    """
    if kind not in KINDS:
        raise UserError(f"no kind of method {kind!r}{did_you_mean(kind, KINDS)}")
    return [f"{kind}.{file}" for file in _files(f"compress.{kind}")]


def methods() -> list[str]:
    """Full names of all stage methods, in the order of KINDS."""
    return [name for kind in STAGE_KINDS for name in names(kind)]


def load(name: str) -> types.ModuleType:
    """Import the one file that `name` stands for, e.g. "quantize.rtn" or "export.onnx".

    Raises:
        UserError: no such method or format.
    """
    _check_known(name)
    return importlib.import_module(f"compress.{name}")


def summary(name: str) -> Summary:
    """One line of a methods table, without importing the method.

    Raises:
        UserError: no such method or format.
    """
    _check_known(name)
    tree = _parsed(f"compress.{name}")
    doc = ast.get_docstring(tree) or ""
    return Summary(
        name=name,
        summary=doc.split("\n", 1)[0],
        source=_paragraph(doc, "Source:"),
        needs=_constant_name(tree, "NEEDS").lower(),
    )


def describe(name: str) -> Description:
    """A method with its options; imports its file.

    Raises:
        UserError: no such method or format.
    """
    module = load(name)
    short = summary(name)
    doc = inspect.cleandoc(module.__doc__ or "")
    return Description(
        name=name,
        summary=short.summary,
        source=short.source,
        differs=_paragraph(doc, "Differs:"),
        cost=_paragraph(doc, "Cost:"),
        needs=short.needs,
        options=tuple(_option(key, field) for key, field in module.Config.model_fields.items()),
    )


def metrics() -> list[str]:
    """Names of the metrics: the files of eval/metrics, none of which is imported."""
    return _files("eval.metrics")


def metric_traits(name: str) -> MetricTraits:
    """How a metric may be judged, from the constants that its file declares; the file is parsed, not imported.

    TAKES says what a metric is measured of: images, or what of them was asked for; tensors or latents, which have no
    ground truth; or it is a cost (latency, size), judged by `max` or as a ratio to the reference.

    Raises:
        UserError: no such metric.
    """
    known = metrics()
    if name not in known:
        raise UserError(f"no metric {name!r}{did_you_mean(name, known)}")
    tree = _parsed(f"eval.metrics.{name}")
    takes = _constant(tree, "TAKES")
    higher = _constant(tree, "HIGHER_IS_BETTER") is True
    limits = ("min", "max_drop") if higher else ("max", "max_rise")
    return MetricTraits(
        name=name,
        of_images=takes in ("images", "asked"),
        of_drawn=takes in ("latents", "asked"),
        of_asked=takes == "asked",
        sampled=takes != "cost",
        needs_net=_constant(tree, "NEEDS_NET") is True,
        limits=limits if takes != "cost" else ("max", "max_ratio"),
    )


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The end of a message on an unknown name: what it may have meant and what there is."""
    close = difflib.get_close_matches(word, known, n=2)
    if not close:
        tails = {name: name.replace("/", ".").rsplit(".", 1)[-1] for name in known}
        tail = word.replace("/", ".").rsplit(".", 1)[-1]
        close = [name for name in known if difflib.SequenceMatcher(None, tails[name], tail).ratio() >= 0.75][:2]
    guess = f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
    return f"{guess} (known: {', '.join(known) or 'none'})"


def _check_known(name: str) -> None:
    kind = name.partition(".")[0]
    known = names(kind) if kind in KINDS else [known for each in KINDS for known in names(each)]
    if name not in known:
        everything = [known for each in KINDS for known in names(each)]
        raise UserError(f"no method {name!r}{did_you_mean(name, everything)}")


def _files(package: str) -> list[str]:
    loaded = sys.modules.get(package)
    spec = importlib.util.find_spec(package)
    paths = loaded.__path__ if loaded else (spec and spec.submodule_search_locations)
    found = pkgutil.iter_modules(list(paths or ()))
    return sorted(module.name for module in found if not module.ispkg and not module.name.startswith("_"))


def _parsed(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    return _tree(Path(spec.origin).read_text(encoding="utf-8"))


@lru_cache(maxsize=64)
def _tree(source: str) -> ast.Module:
    return ast.parse(source)


def _paragraph(doc: str, label: str) -> str:
    """The text behind a label such as `Source:`, to the next label or empty line, as one line."""
    lines: list[str] = []
    for line in doc.splitlines():
        if line.startswith(label):
            lines = [line.removeprefix(label)]
        elif lines and (not line.strip() or line.startswith(LABELS)):
            break
        elif lines:
            lines.append(line)
    return " ".join(line.strip() for line in lines)


def _assigned(tree: ast.Module, name: str) -> ast.expr | None:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return getattr(node, "value", None)
    return None


def _constant(tree: ast.Module, name: str) -> object:
    value = _assigned(tree, name)
    return value.value if isinstance(value, ast.Constant) else None


def _constant_name(tree: ast.Module, name: str) -> str:
    """`TRAINING` of `NEEDS = Needs.TRAINING`."""
    value = _assigned(tree, name)
    return value.attr if isinstance(value, ast.Attribute) else ""


def _option(key: str, field: FieldInfo) -> Option:
    default = None if field.is_required() else _yaml_text(field.get_default(call_default_factory=False))
    return Option(
        name=field.alias or key,
        type=_bounded(_type_text(field.annotation), field.metadata),
        default=default,
        help=field.description or "",
    )


def _bounded(text: str, metadata: Iterable[object]) -> str:
    """A type with its bounds: "int, > 0"."""
    bounds = [f"{sign} {getattr(item, word)}" for item in metadata for word, sign in _BOUNDS if hasattr(item, word)]
    return ", ".join([text, *bounds])


def _type_text(annotation: object) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(_yaml_text(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is types.NoneType else _type_text(part) for part in arguments)
    if origin in (list, tuple, set, frozenset):
        return f"list of {_type_text(arguments[0])}"
    if origin is typing.Annotated:
        return _bounded(_type_text(arguments[0]), arguments[1:])
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(str(member.value) for member in annotation)
    return getattr(annotation, "__name__", str(annotation))


def _yaml_text(value: object) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(_yaml_text(item) for item in value)}]"
    return str(value)
