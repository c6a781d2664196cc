"""Two entries' cards and recipes, side by side."""

from dataclasses import replace as changed

import pytest

from compress import zoo, zoo_diff
from compress.errors import UserError


def test_the_same_entry_differs_in_nothing(tmp_path, toy_entry):
    places = [zoo.add(tmp_path / name, toy_entry) for name in ("a", "b")]
    assert zoo_diff.difference(*places) == zoo_diff.Difference(changes=(), recipe="")


def test_every_change_is_named_with_both_values(tmp_path, toy_entry):
    before = zoo.add(tmp_path / "a", toy_entry)
    (tmp_path / "built" / "model.toy").write_text("factor 2.50")
    verdict = {**toy_entry.verdicts[0], "value": 33.0, "limit": 32.0}
    newer = changed(
        toy_entry,
        facts={"parameters": 100, "note": "a|b", "new": 1},
        verdicts=(verdict,),
        tools={"torch": "2.14.0"},
        recipe="schema: 1\nseed: 2\n",
        licence="mit",
        samples=(),
    )
    found = zoo_diff.difference(before, zoo.add(tmp_path / "b", newer))
    rows = {(c.of, c.what): (c.before, c.after) for c in found.changes}
    assert rows[("fact", "parameters")] == (123, 100)
    assert rows[("fact", "psnr_db")] == (31.5, None)
    assert rows[("fact", "new")] == (None, 1)
    assert rows[("file", "model.toy, bytes")] == (10, 11)
    assert rows[("tool", "torch")] == ("2.13.0", "2.14.0")
    assert rows[("entry", "licence")] == ("apache-2.0", "mit")
    gates = {what: values for (of, what), values in rows.items() if of == "gate"}
    assert sorted(gates.values()) == [(30.0, 32.0), (31.5, 33.0)]
    assert ("fact", "note") not in rows
    assert [line for line in found.recipe.splitlines() if line.startswith("+seed")] == ["+seed: 2"]


def test_a_folder_that_is_no_entry_is_refused(tmp_path, toy_entry):
    place = zoo.add(tmp_path / "a", toy_entry)
    with pytest.raises(UserError, match=r"no zoo entry \(no card.json\)"):
        zoo_diff.difference(place, tmp_path)
