"""What differs between two zoo entries: files, facts, verdicts and recipe; nothing is run."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.zoo_index import Card, read_card


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that is not the same in both; None where one side has no such thing."""

    of: str  # "file", "fact", "gate", "tool", "entry"
    what: str
    before: int | float | str | None
    after: int | float | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Everything that differs; empty and "" where the entries are the same."""

    changes: tuple[Change, ...]
    recipe: str  # a unified diff


def difference(before: Path, after: Path) -> Difference:
    """Compare two entries' folders by their cards and recipes.

    Raises:
        UserError: one of them is no zoo entry, or its card cannot be read.
    """
    cards = [_card(folder) for folder in (before, after)]
    sides = [_rows(card) for card in cards]
    keys = dict.fromkeys((*sides[0], *sides[1]))
    changes = [
        Change(of=key[0], what=key[1], before=sides[0].get(key), after=sides[1].get(key))
        for key in keys
        if sides[0].get(key) != sides[1].get(key)
    ]
    first, second = ((folder / "recipe.yaml").read_text(encoding="utf-8").splitlines() for folder in (before, after))
    lines = difflib.unified_diff(first, second, str(before), str(after), lineterm="", n=1)
    return Difference(changes=tuple(changes), recipe="\n".join(lines))


def _card(folder: Path) -> Card:
    if not (folder / "card.json").is_file():
        raise UserError(f"{folder}: no zoo entry (no card.json); give two entries' folders, such as zoo/decoder/w8a8")
    return read_card(folder)


def _rows(card: Card) -> dict[tuple[str, str], int | float | str]:
    """Every statement of a card by what it is of and what it is about."""
    rows: dict[tuple[str, str], int | float | str] = {
        ("entry", "name"): card.name,
        ("entry", "component"): card.component,
        ("entry", "licence"): card.licence,
    }
    rows |= {("file", f"{name}, bytes"): file.bytes for name, file in card.files.items()}
    rows |= {("file", f"{name}, SHA-256"): file.sha256[:12] for name, file in card.files.items()}
    rows |= {("fact", name): value for name, value in card.facts.items()}
    rows |= {("tool", name): version for name, version in card.tools.items()}
    for verdict in card.verdicts:
        rows[("gate", _gate(verdict))] = _value(verdict)
        rows[("gate", f"{_gate(verdict)}, limit")] = verdict.get("limit", "none")
    return rows


def _gate(verdict: Mapping[str, Any]) -> str:
    net = f" ({verdict['net']})" if verdict.get("net") else ""
    words = (f"{verdict.get('metric')}{net}", *(str(verdict.get(key, "")) for key in ("statistic", "kind", "against")))
    return f"{verdict.get('subject', '')}: {', '.join(word for word in words if word)}, of {verdict.get('of', '')}"


def _value(verdict: Mapping[str, Any]) -> int | float | str:
    if verdict.get("exact"):
        return "exact"
    value = verdict.get("value")
    return "not measured" if value is None else value
