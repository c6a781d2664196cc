import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compress.editor_schema import json_schema
from compress.recipe import shipped

PICTURES = {"source": "photographs", "count": 32, "size": 256}
EXAMPLE: dict[str, Any] = {
    "schema": 1,
    "name": "decoder/d4_c50_kd_w8a8",
    "component": "md-tiny/decoder",
    "seed": 0,
    "data": {"calibration": PICTURES, "evaluation": PICTURES},
    "stages": [
        {"method": "prune.depth", "blocks": 4},
        {"method": "prune.width", "ratio": 0.5, "round_to": 8},
        {"method": "distill.output", "steps": 400, "lr": 1e-3, "terms": {"lpips": 0.5}},
        {"method": "quantize.static", "weight_bits": 8, "activation_bits": 8, "out_of_order": "why not"},
    ],
    "gates": [{"metric": "psnr", "max_drop": 0.5}],
    "export": [{"format": "onnx"}],
}


def test_the_editor_schema_is_closed_and_knows_every_method(small_methods: None) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, a test dependency")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.Draft202012Validator(schema)
    checker.validate(EXAMPLE)
    for path, value in [
        (("stages", 0, "method"), "prune.dpth"),
        (("stages", 0, "bloks"), 4),
        (("stages", 1, "ratio"), 1.5),
        (("stages", 2, "terms"), {"lpip": 1.0}),
        (("stages", 3, "weight_bits"), 5),
        (("export", 0, "format"), "onx"),
        (("export", 0, "opst"), 21),
        (("data", "calibration", "size"), 100),
        (("sed",), 0),
        (("schema",), 2),
    ]:
        broken = json.loads(json.dumps(EXAMPLE))
        place = broken
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        assert not checker.is_valid(broken), path


def test_shipped_recipes_validate_in_a_fresh_process_with_the_real_methods() -> None:
    pytest.importorskip("jsonschema", reason="needs jsonschema, a test dependency")
    if not shipped():
        pytest.skip("no recipe is shipped yet")
    code = """
import jsonschema
from ruamel.yaml import YAML
from compress import recipe
schema = recipe.json_schema()
checker = jsonschema.Draft202012Validator(schema)
checker.check_schema(schema)
for name, path in recipe.shipped().items():
    read = recipe.read_recipe(path)
    assert read.name == name
    checker.validate(YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")))
    checker.validate(recipe.as_written(read))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
