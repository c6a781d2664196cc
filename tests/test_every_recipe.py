"""Every recipe that ships can be read, planned and judged."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image

from compress import components, feeds, registry
from compress.cli import main
from compress.plan import make_plan, with_images
from compress.recipe import Recipe, find, read_recipe, to_yaml, with_formats

RECIPES = Path(__file__).parents[1] / "recipes"
FILES = sorted(RECIPES.rglob("*.yaml"))
each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(RECIPES).as_posix())


def weights_for(recipe: Recipe, place: Path) -> Path | None:
    """A checkpoint for a preset that comes without weights: its tensors are holes in files, which take no room."""
    if components.has_weights(recipe.component):
        return None
    family, leaf = recipe.component.split("/")
    feed = feeds.of(components.kind_of(components.read_arch(components.find(recipe.component)).kind))
    for part in (leaf, *feed.COMPANIONS, *(feed.OPTIONAL if recipe.data.calibration.source == "captions" else ())):
        source, folder = components.find(f"{family}/{part}"), place / part
        folder.mkdir()
        shutil.copy(source / "arch.json", folder)
        with torch.device("meta"):
            state = components.build(components.read_arch(source)).state_dict()
        entries, end = {}, 0
        for name, tensor in state.items():
            offsets = [end, end := end + 4 * tensor.numel()]
            entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        text = json.dumps(entries).encode()
        with (folder / "weights.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
    return place


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour each, called by it: enough for the recipes that ask what was drawn."""
    folder = tmp_path_factory.mktemp("captioned")
    colours = [(r, g, b) for r in range(20, 230, 30) for g in range(20, 230, 30) for b in range(20, 230, 30)]
    names = ["{}-{}-{}".format(*colour) for colour in colours]
    for name, colour in zip(names, colours, strict=True):
        Image.new("RGB", (128, 128), colour).save(folder / f"{name}.png")
    rows = [f"{name}.png\tcolour {name}" for name in names]
    (folder / "captions.tsv").write_text("\n".join(["file\tname", *rows]) + "\n")
    return folder


def asks_what_was_drawn(recipe: Recipe) -> bool:
    return any(registry.metric_traits(gate.metric).of_asked for gate in recipe.gates)


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
def test_the_plan_shrinks_the_component(path: Path, tmp_path: Path, captioned: Path) -> None:
    pytest.importorskip("skimage", reason="extra photographs is not installed")
    pytest.importorskip("sklearn", reason="extra photographs is not installed")
    recipe = read_recipe(path)
    shown = with_images(recipe, captioned) if asks_what_was_drawn(recipe) else recipe
    plan = make_plan(shown, checkpoint=weights_for(recipe, tmp_path))
    last = plan.stages[-1].forecast
    if all(stage.method.startswith("distill.") for stage in recipe.stages):  # fewer sampling steps of the same UNet
        assert last == plan.reference
        return
    assert last.weight_bytes.high < plan.reference.weight_bytes.low
    assert last.macs.high <= plan.reference.macs.low
    assert last.parameters.low <= last.parameters.high
    assert len({stage.key for stage in plan.stages}) == len(plan.stages)


@each
def test_check_and_plan_accept_it_by_name(
    path: Path, tmp_path: Path, captioned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("skimage", reason="extra photographs is not installed")
    name = path.relative_to(RECIPES).with_suffix("").as_posix()
    assert main(["check", name]) == 0
    capsys.readouterr()
    recipe = read_recipe(path)
    checkpoint = weights_for(recipe, tmp_path)
    given = ["--checkpoint", str(checkpoint)] if checkpoint else []
    if asks_what_was_drawn(recipe):
        assert main(["plan", name, *given]) == 2
        assert "has no captioned pictures" in " ".join(capsys.readouterr().err.split())
        given += ["--images", str(captioned)]
    assert main(["plan", name, "--json", *given]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == name


def test_of_more_formats_the_recipes_own_is_first_with_its_options() -> None:
    base = read_recipe(find("text_encoder/w8a8"))
    made = with_formats(base, ["coreml", "executorch", "onnx", "ort"])
    assert [item.format for item in made.export] == ["onnx", "coreml", "executorch", "ort"]
    assert made.export[0] == base.export[0] and made.stages == base.stages
