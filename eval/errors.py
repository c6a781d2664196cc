"""What can go wrong on the user's side of an evaluation."""

import difflib
from collections.abc import Sequence


class EvalError(ValueError):
    """Something that the user can put right: the message says what, where, what is allowed and what to do."""


class MissingPackage(EvalError):
    """An optional package is not installed; the message is the pip command that installs it."""

    exit_code = 3


def unknown(kind: str, name: str, known: Sequence[str]) -> EvalError:
    """The error for a name that is not one of `known`, with the nearest ones suggested."""
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ";"
    return EvalError(f"no {kind} {name!r}{hint} known: {', '.join(known)}")
