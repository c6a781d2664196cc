"""A plan's keys change with what changes the result, and with nothing else; its figures come from the architecture."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
from PIL import Image
from safetensors.torch import load_file, save_file

from compress.components import build, save_variant
from compress.errors import UserError
from compress.nn import cost
from compress.plan import CannotHold, make_plan, with_images
from compress.recipe import PlannedConfig, PlannedExport, find, read_recipe
from compress.registry import load

RECIPE = """schema: 1
name: decoder/tiny
component: tiny/decoder
seed: 0
data:
  calibration: {{source: {photographs}, count: 2, size: 64}}
  evaluation: {{source: {photographs}, count: 2, size: 64}}
stages:
  - {{method: prune.depth, blocks: 1}}
  - {{method: prune.width, ratio: 0.5, round_to: 4}}
  - {{method: distill.output, steps: 2}}
  - {{method: quantize.static}}
gates:
  - {{metric: psnr, against: reference, statistic: mean, max_drop: 3.0}}
"""


def photographs(folder, seed=0):
    """Noise enough that both splits get some."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for number in range(24):
        pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    save_variant(tiny.decoder(), folder / "checkpoint" / "decoder")
    save_variant(tiny.encoder(), folder / "checkpoint" / "encoder")
    photographs(folder / "photographs")
    (folder / "tiny.yaml").write_text(RECIPE.format(photographs=folder / "photographs"))
    return folder


@pytest.fixture(scope="module")
def recipe(made):
    return read_recipe(made / "tiny.yaml")


@pytest.fixture(scope="module")
def plan(made, recipe):
    return make_plan(recipe, checkpoint=made / "checkpoint")


def keys(plan):
    return [stage.key for stage in plan.stages]


def changed(plan, other):
    """Which stages have another key, as a row of 0 and 1."""
    return [int(a != b) for a, b in zip(keys(plan), keys(other), strict=True)]


def with_stage(recipe, index, **update):
    stage = recipe.stages[index]
    config = type(stage.config)(**stage.config.model_dump() | update)
    return replace(recipe, stages=(*recipe.stages[:index], replace(stage, config=config), *recipe.stages[index + 1 :]))


def test_the_same_recipe_has_the_same_keys(plan, made):
    again = make_plan(read_recipe(made / "tiny.yaml"), checkpoint=made / "checkpoint")
    assert again == plan and len(set(keys(plan))) == 4
    assert plan.variant_key == keys(plan)[-1] and all(len(key) == 64 for key in keys(plan))


def test_a_changed_stage_changes_itself_and_all_behind_it(plan, made, recipe):
    for index, update in ((0, {"blocks": 2}), (1, {"ratio": 0.25}), (2, {"steps": 3}), (3, {"clip": False})):
        other = make_plan(with_stage(recipe, index, **update), checkpoint=made / "checkpoint")
        assert changed(plan, other) == [0] * index + [1] * (4 - index)
        assert other.digest != plan.digest


def test_the_seed_counts(plan, made, recipe):
    other = make_plan(replace(recipe, seed=1), checkpoint=made / "checkpoint")
    assert changed(plan, other) == [1, 1, 1, 1] and other.teacher_key == plan.teacher_key


def test_a_name_and_gates_change_no_result(plan, made, recipe):
    other = make_plan(replace(recipe, name="decoder/other", gates=()), checkpoint=made / "checkpoint")
    assert keys(other) == keys(plan) and other.digest != plan.digest


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_one_other_weight_is_another_teacher(plan, made, recipe, tmp_path, part):
    save_variant(tiny.decoder(), tmp_path / "decoder")
    save_variant(tiny.encoder(), tmp_path / "encoder")
    same = make_plan(recipe, checkpoint=tmp_path)
    assert keys(same) == keys(plan)  # wherever the folder lies
    tensors = load_file(tmp_path / part / "weights.safetensors")
    tensors["conv_in.bias"][0] += 1e-3
    save_file(tensors, tmp_path / part / "weights.safetensors")
    other = make_plan(recipe, checkpoint=tmp_path)
    assert other.teacher_key != plan.teacher_key and changed(plan, other) == [1, 1, 1, 1]


def test_other_photographs_are_other_data(plan, made, recipe, tmp_path):
    other = make_plan(with_images(recipe, photographs(tmp_path / "others", seed=1)), checkpoint=made / "checkpoint")
    assert other.calibration_digest != plan.calibration_digest
    assert other.evaluation_digest != plan.evaluation_digest
    assert changed(plan, other) == [1, 1, 1, 1]
    same = make_plan(with_images(recipe, photographs(tmp_path / "copies")), checkpoint=made / "checkpoint")
    assert keys(same) == keys(plan)  # the pixels count, not the place


def test_a_stage_that_looks_at_no_data_has_one_key_for_all(made, recipe, tmp_path):
    rounding = PlannedConfig(method="quantize.rtn", config=load("quantize.rtn").Config())
    alone = replace(recipe, stages=(rounding,))
    plan = make_plan(alone, checkpoint=made / "checkpoint")
    others = replace(with_images(alone, photographs(tmp_path / "others", seed=1)), seed=5)
    assert keys(make_plan(others, checkpoint=made / "checkpoint")) == keys(plan)


def test_the_reference_is_forecast_exactly(plan):
    whole = cost.measure(build(tiny.decoder().arch), [(1, 8, 8, 8)])
    for span, value in (
        (plan.reference.parameters, whole.parameters),
        (plan.reference.macs, whole.macs),
        (plan.reference.weight_bytes, whole.weight_bytes),
    ):
        assert (span.low, span.high) == (value, value)


def test_each_stage_is_forecast_from_the_one_before(plan):
    depth, width, distill, static = (stage.forecast for stage in plan.stages)
    assert depth.macs.low < depth.macs.high < plan.reference.macs.low
    assert width.macs.high < depth.macs.low / 2
    assert distill == width and static.macs == width.macs
    assert static.weight_bytes.high < width.weight_bytes.low / 2.5


def test_what_cannot_be_done_is_said_before_anything_runs(made, recipe):
    with pytest.raises(UserError, match="only 6 can be removed"):
        make_plan(with_stage(recipe, 0, blocks=7), checkpoint=made / "checkpoint")
    with pytest.raises(UserError, match="leaves no channel"):
        make_plan(with_stage(recipe, 1, ratio=0.99), checkpoint=made / "checkpoint")
    with pytest.raises(UserError, match="matches no layer"):
        make_plan(with_stage(recipe, 3, exclude=("nothing",)), checkpoint=made / "checkpoint")


def test_a_checkpoint_that_lacks_a_part_is_named(recipe, tmp_path):
    save_variant(tiny.decoder(), tmp_path / "decoder")
    with pytest.raises(UserError, match="encoder"):
        make_plan(recipe, checkpoint=tmp_path)
    save_variant(tiny.encoder(), tmp_path / "encoder")
    (tmp_path / "decoder" / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors does not exist"):
        make_plan(recipe, checkpoint=tmp_path)


@pytest.mark.parametrize(
    "options",
    [{}, {"bits": 4, "exclude": ("conv_*",)}, {"bits": 4, "granularity": "per_group", "group_size": 8}],
    ids=str,
)
def test_the_bytes_of_quantized_weights_are_forecast_exactly(made, recipe, tmp_path, options):
    rtn = load("quantize.rtn")
    stage = PlannedConfig(method="quantize.rtn", config=rtn.Config(**options))
    forecast = make_plan(replace(recipe, stages=(stage,)), checkpoint=made / "checkpoint").stages[0].forecast
    done = rtn.apply(tiny.stage_input(tmp_path), stage.config).module
    stored = cost.measure(done, [(1, 8, 8, 8)]).weight_bytes
    assert (forecast.weight_bytes.low, forecast.weight_bytes.high) == (stored, stored)


def test_a_choice_for_each_layer_is_forecast_within_its_budget_and_every_choice_must_be_writable(made, recipe):
    onnx = PlannedExport(format="onnx", config=load("export.onnx").Config())

    def planned(**options):
        stage = PlannedConfig(method="quantize.mixed", config=load("quantize.mixed").Config(**options))
        return make_plan(replace(recipe, stages=(stage,), export=(onnx,)), checkpoint=made / "checkpoint")

    whole = cost.measure(build(tiny.decoder().arch), [(1, 8, 8, 8)])
    weights = sum(layer.weights for layer in whole.layers)
    forecast = planned(bytes_per_weight=1.5).stages[0].forecast.weight_bytes
    assert forecast.high == whole.weight_bytes - 2.5 * weights
    assert forecast.low == whole.weight_bytes_at(4)
    free = planned(quality=40).stages[0].forecast.weight_bytes
    assert (free.low, free.high) == (forecast.low, whole.weight_bytes)
    with pytest.raises(UserError, match="ONNX holds integer weights of 4 or 8 bits, not 6"):
        planned(bytes_per_weight=1.5, bits=(4, 6, 8))


def test_a_checkpoint_of_one_part_alone_is_named(made, recipe):
    with pytest.raises(UserError, match=r"has no encoder; a checkpoint for .* is a folder with decoder/ and encoder/"):
        make_plan(recipe, checkpoint=made / "checkpoint" / "decoder")


def test_parts_that_do_not_fit_each_other_are_named(made, recipe, tmp_path):
    other = replace(tiny.decoder().arch, config=replace(tiny.DECODER, latent_channels=4))
    save_variant(replace(tiny.decoder(), arch=other, module=build(other)), tmp_path / "decoder")
    save_variant(tiny.encoder(), tmp_path / "encoder")
    with pytest.raises(UserError, match=r"makes inputs of shape \[1, 8, 8, 8\], .* takes \[1, 4, 8, 8\]"):
        make_plan(recipe, checkpoint=tmp_path)


def test_a_format_that_cannot_hold_a_layers_shape_is_refused_by_its_name() -> None:
    recipe = read_recipe(find("unet/w4g32_gptq"))
    only = replace(recipe, export=(PlannedExport(format="coreml", config=load("export.coreml").Config()),))
    with pytest.raises(CannotHold) as refused:
        make_plan(only)
    (why,) = refused.value.problems["coreml"]
    assert "groups of 32 weights end within a kernel of 9" in why
    assert "choose a multiple of 9" in why
    assert why.startswith("down_blocks.0.resnets.0.conv1: ")  # conv_in has 8 bits
    assert f"export coreml: {why}" in str(refused.value)
