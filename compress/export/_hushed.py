"""What libraries say of themselves on being loaded, held back; everything else that they say is passed on."""

import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lines_without(*noise: str) -> Iterator[None]:
    """Hold back lines that native code writes to standard error and that begin so; all others follow at the end.

    Native code knows the file descriptor only, so that is what is led aside. If the process dies meanwhile, all it said
    is lost.

    Args:
        noise: Regular expressions.
    """
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # it is closed: nothing to hold back
        yield
        return
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            aside.seek(0)
            for line in aside:
                if not any(re.match(pattern.encode(), line) for pattern in noise):
                    os.write(2, line)


@contextmanager
def loggers_without_warnings(*names: str) -> Iterator[None]:
    """Only errors of these loggers."""
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """A variable for as long as this takes, where the user has not set it."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
