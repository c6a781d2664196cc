"""Every recipe that ships can be read, planned and judged."""

import json
from pathlib import Path

import pytest

from compress import registry
from compress.cli import main
from compress.plan import make_plan
from compress.recipe import read_recipe, to_yaml

RECIPES = Path(__file__).parents[1] / "recipes"
FILES = sorted(RECIPES.rglob("*.yaml"))
each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(RECIPES).as_posix())


def test_there_are_recipes() -> None:
    assert RECIPES / "decoder" / "d4_c50_kd_w8a8.yaml" in FILES


@each
def test_the_name_is_the_path_and_the_recipe_survives_being_written(path: Path, tmp_path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name == path.relative_to(RECIPES).with_suffix("").as_posix()
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(recipe), encoding="utf-8")
    assert read_recipe(copy) == recipe


@each
def test_every_gate_has_a_metric_and_something_is_gated(path: Path) -> None:
    gates = read_recipe(path).gates
    assert gates
    for gate in gates:
        assert gate.metric in registry.metrics()
        assert registry.metric_traits(gate.metric).needs_net == (gate.net is not None)


@each
def test_the_plan_shrinks_the_component(path: Path) -> None:
    pytest.importorskip("skimage", reason="extra photographs is not installed")
    pytest.importorskip("sklearn", reason="extra photographs is not installed")
    plan = make_plan(read_recipe(path))
    last = plan.stages[-1].forecast
    assert last.weight_bytes.high < plan.reference.weight_bytes.low
    assert last.macs.high <= plan.reference.macs.low
    assert last.parameters.low <= last.parameters.high
    assert len({stage.key for stage in plan.stages}) == len(plan.stages)


@each
def test_check_and_plan_accept_it_by_name(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage", reason="extra photographs is not installed")
    name = path.relative_to(RECIPES).with_suffix("").as_posix()
    assert main(["check", name]) == 0
    capsys.readouterr()
    assert main(["plan", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == name
