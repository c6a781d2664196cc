"""Checks shapes and types of every annotated call in the rooms that hold tensors; an int where a float is asked passes.

jaxtyping's own hook binds the arguments of each call and checks them twice, whatever they are; here a function is
checked once, and only those that name shapes share a memo of them.
"""

import ast
import builtins
import dataclasses
import re
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, ForwardRef, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, jaxtyped

ROOMS = (
    "compress.nn",
    "compress.prune",
    "compress.quantize",
    "compress.distill",
    "compress.components",
    "compress.sampling",
    "calibration",
    "eval",
)
NAME = "_typecheck_checked"  # what the decorator is called in a module

typed = beartype(conf=BeartypeConf(is_pep484_tower=True))


def leaves(annotation: Any) -> Iterator[Any]:
    """What an annotation is made of: classes, and names in quotes."""
    parts = [part for arg in get_args(annotation) for part in (arg if isinstance(arg, list) else [arg])]
    yield from (leaf for part in parts for leaf in leaves(part)) if parts else (annotation,)


def names_shapes(annotation: Any) -> bool:
    """Whether an annotation has jaxtyping's shapes in it; one in quotes may have."""
    return any(
        isinstance(leaf, str) or (isinstance(leaf, type) and issubclass(leaf, AbstractArray))
        for leaf in leaves(annotation)
    )


def is_known(annotation: Any, names: dict[str, Any]) -> bool:
    """Whether its names in quotes are there when the program runs, and not for mypy alone."""
    quoted = [leaf for leaf in leaves(annotation) if isinstance(leaf, str | ForwardRef)]
    words = {word for q in quoted for word in re.findall(r"[A-Za-z_]\w*", str(getattr(q, "__forward_arg__", q)))}
    return all(word in names or hasattr(builtins, word) for word in words)


def checked(subject: Any) -> Any:
    """A function that checks what it is given and what it gives, or a dataclass that checks its fields."""
    if isinstance(subject, type):
        if dataclasses.is_dataclass(subject) and "__init__" in vars(subject):
            subject.__init__ = checked(subject.__init__)
        return subject
    written = subject.__annotations__
    subject.__annotations__ = {n: a for n, a in written.items() if is_known(a, subject.__globals__)}
    found = typed(subject)
    subject.__annotations__ = found.__annotations__ = written
    if any(names_shapes(annotation) for annotation in written.values()):
        return jaxtyped(found, typechecker=None)
    return found


class _Decorating(ast.NodeVisitor):
    """Puts the decorator closest to each function, and around each class."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        node.decorator_list.append(ast.copy_location(ast.Name(NAME, ast.Load()), node))
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        node.decorator_list.insert(0, ast.copy_location(ast.Name(NAME, ast.Load()), node))
        self.generic_visit(node)


class _Loader(SourceFileLoader):
    def path_stats(self, path: Any) -> Any:
        """Not the time of the file: the code is neither read from a cache nor written to one."""
        raise OSError(f"{path}: checked code has no cache")

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:
        tree = ast.parse(data, path)
        _Decorating().visit(tree)
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[NAME] = checked
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if _is_in_a_room(name) else None
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def _is_in_a_room(name: str) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in ROOMS)


def install() -> None:
    """From now on; for what has not been imported yet."""
    early = sorted(name for name in sys.modules if _is_in_a_room(name))
    if early:
        raise RuntimeError(f"imported before its types could be checked: {', '.join(early)}")
    sys.meta_path.insert(0, _Finder())


install()
