"""Progress as plain lines, for a log."""

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from compress import drawing, verdicts
from compress.records import Achieved
from compress.runs import Event


def test_time_left_of_a_resumed_stage_is_by_the_pace_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(drawing.time, "monotonic", lambda: now)
    out = io.StringIO()
    drawer = drawing.Drawer(Console(file=out, width=200))
    drawer(Event(kind="started", name="train"))
    for done in range(600, 640):  # a step each 2 s; 600 of them are an earlier process's
        now += 2
        drawer(Event(kind="progress", name="train", done=done, total=1000))
    said = [(int(a), int(b)) for a, b in re.findall(r" (\d+)/1000 .*about (\d+) s", out.getvalue())]
    assert said and all(left == 2 * (1000 - done) for done, left in said)


def test_the_next_stage_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(drawing.time, "monotonic", lambda: now)
    out = io.StringIO()
    drawer = drawing.Drawer(Console(file=out, width=200))
    for name, pace in (("slow", 10), ("fast", 1)):
        drawer(Event(kind="started", name=name))
        for done in range(1, 40):
            now += pace
            drawer(Event(kind="progress", name=name, done=done, total=100))
    last = re.findall(r"fast (\d+)/100 .*about (\d+) s", out.getvalue())[-1]
    assert int(last[1]) == 100 - int(last[0])


@pytest.mark.parametrize(
    ("achieved", "met", "shown"), [(808, True, "≈ 810"), (808, False, "≥ 810"), (810, True, "≥ 810")]
)
def test_what_a_stage_did_in_steps_is_near_what_was_asked(achieved: int, met: bool, shown: str) -> None:
    item = Achieved(what="channels removed", requested=810, achieved=achieved, unit="channels", met=met)
    variant: Any = SimpleNamespace(lineage=[SimpleNamespace(method="prune.width", achieved=[item])])
    out = io.StringIO()
    drawing.print_verdicts(Console(file=out, width=200), verdicts.achieved(variant))
    assert shown in out.getvalue()
