"""What can go wrong on the user's side, and the exit code each kind ends with.

Exit codes: 0 passed, 1 a gate failed, 2 the user's mistake, 3 a missing extra, 70 our bug, 130 interrupted.
"""

import importlib
from types import ModuleType


class UserError(Exception):
    """Something that the user can put right: the message says what, where, what is allowed and what to do."""

    exit_code = 2


class MissingExtra(UserError):
    """An optional package is not installed; the message is the pip command that installs it."""

    exit_code = 3


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or name the command that installs it.

    Raises:
        MissingExtra: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".", maxsplit=1)[0]:
            raise
        raise MissingExtra(f"{purpose} needs {module}: pip install 'mdcompress[{extra}]'") from error
