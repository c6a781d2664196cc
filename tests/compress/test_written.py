import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.recipe import Gate, RecipeError, json_schema, read_recipe
from compress.registry import metrics

pytestmark = pytest.mark.usefixtures("small_methods")

BEFORE = """schema: 1
name: a
component: b
seed: 0
data: {calibration: {source: c, count: 1, size: 64}, evaluation: {source: c, count: 1, size: 64}}
stages: [{method: quantize.rtn}]
gates:
  - """
_LIMITS = ("min", "max", "max_drop", "max_rise", "max_ratio")


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (
            "{metric: psrn, min: 3}",
            "8:6: gates.0.metric: no metric 'psrn'; did you mean 'psnr'? "
            "(known: clip_rate, colour_shift, cosine, grid, latency, latent_sqnr, lpips, ms_ssim, peak_memory, psnr, size, "
            "sqnr, ssim, task_score)",
        ),
        (
            "{metric: psnr, max_rise: 1}",
            "8:20: gates.0.max_rise: psnr takes no max_rise; limits that fit it: min, max_drop",
        ),
        (
            "{metric: lpips, max_drop: 1}",
            "8:21: gates.0.max_drop: lpips takes no max_drop; limits that fit it: max, max_rise",
        ),
        (
            "{metric: latency, min: 1}",
            "8:23: gates.0.min: latency takes no min; limits that fit it: max, max_ratio",
        ),
        (
            "{metric: psnr}",
            "8:5: gates.0: a gate has exactly one limit, here none; limits that fit psnr: min, max_drop",
        ),
        (
            "{metric: psnr, min: 3, max_drop: 1}",
            "8:5: gates.0: a gate has exactly one limit, here min and max_drop; limits that fit psnr: min, max_drop",
        ),
        (
            "{metric: psnr, net: alex, min: 3}",
            "8:20: gates.0.net: psnr has no net; only lpips has one",
        ),
        (
            "{metric: lpips, net: resnet, max: 3}",
            "8:21: gates.0.net: Input should be 'st-alex', 'alex', 'vgg' or 'squeeze', not \"resnet\"",
        ),
        (
            "{metric: psnr, min: .nan}",
            "8:20: gates.0.min: Input should be a finite number, not NaN",
        ),
        (
            "{metric: psnr, min: '30'}",
            '8:20: gates.0.min: Input should be a valid number, not "30"',
        ),
        (
            "{metric: psnr, max_drop: 0.5, undecided: pass}",
            "8:35: gates.0.undecided: only latency can be undecided; leave it out",
        ),
        (
            "{metric: latency, max_ratio: 0}",
            "8:23: gates.0.max_ratio: must be above 0, not 0.0",
        ),
        (
            "{metric: size, of: reference, max: 9}",
            "8:20: gates.0.of: size is taken of the candidate; leave 'of' out",
        ),
        (
            "{metric: size, against: ground_truth, max: 9}",
            "8:20: gates.0.against: size is compared with the reference; there is no ground truth of it",
        ),
        (
            "{metric: size, statistic: p5, max: 9}",
            "8:20: gates.0.statistic: size is one number for the variant, not one per picture; leave statistic out",
        ),
        (
            "{metric: psnr, of: reference, min: 9}",
            "8:20: gates.0.of: the reference against itself says nothing; write 'against: ground_truth'",
        ),
        (
            "{metric: psnr, against: ground_truth, max_drop: 1}",
            "8:43: gates.0.max_drop: max_drop compares the candidate with the reference; leave out "
            "'of' and 'against', or use min",
        ),
        (
            "{metric: psnr, minimum: 3}",
            "8:20: gates.0.minimum: unknown key; did you mean 'min'? (known: metric, net, against, of, "
            "statistic, min, max, max_drop, max_rise, max_ratio, max_gain, undecided)",
        ),
        (
            "psnr",
            '8:5: gates.0: Input should be an object, not "psnr"',
        ),
        (
            "{min: 3}",
            "8:5: gates.0.metric: Field required",
        ),
    ],
)
def test_a_gate_that_cannot_be_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(BEFORE + gate)
    with pytest.raises(RecipeError) as caught:
        read_recipe("r.yaml")
    assert str(caught.value).split("\n")[0] == f"r.yaml:{message}"


def _every_gate() -> Iterator[dict[str, Any]]:
    """Every combination of words, with one limit (or two, or none)."""
    limits = [{}, {"min": 1, "max_drop": 1}, *({name: value} for name in _LIMITS for value in (1, -0.5))]
    for metric, limit in itertools.product((*metrics(), "mse"), limits):
        for of, against in itertools.product((None, "candidate", "reference"), (None, "reference", "ground_truth")):
            for statistic, net in ((None, None), ("median", None), ("p5", None), ("best", None), (None, "alex")):
                words = {"metric": metric, "of": of, "against": against, "statistic": statistic, "net": net}
                yield {key: value for key, value in words.items() if value is not None} | limit


def _accepts(gate: dict[str, Any]) -> bool:
    try:
        Gate.model_validate(gate)
    except ValueError:
        return False
    return True


def test_the_judge_accepts_the_same_gates() -> None:
    from eval.gates import GateSpec, problems

    different = [gate for gate in _every_gate() if _accepts(gate) is bool(problems(GateSpec(**gate)))]
    assert different == []


def test_the_editor_schema_accepts_the_same_gates() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, a test dependency")
    schema = json_schema()
    gate_schema = {**schema["properties"]["gates"]["items"], "$defs": schema["$defs"]}
    checker = jsonschema.Draft202012Validator(gate_schema)
    sample = random.Random(0).sample(list(_every_gate()), 1000)
    different = [gate for gate in sample if checker.is_valid(gate) is not _accepts(gate)]
    assert different == []
    assert any(map(checker.is_valid, sample))
