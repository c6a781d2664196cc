"""Pictures that a UNet or a text encoder draws in its model, as gates see them."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import families
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("tokenizers", reason="prompts go through Hugging Face's tokenizers")

from compress import drawn, pipeline
from compress.cli import main
from compress.components import load_variant, save_variant
from compress.errors import UserError
from compress.given import Given, planned
from compress.nn.surgery import float_twin
from compress.sampling.generator import SOLVERS, Way, generate, read_settings
from compress.sampling.latents import LatentScale
from compress.sampling.modules import from_modules
from compress.written import Data, Solver
from eval.compare import Metric, compare_drawn

HOW = {"count": 2, "solver": "ddim", "steps": 3, "guidance": 2.0}
SIDE = {"source": "captions", "count": 2, "size": 64}
SIDES = {"calibration": SIDE, "evaluation": SIDE}
W8 = {"method": "quantize.rtn", "bits": 8}
WANTED = (Metric(name="psnr"), Metric(name="latent_sqnr"))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text-to-image model."""
    folder = tmp_path_factory.mktemp("family")
    return families.write(folder, ["red apple", "blue heart"], LatentScale(mean=(0.1,) * 8, std=(0.9,) * 8))


@pytest.fixture(scope="module")
def sheet(family: Path) -> drawn.Sheet:
    """What the uncompressed UNet draws."""
    return drawn_by_teacher(family, "unet", **HOW)


def drawn_by_teacher(family: Path, part: str, **how: Any) -> drawn.Sheet:
    data = Data.model_validate(SIDES | {"drawn": how})
    folders = {leaf: family / leaf for leaf in drawn.PARTS if leaf != part}
    return drawn.draw_teacher(part, load_variant(family / part).module, folders, family, data, 5)


def recipe(folder: Path, leaf: str, gates: list[Any], how: dict[str, Any] | None) -> Path:
    """A recipe file; JSON is YAML."""
    path = folder / f"{leaf}.yaml"
    data = SIDES | ({} if how is None else {"drawn": how})
    whole = {"schema": 1, "name": f"{leaf}/drawn", "component": f"tiny/{leaf}", "seed": 0, "data": data}
    path.write_text(json.dumps(whole | {"stages": [W8], "gates": gates, "export": []}))
    return path


def test_the_pictures_are_those_of_the_generator_with_the_same_seeds(sheet: drawn.Sheet, family: Path) -> None:
    settings = read_settings(family)
    modules = (load_variant(family / leaf).module for leaf in drawn.PARTS)
    way = Way(solver="ddim", steps=3, guidance=2.0, seed=5)
    made = generate(sheet.prompts, from_modules(*modules, settings, pixels=64), settings, way)
    np.testing.assert_allclose(sheet.images.numpy(), made.images, atol=1e-5)  # there in one batch
    assert sheet.latents.shape == (2, 3, 8, 8, 8)
    np.testing.assert_allclose(settings.scale.restored(sheet.latents[:, -1]).numpy(), made.latents, atol=1e-5)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_the_teacher_itself_draws_the_same_and_a_changed_weight_shows(part: str, family: Path) -> None:
    theirs = drawn_by_teacher(family, part, **HOW)
    module = load_variant(family / part).module
    same = drawn.measure(theirs, module, drawn.AT_ONCE, WANTED).measurements
    assert [m.values for m in same] == [(float("inf"),) * 2] * 2
    one_by_one = drawn.measure(
        theirs, module, 1, WANTED
    ).measurements  # as files are run: sums of other lengths round otherwise
    assert all(value > 100 for m in one_by_one for value in m.values)
    changed = float_twin(module)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.05)
    psnr, sqnr = drawn.measure(theirs, changed, 1, WANTED).measurements
    assert all(0 < value < 60 for value in (*psnr.values, *sqnr.values))
    assert psnr.against == sqnr.against == "reference"


def test_latents_are_compared_after_every_step(sheet: drawn.Sheet) -> None:
    module = float_twin(sheet.teacher)
    with torch.no_grad():
        module.conv_out.weight.mul_(0.9)
    _, latents = drawn.draw(sheet, "ddim", 3, 2.0, module)
    theirs, mine = sheet.latents.double().numpy(), latents.double().numpy()
    ratios = 10 * np.log10((theirs**2).sum((2, 3, 4)) / ((theirs - mine) ** 2).sum((2, 3, 4)))  # [prompts, steps]
    (found,) = drawn.measure(sheet, module, 2, (Metric(name="latent_sqnr"),)).measurements
    np.testing.assert_allclose(found.values, ratios.min(axis=1), rtol=1e-4)


def test_a_candidate_that_is_not_finite_has_no_number_and_a_teacher_is_refused(
    sheet: drawn.Sheet, family: Path
) -> None:
    broken = float_twin(sheet.teacher)
    with torch.no_grad():
        broken.conv_out.bias.fill_(torch.nan)
    for found in drawn.measure(sheet, broken, 2, WANTED).measurements:
        assert np.isnan(found.values).all() and found.broken == 2
        assert found.problem is not None and "NaN" in found.problem
    data = Data.model_validate(SIDES | {"drawn": HOW})
    folders = {leaf: family / leaf for leaf in drawn.PARTS if leaf != "unet"}
    with pytest.raises(UserError, match="the uncompressed model itself does not draw"):
        drawn.draw_teacher("unet", broken, folders, family, data, 5)


def captioned(folder: Path) -> Path:
    """Pictures of one colour each, a hundred and one, the last called as the first."""
    folder.mkdir()
    colours = [(r, g, 128) for r in range(0, 250, 25) for g in range(0, 250, 25)]
    rows = ["file\tname"]
    for number, colour in enumerate([*colours, (255, 255, 255)]):
        Image.new("RGB", (64, 64), colour).save(folder / f"{number:03d}.png")
        rows.append(f"{number:03d}.png\tcolour {number % 100}")
    (folder / "captions.tsv").write_text("\n".join(rows) + "\n")
    return folder


def test_the_score_asks_for_the_picture_that_the_prompt_names(family: Path, tmp_path: Path) -> None:
    side = SIDE | {"source": str(captioned(tmp_path / "pictures"))}
    data = Data.model_validate({"calibration": side, "evaluation": side, "drawn": HOW | {"count": 8}})
    folders = {leaf: family / leaf for leaf in drawn.PARTS if leaf != "unet"}
    teacher = load_variant(family / "unet").module
    sheet = drawn.draw_teacher("unet", teacher, folders, family, data, 5, as_asked=True)
    assert sheet.sought is not None and len(sheet.sought.gallery) == 101
    asked_for = sheet.sought.gallery[sheet.sought.right]
    numbers = [int(prompt.removeprefix("colour ")) for prompt in sheet.prompts]
    wanted = [[n // 10 * 25 / 255, n % 10 * 25 / 255, 128 / 255] for n in numbers]
    np.testing.assert_allclose(asked_for[:, :, 7, 7].numpy(), wanted, atol=1e-6)
    right = replace(sheet, images=asked_for.repeat_interleave(2, 2).repeat_interleave(2, 3))
    metrics = (Metric(name="psnr"), Metric(name="task_score"))
    _, mine, theirs = drawn.measure(right, teacher, 2, metrics).measurements
    assert (mine.of, theirs.of) == ("candidate", "reference") and theirs.values == (1.0,) * 8
    assert sum(mine.values) < 8  # weights by chance do not draw colours
    assert drawn.draw_teacher("unet", teacher, folders, family, data, 5).sought is None


def test_fewer_steps_and_no_guidance_are_compared_with_the_teachers_own(sheet: drawn.Sheet, family: Path) -> None:
    own = {"teacher_solver": "ddim", "teacher_steps": 3, "teacher_guidance": 2.0}
    few = drawn_by_teacher(family, "unet", count=2, solver="dpm_solver", steps=1, guidance=1.0, **own)
    assert torch.equal(few.images, sheet.images)
    (psnr,) = drawn.measure(few, few.teacher, 2, (Metric(name="psnr"),)).measurements
    assert all(0 < value < 60 for value in psnr.values)


def test_the_solvers_of_a_recipe_are_those_that_there_are() -> None:
    assert set(get_args(Solver)) == set(SOLVERS)


def test_a_flat_picture_has_no_number_whoever_drew_it() -> None:
    picture, flat = (
        torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        torch.full((1, 3, 64, 64), 0.5),
    )
    mirrored = picture.flip(3)
    for theirs, mine, whose in ((picture, flat, "candidate"), (flat, picture, "reference"), (flat, flat, "reference")):
        (found,) = compare_drawn(theirs, mine, [Metric(name="psnr")])
        assert np.isnan(found.values[0])
        assert found.problem is not None and found.problem.startswith(f"{whose} has a constant image")
    (found,) = compare_drawn(picture, mirrored, [Metric(name="psnr")])  # a picture in its own right
    assert found.problem is None and found.values[0] > 0


@pytest.mark.slow
def test_gates_on_pictures_judge_a_unet(family: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(pipeline, "STAGE_LATENCY_SECONDS", 0.1)
    gates = [{"metric": "psnr", "min": 10.0}, {"metric": "lpips", "max": 0.9}, {"metric": "latent_sqnr", "min": 1.0}]
    path, out = recipe(tmp_path, "unet", gates, HOW), tmp_path / "out"
    assert main(["run", str(path), "--out", str(out), "--checkpoint", str(family)]) == 0
    verdicts = json.loads((out / "verdicts.json").read_text(encoding="utf-8"))
    assert {"psnr", "lpips", "latent_sqnr"} <= {row["metric"] for row in verdicts if row["subject"] == "variant"}
    page = (out / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r'class="name">([^<]+)</span><span class="value">([0-9.]+) dB', page)
    values = [float(value) for _, value in shown]
    assert {name for name, _ in shown} == set(drawn.texts(Data.model_validate(SIDES | {"drawn": HOW})))
    assert values == sorted(values)
    strict = tmp_path / "gates.yaml"
    asked = {"evaluation": SIDE, "drawn": HOW, "gates": [{"metric": "psnr", "min": 90.0}]}
    strict.write_text(json.dumps({"schema": 1, "component": "tiny/unet"} | asked))
    assert main(["gate", str(out / "variant"), "--gates", str(strict), "--checkpoint", str(family)]) == 1
    kept, worse = tmp_path / "kept.yaml", tmp_path / "worse"
    regression = [{"metric": name, "against": "baseline", "max_drop": 0.1} for name in ("psnr", "latent_sqnr")]
    kept.write_text(
        json.dumps({"schema": 1, "component": "tiny/unet", "baseline": "b.json"} | asked | {"gates": regression})
    )
    line = ["gate", "--gates", str(kept), "--checkpoint", str(family)]
    assert main([*line, str(out / "variant"), "--update-baseline"]) == 0
    assert main([*line, str(out / "variant")]) == 0
    changed = load_variant(out / "variant")
    with torch.no_grad():
        changed.module.conv_out.bias.add_(0.05)
    save_variant(changed, worse)
    assert main([*line, str(worse)]) == 1


@pytest.mark.parametrize(
    ("leaf", "gates", "how", "text"),
    [
        ("unet", [{"metric": "psnr", "min": 20}], None, "psnr compare pictures"),
        ("unet", [{"metric": "latent_sqnr", "min": 20}], None, "latent_sqnr compare pictures"),
        ("unet", [{"metric": "psnr", "max_drop": 1}], HOW, "no other truth"),
        ("unet", [{"metric": "latent_sqnr", "min": 20}], HOW | {"teacher_steps": 4}, "3 are not the teacher's"),
        ("unet", [{"metric": "psnr", "min": 20}], HOW | {"count": 5000}, "5000 asked"),
        ("encoder", [{"metric": "sqnr", "min": 20}], HOW, "leave it out"),
        ("unet", [{"metric": "task_score", "max_drop": 0.1}], None, "task_score compare pictures"),
        ("unet", [{"metric": "task_score", "max_drop": 0.1}], HOW, "captions has no captioned pictures"),
        ("unet", [{"metric": "task_score", "min": 0.5}], HOW, "add 'against: ground_truth'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_the_plan(
    leaf: str, gates: list[Any], how: Any, text: str, family: Path, tmp_path: Path, capsys: Any
) -> None:
    path = recipe(tmp_path, leaf, gates, how)
    if leaf == "encoder":
        path.write_text(path.read_text().replace('"captions"', '"photographs"'))
    assert main(["plan", str(path), "--checkpoint", str(family)]) == 2
    assert text in capsys.readouterr().err


def test_a_model_without_its_decoder_cannot_draw(family: Path, tmp_path: Path, capsys: Any) -> None:
    for leaf in ("unet", "text_encoder"):
        (tmp_path / leaf).symlink_to(family / leaf)
    for name in ("tokenizer.json", "scheduler.json", "latents.json"):
        (tmp_path / name).symlink_to(family / name)
    path = recipe(tmp_path, "unet", [{"metric": "psnr", "min": 20}], HOW)
    assert main(["plan", str(path), "--checkpoint", str(tmp_path)]) == 2
    assert "decoder with weights" in capsys.readouterr().err


def test_a_recipe_that_draws_nothing_has_the_digest_that_it_had(tmp_path: Path) -> None:
    from compress.recipe import as_written, read_recipe

    found = read_recipe(recipe(tmp_path, "unet", [{"metric": "sqnr", "min": 20}], None))
    assert set(as_written(found)["data"]) == {"calibration", "evaluation"}
    assert as_written(replace(found))["data"]["evaluation"]["size"] == 64


def test_captions_are_the_familys_own_where_it_has_any(family: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, "unet", [{"metric": "psnr", "min": 20}], HOW)
    before = planned(str(path), Given(checkpoint=family))
    own = [f"thing number {i}" for i in range(12)]
    copied = tmp_path / "family"
    shutil.copytree(family, copied)
    (copied / "captions.txt").write_text("\n".join(own))
    after = planned(str(path), Given(checkpoint=copied))
    assert set(drawn.texts(after.source.data)) <= set(own)
    assert not set(drawn.texts(before.source.data)) & set(own)
    assert before.calibration_digest != after.calibration_digest and before.digest == after.digest
