"""The worked example of docs/pruning-depth.md runs as it is written."""

import re
from pathlib import Path

from compress.prune import depth

DOCUMENT = Path(__file__).parents[3] / "docs" / "pruning-depth.md"


def test_the_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    made = {}
    exec(code, made)
    table = capsys.readouterr().out
    assert all(step.name in table for step in made["proposal"].steps) and len(made["proposal"].steps) == 2
    assert "'affine'" in table and all(row.met for row in made["result"].achieved)


def test_every_key_that_it_names_exists():
    named = set(re.findall(r"`(\w+): ", DOCUMENT.read_text(encoding="utf-8")))
    assert {"blocks", "to_macs_ratio", "per", "patch"} <= named <= {*depth.Config.model_fields, "hidden"}
