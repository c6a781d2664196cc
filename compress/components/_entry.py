"""`package.module:function` as somebody names it on a command line: imported, called once, checked.

Only what a person typed comes here. Recipes, architecture files and zoos name no code that runs by itself.
"""

import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.components.foreign import FLAGS, Leaf, adopt
from compress.errors import UserError
from compress.records import Variant

FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
THEIRS = (  # what running somebody's code may raise; the program's own errors pass
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def adopt_named(entry: str, component: str, leaf: Leaf, example: Tensor | None = None) -> Variant:
    """The module that `entry` makes, adopted.

    Args:
        entry: `package.module:function`; the function takes nothing and returns the module, or (module, example input).
        component: What reports call it.
        leaf: Whether it is the decoder or the encoder.
        example: Its example input, where the function gives none.

    Raises:
        UserError: no such module or function, it fails, or what it returns cannot be compressed.
    """
    flag = FLAGS[leaf]
    if ".py:" in entry or not FORM.fullmatch(entry):
        hint = f"; for a file decoder.py that is {flag} decoder:FUNCTION" if ".py" in entry else ""
        raise UserError(f"{flag} {entry}: name a module and a function in it as package.module:function{hint}")
    with _importing_from_here():
        made = _called(_imported(entry, flag), entry, flag)
    module, own = made if isinstance(made, tuple) and len(made) == 2 else (made, example)
    if isinstance(module, nn.Module) and not isinstance(own, Tensor):
        raise UserError(
            f"{flag} {entry}: no example input is known; name the encoder with --encoder, or let the function return "
            "(module, example input)"
        )
    return adopt(
        module, own if isinstance(own, Tensor) else torch.zeros(0), component=component, leaf=leaf, entry=entry
    )


def _imported(entry: str, flag: str) -> Callable[[], Any]:
    name, _, path = entry.partition(":")
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"{flag} {entry}: no module '{error.name}' in {Path.cwd()} or among the installed packages; run from "
                "the folder that holds it, or set PYTHONPATH"
            ) from error
        raise UserError(f"{flag} {entry}: {name} imports '{error.name}', which is not installed") from error
    except THEIRS as error:
        raise UserError(f"{flag} {entry}: importing {name} failed: {_told(error)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            known = [n for n, value in vars(found).items() if callable(value) and not n.startswith("_")]
            raise UserError(
                f"{flag} {entry}: {name} has no '{path}'; it has {', '.join(sorted(known)) or 'no function'}"
            )
        found = getattr(found, part)
    if not callable(found) or isinstance(found, nn.Module):
        raise UserError(f"{flag} {entry}: '{path}' is {type(found).__name__}; name a function that returns the module")
    return found


def _called(function: Callable[[], Any], entry: str, flag: str) -> Any:
    """What the function returns; random weights are the same in every process."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return function()
    except THEIRS as error:
        raise UserError(f"{flag} {entry}: the function failed: {_told(error)}") from error


@contextmanager
def _importing_from_here() -> Iterator[None]:
    """The current folder comes first on the path of imports, as it does for `python -m`."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _told(error: Exception) -> str:
    """An error with the last line of its author's code that it came through."""
    steps = [s for s in traceback.extract_tb(error.__traceback__) if "/compress/" not in s.filename]
    own = [s for s in steps if not s.filename.startswith("<")]
    at = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{at}"
