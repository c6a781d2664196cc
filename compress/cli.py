"""Command names and help; a command's code is loaded when it runs, so that help takes no time."""

import ast
import errno
import os
import sys
import traceback
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from cyclopts import App, CycloptsError

from compress.errors import UserError

COMMANDS = ("check", "plan", "run", "gate", "report", "bench", "generate", "methods", "doctor", "schema")
MODELS = ("list", "show", "convert")
MODULES = (
    "commands",
    "model_commands",
    "gate_command",
    "generate_command",
    "weights_command",
    "bench_command",
    "zoo_command",
    "bundle_command",
)  # a command is a function of one of them
GROUPS = {
    "models": ("Components: what comes with mdcompress, what each costs, other libraries' folders.", MODELS),
    "weights": ("The backbones of the standard LPIPS nets, pinned by SHA-256.", ("list", "add", "verify")),
    "zoo": (
        "A folder of variants that passed their gates.",
        ("add", "bundle", "list", "show", "diff", "verify", "pull", "promote", "gallery"),
    ),
}
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO)


def application() -> App:
    """Every command, in the order in which they are used."""
    lines = _help_lines()
    app = App(
        name="mdcompress",
        help="Turn each component of a latent-diffusion model into small, fast, gated variants for phones.",
        version=_version,
        version_flags=["--version"],
        suppress_keyboard_interrupt=False,  # main says what to do next
    )
    for key, name in enumerate(COMMANDS):
        app.command(lines[name].target, name=name, help=lines[name].text, sort_key=key)
    for key, (group, (text, names)) in enumerate(GROUPS.items(), start=len(COMMANDS)):
        nested = App(name=group, help=text, sort_key=key)
        for name in names:
            line = lines[f"{group}_{name}"]
            nested.command(line.target, name=name, help=line.text)
        app.command(nested)
    return app


def _version() -> str:
    try:
        return metadata.version("mdcompress")
    except metadata.PackageNotFoundError:
        return "not installed"


class Line(NamedTuple):
    """Where a command is, and the first line of its docstring."""

    target: str
    text: str


def _help_lines() -> dict[str, Line]:
    """Every command's line, read from the source: importing it would cost seconds."""
    found = {}
    for module in MODULES:
        tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
        for f in tree.body:
            if isinstance(f, ast.FunctionDef):
                text = (ast.get_docstring(f) or "").partition("\n")[0]
                found[f.name] = Line(target=f"compress.{module}:{f.name}", text=text)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns its exit code.

    0 passed, 1 a gate failed, 2 the user's mistake, 3 a missing extra, 70 our bug, 130 interrupted.
    """
    try:
        result = application()(arguments, exit_on_error=False, print_error=True, result_action="return_value")
        return result if isinstance(result, int) else 0
    except CycloptsError:
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command picks up where this one stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        return _explain(error)


def _explain(error: Exception) -> int:
    """Print an error for its reader: users get a message, bugs a trace."""
    from calibration.errors import DataError
    from eval.errors import EvalError

    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, DataError | EvalError):
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    if isinstance(error, OSError) and error.errno in (*NO_SPACE, *NOT_OURS):
        cure = "free some space, or choose another place" if error.errno in NO_SPACE else "choose another place"
        print(f"error: {error.filename or 'output'}: {error.strerror}; {cure}", file=sys.stderr)
        return 2
    traceback.print_exception(error)
    print("this is a bug in mdcompress; please report it with the lines above", file=sys.stderr)
    return 70


def entry() -> None:
    """The console script."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `head` that has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
