"""What each extra installs, as the distribution's own metadata says: nothing is listed a second time."""

import re
from functools import cache
from importlib import metadata

DISTRIBUTION = "mdcompress"
_NAME = re.compile(r"^[A-Za-z0-9._-]+")
_OWN = re.compile(rf"^{DISTRIBUTION}\[([^\]]+)\]")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


def required() -> tuple[str, ...]:
    """Packages that are always installed, sorted."""
    return tuple(sorted(name for extra, name in _requirements() if extra is None))


def extras() -> tuple[str, ...]:
    """Names of the extras, sorted."""
    return tuple(sorted({extra for extra, _ in _requirements() if extra is not None}))


def packages(extra: str) -> tuple[str, ...]:
    """Packages that an extra adds, those of the extras that it takes included; sorted, none for an unknown extra."""
    found: set[str] = set()
    for of, requirement in _requirements():
        if of != extra:
            continue
        own = _OWN.match(requirement)
        found |= {p for e in own.group(1).split(",") for p in packages(e.strip())} if own else {requirement}
    return tuple(sorted(found))


def version(package: str) -> str | None:
    """The installed version; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _requirements() -> tuple[tuple[str | None, str], ...]:
    """(extra, package) of every requirement; a package of our own keeps its extras: "mdcompress[onnx]"."""
    try:
        written = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return ()
    rows = []
    for text in written:
        extra, name = _EXTRA.search(text), _NAME.match(text)
        own = _OWN.match(text)
        if name is not None:
            rows.append((extra.group(1) if extra else None, own.group(0) if own else name.group(0)))
    return tuple(rows)
