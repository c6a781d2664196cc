"""What a whole run puts on its page: pictures, the strip, every layer, and what a stage measured of each."""

import json
import re
from pathlib import Path

import pytest

from compress import evaluation, pipeline
from compress.cli import main


@pytest.fixture
def page(
    tmp_path: Path,
    pictures: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """The report of a run that gives each layer its own bits."""
    monkeypatch.setattr(evaluation, "JUDGED_LATENCY_SECONDS", 0.2)
    monkeypatch.setattr(pipeline, "STAGE_LATENCY_SECONDS", 0.1)
    source = {"source": str(pictures), "count": 3, "size": 64}
    whole = {
        "schema": 1,
        "name": "decoder/small",
        "component": "tiny/decoder",
        "seed": 0,
        "data": {"calibration": source, "evaluation": source},
        "stages": [{"method": "quantize.mixed", "bytes_per_weight": 0.8, "lpips": False, "samples": 1}],
        "gates": [{"metric": "psnr", "min": 5.0}],
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(whole), encoding="utf-8")
    arguments = ["run", str(recipe), "--out", str(tmp_path / "run"), "--checkpoint", str(checkpoint)]
    assert main(arguments) == 0, capsys.readouterr().err
    return (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_the_page_of_a_run_has_what_its_stages_measured(page: str, tmp_path: Path) -> None:
    lineage = json.loads((tmp_path / "run" / "variant" / "lineage.json").read_text(encoding="utf-8"))
    (table,) = lineage["stages"][0]["tables"]
    bits = [row[table["columns"].index("bits")] for row in table["rows"]]
    drawn = re.findall(r'<svg[^>]*aria-label="[^"]*: mse alone".*?</svg>', page, re.DOTALL)
    assert len(drawn) == 1
    assert drawn[0].count('class="option') == 2 * len(table["rows"]) > 10
    assert drawn[0].count("option tone-variant chosen") == sum(one in (4, 8) for one in bits) > 0
    layers = json.loads((tmp_path / "run" / "variant" / "quantization.json").read_text(encoding="utf-8"))["layers"]
    for name, layer in layers.items():
        assert re.search(rf"{re.escape(name)}<span[^>]*>Q\w+</span></th><td>{layer['bits']} bits,", page), name
    assert page.count('<li><img src="data:image/png;base64,') == 3  # the strip
    assert page.count('<div class="slider" data-name=') == 3
    assert 'id="trade-off"' not in page  # nothing was exported
