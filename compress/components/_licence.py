"""The licence of a component's weights, as its folder's README.md states it."""

import re
from pathlib import Path

UNKNOWN = "unknown"
ABOVE = 1  # a component's folder lies in its model's, where hubs keep the one README.md
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
_LICENCE = re.compile(r"^license:\s*['\"]?([A-Za-z0-9._+-]+)['\"]?\s*$", re.MULTILINE)


def licence_of(folder: Path) -> str:
    """The `license:` of the front matter that model hubs read: "apache-2.0"; "unknown" where nothing states one.

    Args:
        folder: a component's folder; its parent's README.md counts too, anything further up does not.
    """
    for place in (folder, *folder.parents)[: ABOVE + 1]:
        page = place / "README.md"
        if not page.is_file():
            continue
        head = _FRONT_MATTER.search(page.read_text(encoding="utf-8", errors="replace"))
        stated = _LICENCE.search(head.group(1)) if head else None
        if stated:
            return stated.group(1).lower()
    return UNKNOWN
