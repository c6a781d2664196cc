"""For each method a recipe that ships, shrunk to a tiny component and run from its file to its verdicts."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import families
import pytest
from ruamel.yaml import YAML

from compress import evaluation, pipeline, registry
from compress.cli import main
from compress.components import load_variant
from compress.recipe import read_recipe, to_yaml
from compress.sampling.latents import LatentScale

pytestmark = pytest.mark.slow
SHIPPED = Path(__file__).parents[2] / "recipes"
RECIPES = sorted((SHIPPED / "decoder").glob("*.yaml"))
STEPS = sorted((SHIPPED / "unet").glob("s[0-9]*.yaml"))  # sampling in so many
BY_METHOD = {read_recipe(path).stages[0].method: path for path in reversed(STEPS)}  # the plain ones
TRAINING = {"steps": 2, "batch": 1, "pixels": 32, "precision": "float32"}
FEW = {"samples": 1, "latent_size": 4, "clip": False}
SHRUNK: dict[str, dict[str, Any]] = {
    "prune.depth": {"blocks": 1, "samples": 1, "latent_size": 4},
    "prune.width": {"round_to": 4},
    "distill.output": TRAINING,
    "distill.feature": TRAINING,
    "distill.qat": TRAINING,
    "quantize.adaround": FEW | {"steps": 2, "group_size": None},
    "quantize.gptq": FEW | {"sweeps": 1, "group_size": None},
    "quantize.mixed": FEW | {"lpips": False, "group_size": None, "bytes_per_weight": 0.8},
    "quantize.palette": {"bits": 4},
    "quantize.smooth": {"clip": False},
    "quantize.static": {"clip": False},
    "quantize.rtn": {"clip": False},
}
LIBRARIES = {  # what a method imports
    "quantize.mixed": "scipy",
    "quantize.nncf": "nncf",
    "quantize.neural_compressor": "neural_compressor",
    "quantize.onnxruntime": "onnxruntime",
    "quantize.torchao": "torchao",
}
SHRUNK |= {name: {"samples": 2} for name in LIBRARIES if name not in SHRUNK}


def showing() -> dict[str, Path]:
    """For each recipe that is the first to show some method: which."""
    methods = {path: [stage.method for stage in read_recipe(path).stages] for path in RECIPES}
    by_stages = sorted(RECIPES, key=lambda path: (-len(methods[path]), path.name))
    first = {method: path for path in reversed(by_stages) for method in methods[path]}
    return {path.stem: path for path in first.values()}


def test_every_method_for_decoders_is_in_a_recipe_that_ships() -> None:
    shown = {stage.method for path in showing().values() for stage in read_recipe(path).stages}
    assert shown >= {*registry.names("prune"), *registry.names("quantize")}


@pytest.mark.parametrize("name", sorted(showing()))
def test_it_runs(name: str, tmp_path: Path, checkpoint: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "JUDGED_LATENCY_SECONDS", 0.05)
    monkeypatch.setattr(pipeline, "STAGE_LATENCY_SECONDS", 0.05)
    recipe = read_recipe(showing()[name])
    for stage in recipe.stages:
        if stage.method in LIBRARIES and importlib.util.find_spec(LIBRARIES[stage.method]) is None:
            pytest.skip(f"{LIBRARIES[stage.method]} is not installed")
    written = YAML(typ="safe").load(to_yaml(recipe))
    source = {"source": str(pictures), "count": 2, "size": 64}
    written |= {"component": "tiny/decoder", "data": {"calibration": source, "evaluation": source}, "export": []}
    written["gates"] = [{"metric": "psnr", "max_drop": 60}]
    written["stages"] = [stage | SHRUNK.get(stage["method"], {}) for stage in written["stages"]]
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(written))
    assert main(["run", str(path), "--out", str(tmp_path / "out"), "--checkpoint", str(checkpoint)]) == 0
    variant = load_variant(tmp_path / "out" / "variant")
    assert [record.method for record in variant.lineage] == [stage.method for stage in recipe.stages]
    verdicts = json.loads((tmp_path / "out" / "verdicts.json").read_text())
    assert verdicts and all(verdict["passed"] for verdict in verdicts)


def test_every_method_is_in_a_recipe_that_ships() -> None:
    shown = {stage.method for path in (*RECIPES, *STEPS) for stage in read_recipe(path).stages}
    assert shown >= set(registry.methods())


@pytest.mark.parametrize("path", BY_METHOD.values(), ids=lambda path: path.stem)
def test_steps_are_distilled(path: Path, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers", reason="captions go through Hugging Face's tokenizers")
    monkeypatch.setattr(pipeline, "STAGE_LATENCY_SECONDS", 0.05)
    family = families.write(tmp_path / "family", ["red", "blue"], LatentScale(mean=(0.0,) * 8, std=(1.0,) * 8))
    recipe = read_recipe(path)
    written = YAML(typ="safe").load(to_yaml(recipe))
    source = {"source": str(pictures), "count": 2, "size": 64}
    drawn = written["data"]["drawn"] | {"count": 1, "steps": 1, "teacher_steps": 2}
    written |= {"component": "tiny/unet", "data": {"calibration": source, "evaluation": source, "drawn": drawn}}
    written |= {"export": [], "gates": [{"metric": "lpips", "max": 1000}]}
    few = TRAINING | {"steps": 1} | ({"first": 2, "last": 1} if "first" in written["stages"][0] else {})
    written["stages"] = [stage | few for stage in written["stages"]]
    (tmp_path / "recipe.yaml").write_text(json.dumps(written))
    out = tmp_path / "out"
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(out), "--checkpoint", str(family)]) == 0
    (record,) = load_variant(out / "variant").lineage
    assert record.method == recipe.stages[0].method and all(item.met for item in record.achieved)
    judged = {(row["metric"], row["passed"]) for row in json.loads((out / "verdicts.json").read_text())}
    assert ("lpips", True) in judged
