import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress.errors import UserError
from compress.recipe import (
    Gate,
    Recipe,
    RecipeError,
    as_written,
    digest,
    find,
    names_under,
    read_recipe,
    to_yaml,
)

pytestmark = pytest.mark.usefixtures("small_methods")

# DESIGN.md's example, word for word.
EXAMPLE = """schema: 1
name: decoder/d4_c50_kd_w8a8          # equals the path under recipes/
component: md-tiny/decoder            # a preset, or a folder given with --checkpoint
seed: 0
data:
  calibration: {source: photographs, count: 32, size: 256}
  evaluation: {source: photographs, count: 16, size: 256}
stages:
  - {method: prune.depth, blocks: 4}
  - {method: prune.width, ratio: 0.5, round_to: 8}
  - {method: distill.output, steps: 400, lr: 1.0e-3}
  - {method: quantize.static, weight_bits: 8, activation_bits: 8}
gates:
  - {metric: psnr, against: reference, statistic: mean, max_drop: 0.5}      # dB, both measured to ground truth
  - {metric: lpips, net: st-alex, against: reference, max_rise: 0.01}
  - {metric: latency, against: reference, max_ratio: 0.5}
export:
  - {format: onnx}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, so that messages hold short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _read(text: str) -> Recipe:
    Path("r.yaml").write_text(text, encoding="utf-8")
    return read_recipe("r.yaml")


def _messages(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        _read(text)
    return str(caught.value).split("\n")


def _with(**changes: str) -> str:
    """EXAMPLE with whole top-level parts replaced; no comments, one part after the other."""
    parts: dict[str, list[str]] = {}
    for line in EXAMPLE.splitlines():
        if not line.startswith(" "):
            parts[line.partition(":")[0]] = []
        parts[list(parts)[-1]].append(line)
    return "\n".join(changes.get(key, "\n".join(lines)) for key, lines in parts.items()) + "\n"


def _stages(*stages: str) -> str:
    return _with(stages="\n".join(["stages:", *(f"  - {stage}" for stage in stages)]))


def test_the_example_reads_as_written(folder: Path) -> None:
    recipe = _read(EXAMPLE)
    assert (recipe.name, recipe.component, recipe.seed) == ("decoder/d4_c50_kd_w8a8", "md-tiny/decoder", 0)
    assert (recipe.data.calibration.count, recipe.data.evaluation.count, recipe.data.evaluation.size) == (32, 16, 256)
    assert [(stage.method, stage.config.model_dump()) for stage in recipe.stages] == [
        ("prune.depth", {"blocks": 4, "keep": ()}),
        ("prune.width", {"ratio": 0.5, "round_to": 8}),
        ("distill.output", {"steps": 400, "lr": 0.001, "terms": {"lpips": 0.0}}),
        ("quantize.static", {"weight_bits": 8, "activation_bits": 8, "observer": "mse"}),
    ]
    assert [(g.metric, g.net, g.statistic, g.of, g.max_drop, g.max_rise, g.max_ratio) for g in recipe.gates] == [
        ("psnr", None, "mean", "candidate", 0.5, None, None),
        ("lpips", "st-alex", "mean", "candidate", None, 0.01, None),
        ("latency", None, "mean", "candidate", None, None, 0.5),
    ]
    assert [(item.format, item.config.model_dump()) for item in recipe.export] == [("onnx", {"opset": 21})]


def test_four_mistakes_are_four_lines(folder: Path) -> None:
    bad = """schema: 1
name: bad
component: md-tiny/decoder
seed: 0
data:
  calibration: {source: photographs, count: 32, size: 256}
  evaluation: {source: photographs, count: 16, size: 256}
stages:
  - method: prune.width
    ratio: 1.5
  - method: distill.output
    steps: "400"
    learning_rate: 1e-3
    setps: 4
  - method: quantize.statci
    weight_bits: 8
gates:
  - metric: psnr
    max_drop: 0.5
"""
    assert _messages(bad) == [
        "r.yaml:10:5: stages.0.ratio: Input should be less than 1, not 1.5",
        'r.yaml:12:5: stages.1.steps: Input should be a valid integer, not "400"',
        "r.yaml:13:5: stages.1.learning_rate: unknown key (known: steps, lr, terms, method, out_of_order)",
        "r.yaml:14:5: stages.1.setps: unknown key; did you mean 'steps'? "
        "(known: steps, lr, terms, method, out_of_order)",
        "r.yaml:15:5: stages.2.method: no method 'quantize.statci'; did you mean 'quantize.static' or 'quantize.rtn'? "
        "(known: prune.depth, prune.width, distill.output, quantize.rtn, quantize.static)",
    ]


def test_mistakes_of_every_part_come_together(folder: Path) -> None:
    bad = """schema: 2
name: ../bad
compnent: md-tiny/decoder
seed: -1
data:
  calibration: {source: photographs, count: 0, size: 100}
  evaluation: {source: photographs, cuont: 16, size: 256}
stages:
  - prune.depth
  - {metod: prune.width}
gates: {metric: psnr}
export:
  - {format: onx}
seed: 3
"""
    assert _messages(bad) == [
        "r.yaml:1:1: component: Field required",
        "r.yaml:1:1: schema: Input should be 1, not 2",
        "r.yaml:2:1: name: String should match pattern "
        "'^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$', not \"../bad\"",
        "r.yaml:3:1: compnent: unknown key; did you mean 'component'? "
        "(known: schema, name, component, seed, data, stages, gates, export)",
        "r.yaml:4:1: seed: Input should be greater than or equal to 0, not -1",
        "r.yaml:6:38: data.calibration.count: Input should be greater than or equal to 1, not 0",
        "r.yaml:6:48: data.calibration.size: Input should be a multiple of 8, not 100",
        "r.yaml:7:3: data.evaluation.count: Field required",
        "r.yaml:7:37: data.evaluation.cuont: unknown key; did you mean 'count'? (known: source, count, size)",
        "r.yaml:9:5: stages.0: Input should be a mapping, e.g. {method: prune.depth}",
        "r.yaml:10:5: stages.1.method: Field required "
        "(known: prune.depth, prune.width, distill.output, quantize.rtn, quantize.static)",
        "r.yaml:10:6: stages.1.metod: unknown key; did you mean 'method'?",
        "r.yaml:11:1: gates: Input should be a valid array",
        "r.yaml:13:6: export.0.format: no format 'onx'; did you mean 'onnx'? (known: onnx)",
        "r.yaml:14:1: seed: the key is there twice (first in line 4); keep one",
    ]


def test_a_merge_key_is_an_unknown_key(folder: Path) -> None:
    text = _stages("{method: prune.depth, blocks: 4, <<: {keep: []}}")
    assert _messages(text) == ["r.yaml:9:38: stages.0.<<: unknown key (known: blocks, keep, method, out_of_order)"]


def test_a_byte_order_mark_and_windows_line_ends_are_nothing(folder: Path) -> None:
    plain = _read(EXAMPLE)
    Path("r.yaml").write_bytes(b"\xef\xbb\xbf" + EXAMPLE.replace("\n", "\r\n").encode())
    assert read_recipe("r.yaml") == plain


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 1e-3), ("1.0e-3", 1e-3), ("1", 1.0), ("+.5", 0.5), ("0x10", 16.0), ("1_000.5", 1000.5), ("010", 10.0)],
)
def test_numbers_are_yaml_1_2(folder: Path, written: str, value: float) -> None:
    recipe = _read(_stages(f"{{method: distill.output, lr: {written}}}"))
    assert recipe.stages[0].config.model_dump()["lr"] == value


@pytest.mark.parametrize(
    ("key", "written", "message"),
    [
        ("lr", "yes", 'Input should be a valid number, not "yes"'),
        ("lr", "true", "Input should be a valid number, not true"),
        ("lr", '"1e-3"', 'Input should be a valid number, not "1e-3"'),
        ("lr", ".nan", "Input should be a finite number, not NaN"),
        ("lr", "-.inf", "Input should be a finite number, not -Infinity"),
        ("lr", "1e999", "Input should be a finite number, not Infinity"),
        ("lr", "2001-01-01", 'Input should be a valid number, not "2001-01-01"'),
        ("lr", "1_", 'Input should be a valid number, not "1_"'),
        ("lr", "", "Input should be a valid number, not null"),
        ("lr", "[1]", "Input should be a valid number"),
        ("steps", "400.0", "Input should be a valid integer, not 400.0"),
        ("steps", "true", "Input should be a valid integer, not true"),
        ("terms", "{lpips: x}", 'Input should be a valid number, not "x"'),
    ],
)
def test_types_are_strict(folder: Path, key: str, written: str, message: str) -> None:
    place = "terms.lpips" if key == "terms" else key
    column = 38 if key == "terms" else 30
    found = _messages(_stages(f"{{method: distill.output, {key}: {written}}}"))
    assert found == [f"r.yaml:9:{column}: stages.0.{place}: {message}"]


def test_a_union_is_one_line_and_a_cross_check_names_the_stage(folder: Path) -> None:
    assert _messages(_stages("{method: quantize.rtn, group_size: some}")) == [
        'r.yaml:9:28: stages.0.group_size: Input should be a valid integer, not "some" or '
        "Input should be 'all', not \"some\""
    ]
    assert _messages(_stages("{method: quantize.rtn, bits: 4, group_size: all}")) == [
        "r.yaml:9:5: stages.0: 4 bits need groups"
    ]


def test_keys_of_records_inside_a_method_have_a_guess(folder: Path) -> None:
    assert _messages(_stages("{method: distill.output, terms: {lpip: 1}}")) == [
        "r.yaml:9:38: stages.0.terms.lpip: unknown key; did you mean 'lpips'? (known: lpips, method, out_of_order)"
    ]


def test_a_key_must_be_a_word(folder: Path) -> None:
    assert _messages(_stages("{method: prune.depth, blocks: 4, [a, b]: 1}")) == [
        "r.yaml:9:38: stages.0.?: a key must be a single word"
    ]


def test_stages_stand_in_order(folder: Path) -> None:
    assert _messages(_stages("{method: distill.output}", "{method: prune.depth, blocks: 1}")) == [
        "r.yaml:10:6: stages.1.method: prune.depth comes after distill.output, but the order is "
        "prune, distill, quantize; move it, or add out_of_order: why"
    ]
    late = "{method: prune.depth, blocks: 1, out_of_order: a second cut after recovery}"
    recipe = _read(_stages("{method: distill.output}", late, "{method: distill.output}"))
    assert [stage.out_of_order for stage in recipe.stages] == [None, "a second cut after recovery", None]
    for empty in ('""', '"  "', "3"):
        found = _messages(_stages("{method: distill.output}", late.replace("a second cut after recovery", empty)))
        assert [line.split(":")[3].strip() for line in found] == ["stages.1.out_of_order"]


def test_a_variant_is_quantized_once(folder: Path) -> None:
    assert _messages(_stages("{method: quantize.rtn}", "{method: quantize.static, out_of_order: why not}")) == [
        "r.yaml:10:6: stages.1.method: the variant is already quantized by stages.0 (quantize.rtn); "
        "keep one quantize stage"
    ]


def test_stages_are_at_least_one_and_no_format(folder: Path) -> None:
    assert "r.yaml:8:1: stages: List should have at least 1 item" in _messages(_with(stages="stages: []"))[0]
    found = _messages(_stages("{method: export.onnx}"))
    assert found[0].startswith("r.yaml:9:6: stages.0.method: no method 'export.onnx' (known: prune.depth,")


def test_a_format_is_written_once_and_validated_by_its_own_file(folder: Path) -> None:
    assert _messages(_with(export="export:\n  - {format: onnx, opset: 20}\n  - {format: onnx}")) == [
        "r.yaml:18:20: export.0.opset: Input should be greater than or equal to 21, not 20",
        "r.yaml:19:6: export.1.format: onnx is listed twice; each format is written once",
    ]
    assert _read(_with(export="")).export == ()


def test_the_name_is_the_path_under_recipes(folder: Path) -> None:
    path = Path("recipes/decoder/d4_c50_kd_w8a8.yaml")
    path.parent.mkdir(parents=True)
    path.write_text(EXAMPLE)
    assert read_recipe(path).name == "decoder/d4_c50_kd_w8a8"
    moved = path.rename("recipes/decoder/other.yaml")
    with pytest.raises(RecipeError) as caught:
        read_recipe(moved)
    assert str(caught.value) == (
        "recipes/decoder/other.yaml:2:1: name: the name is the path under recipes/: "
        "'decoder/other', not 'decoder/d4_c50_kd_w8a8'"
    )
    assert names_under(Path("recipes")) == {"decoder/other": moved}


def test_a_recipe_is_frozen(folder: Path) -> None:
    recipe = _read(EXAMPLE)
    with pytest.raises(AttributeError):
        recipe.seed = 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        recipe.gates[0].min = 1.0
    with pytest.raises(ValueError, match="frozen"):
        recipe.data.calibration.count = 1


def _shuffled(value: Any, order: random.Random) -> Any:
    if isinstance(value, list):
        return [_shuffled(item, order) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _shuffled(value[key], order) for key in order.sample(list(value), len(value))}


SLOW_FIXTURE = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = st.text(min_size=1, max_size=12).filter(lambda text: text.strip() != "")


@st.composite
def _documents(draw: st.DrawFn) -> dict[str, Any]:
    count, small = st.integers(1, 100), st.floats(1e-9, 0.999)
    pictures = st.fixed_dictionaries(
        {"source": WORDS, "count": count, "size": st.integers(8, 512).map(lambda n: 8 * n)}
    )
    stages: list[dict[str, Any]] = [
        {"method": "prune.depth", "blocks": draw(count), "keep": draw(st.lists(WORDS, max_size=3))}
    ]
    if draw(st.booleans()):
        stages.append({"method": "distill.output", "lr": draw(small), "terms": {"lpips": draw(small)}})
        stages.append({"method": "prune.width", "ratio": draw(small), "out_of_order": draw(WORDS)})
    if draw(st.booleans()):
        stages.append({"method": "quantize.rtn", "group_size": draw(st.one_of(st.just("all"), count))})
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    gates = draw(
        st.lists(st.fixed_dictionaries({"metric": st.sampled_from(["psnr", "ssim"]), "min": numbers}), max_size=3)
    )
    return {
        "schema": 1,
        "name": draw(st.from_regex(r"[a-z0-9_]{1,8}(/[a-z]{1,5})?", fullmatch=True)),
        "component": draw(WORDS),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "data": {"calibration": draw(pictures), "evaluation": draw(pictures)},
        "stages": stages,
        "gates": gates,
        "export": [{"format": "onnx"}] if draw(st.booleans()) else [],
    }


@SLOW_FIXTURE
@given(document=_documents(), seed=st.integers(0, 2**16))
def test_yaml_and_back_and_any_order_of_keys(folder: Path, document: dict[str, Any], seed: int) -> None:
    recipe = _read(json.dumps(document))  # JSON is YAML
    assert _read(to_yaml(recipe)) == recipe
    shuffled = _read("# a comment\n" + json.dumps(_shuffled(as_written(recipe), random.Random(seed)), indent=1))
    assert digest(shuffled) == digest(recipe)


@pytest.mark.parametrize("word", ["0\x85", "a\u2028b", "tab\there", " edge ", "x\ny", "a\x07b", "a: b # c"])
def test_a_word_with_odd_characters_comes_back_as_it_was(folder: Path, word: str) -> None:
    document = as_written(_read(EXAMPLE))
    document["stages"][0]["keep"] = [word]
    recipe = _read(json.dumps(document))
    assert recipe.stages[0].config.keep == (word,)
    assert _read(to_yaml(recipe)) == recipe


def test_a_digest_sees_values_and_nothing_else(folder: Path) -> None:
    first = digest(_read(EXAMPLE))
    assert len(first) == 64
    for same in (
        EXAMPLE.replace("# dB, both measured to ground truth", "# another word"),
        EXAMPLE.replace("lr: 1.0e-3", "lr: 0.001"),
        EXAMPLE.replace(", round_to: 8", ""),  # the default, left out
        EXAMPLE.replace("net: st-alex, ", ""),
    ):
        assert same != EXAMPLE
        assert digest(_read(same)) == first
    one, other = (_read(EXAMPLE.replace("max_drop: 0.5", f"max_drop: {text}")) for text in ("1", "1.0"))
    assert digest(one) == digest(other)
    for different in (EXAMPLE.replace("seed: 0", "seed: 1"), EXAMPLE.replace("ratio: 0.5", "ratio: 0.51")):
        assert digest(_read(different)) != first


def test_a_digest_refuses_nan(folder: Path) -> None:
    recipe = _read(EXAMPLE)
    nan = Gate.model_construct(metric="psnr", net=None, min=float("nan"))
    broken = Recipe(name="x", component="y", seed=0, data=recipe.data, stages=recipe.stages, gates=(nan,), export=())
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest(broken)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.integers(0, len(EXAMPLE)),
    size=st.integers(0, 40),
    junk=st.text(alphabet="{}[]:,-#&*!|>'\"%@`\t\n ab1.\\\u00e9\x00", max_size=8),
)
def test_a_broken_file_is_a_recipe_error_and_nothing_else(folder: Path, cut: int, size: int, junk: str) -> None:
    try:
        _read(EXAMPLE[:cut] + junk + EXAMPLE[cut + size :])
    except RecipeError as error:
        assert str(error).startswith("r.yaml")


def test_find_takes_a_path_or_a_shipped_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"decoder/d4_c50": Path("/shipped/decoder/d4_c50.yaml")}
    monkeypatch.setattr("compress.recipe.shipped", lambda: known)
    assert find("decoder/d4_c50") == known["decoder/d4_c50"]
    assert find("some/where.yaml") == Path("some/where.yaml")  # reading it says that it is not there
    Path("bare").write_text(EXAMPLE)
    assert find("bare") == Path("bare")
    with pytest.raises(UserError) as caught:
        find("decoder/d4_c5")
    assert str(caught.value) == (
        "'decoder/d4_c5' is neither a recipe's name nor a file; did you mean 'decoder/d4_c50'? (known: decoder/d4_c50)"
    )
    with pytest.raises(UserError, match=r"'\.' is a folder, not a recipe"):
        find(".")
