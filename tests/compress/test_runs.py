"""A run directory belongs to one recipe, and says how it stands."""

import json

import pytest

from compress import extras
from compress.errors import UserError
from compress.runs import Event, RunFolder, environment

PLAN = {"recipe": "decoder/d4"}


def begin(folder, digest="a" * 64):
    folder.begin(digest=digest, key="k" * 64, recipe_text="schema: 1\n", plan=PLAN)


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "out" / "run")


def test_a_new_run_writes_down_what_it_is(run):
    assert run.status == {}
    begin(run)
    assert run.status["state"] == "running" and run.status["recipe"] == "decoder/d4"
    assert (run.root / "recipe.yaml").read_text() == "schema: 1\n"
    assert json.loads((run.root / "plan.json").read_text()) == PLAN
    assert json.loads((run.root / "environment.json").read_text()).keys() >= {"python", "host", *extras.required()}


def test_the_same_recipe_goes_on(run):
    begin(run)
    run.note(Event(kind="started", name="1/2 prune.depth"))
    begin(run)
    run.note(Event(kind="cached", name="1/2 prune.depth"))
    kinds = [json.loads(line)["kind"] for line in (run.root / "events.jsonl").read_text().splitlines()]
    assert kinds == ["started", "cached"]


def test_another_recipe_is_refused_and_nothing_is_changed(run):
    begin(run)
    before = {p.name: p.read_bytes() for p in run.root.iterdir()}
    with pytest.raises(UserError, match=r"a run of another recipe \(decoder/d4\); choose another --out, or delete it"):
        begin(run, digest="b" * 64)
    assert {p.name: p.read_bytes() for p in run.root.iterdir()} == before


def test_a_folder_of_something_else_is_refused(run):
    run.root.mkdir(parents=True)
    (run.root / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="exists and is no run directory"):
        begin(run)
    assert [p.name for p in run.root.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_is_fine_and_a_file_is_not(run, tmp_path):
    run.root.mkdir(parents=True)
    begin(run)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="no run directory"):
        begin(RunFolder(tmp_path / "file"))


@pytest.mark.parametrize("text", ["{", "[]", '"running"', "7"])
def test_a_status_that_is_damaged_is_named(run, text):
    begin(run)
    (run.root / "status.json").write_text(text)
    with pytest.raises(UserError, match=r"status\.json"):
        begin(run)


def test_a_run_ends_in_a_state(run):
    begin(run)
    run.finish("passed", digest="a" * 64, key="k" * 64, recipe="decoder/d4")
    assert run.status == {
        "schema": 1,
        "state": "passed",
        "recipe": "decoder/d4",
        "recipe_digest": "a" * 64,
        "variant_key": "k" * 64,
    }


def test_events_hold_what_was_said_and_when(run):
    begin(run)
    run.note(Event(kind="finished", name="x", seconds=1.5, text="done", done=2, total=3))
    (row,) = [json.loads(line) for line in (run.root / "events.jsonl").read_text().splitlines()]
    assert row.pop("at") > 1.6e9
    assert row == {"kind": "finished", "name": "x", "seconds": 1.5, "text": "done", "done": 2, "total": 3}


def test_measurements_replace_what_was_there_and_refuse_what_is_no_number(run):
    begin(run)
    run.write_measurements([{"metric": "psnr", "value": 1.0}])
    run.write_measurements([{"metric": "psnr", "value": 30.5}, {"metric": "ssim", "value": 0.9}])
    lines = (run.root / "measurements.jsonl").read_text().splitlines()
    assert [json.loads(line)["value"] for line in lines] == [30.5, 0.9]
    with pytest.raises(ValueError, match="JSON compliant"):
        run.write_measurements([{"value": float("nan")}])
    assert (run.root / "measurements.jsonl").read_text().splitlines() == lines


def test_the_environment_names_versions():
    import torch

    found = environment()
    assert found["torch"].startswith(torch.__version__.split("+")[0]) and found["torch threads"].isdigit()
