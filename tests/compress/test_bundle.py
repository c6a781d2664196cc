"""A whole model enters the zoo past gates on its pictures, draws from there, and is drawn again by `verify`."""

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

pytest.importorskip("tokenizers", reason="prompts go through Hugging Face's tokenizers")
pytest.importorskip("onnxruntime", reason="the files are run")
pytest.importorskip("stlpips_pytorch", reason="pictures are compared by LPIPS")

from compress import bundle_parts, bundle_pictures, generation, zoo
from compress.cli import main
from compress.components import save_variant
from compress.errors import MissingExtra, UserError
from compress.export import _run
from compress.files import read_json, write_json
from compress.sampling.generator import Way
from compress.zoo_index import digest

NAME = "tiny/onnx"
GATES = """schema: 1
prompts: [red apple, blue heart]
sampling: {seed: 7}
gates:
  - {metric: lpips, max: 0.02}
  - {metric: psnr, statistic: worst, min: 40}
  - {metric: latent_sqnr, min: 40}
"""


@pytest.fixture(scope="module")
def model(words_model, tmp_path_factory) -> Path:
    """Three variants, for 32 pixels, with a licence."""
    folder = Path(shutil.copytree(words_model, tmp_path_factory.mktemp("licensed") / "tiny"))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


@pytest.fixture(scope="module")
def files(words_files) -> Path:
    """The same as three ONNX files."""
    return words_files


@pytest.fixture(scope="module")
def gates(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("gates") / "gates.yaml"
    place.write_text(GATES)
    return place


@pytest.fixture(scope="module")
def bundled(model, files, gates, tmp_path_factory) -> Path:
    """A zoo of one bundle; to be looked at only."""
    home = tmp_path_factory.mktemp("zoo")
    line = ["zoo", "bundle", NAME, "--zoo", str(home), "--model", str(files), "--reference", str(model)]
    assert main([*line, "--gates", str(gates), "--no-seconds"]) == 0
    return home


@pytest.fixture
def home(bundled, tmp_path) -> Path:
    """A copy of that zoo, to be changed."""
    return Path(shutil.copytree(bundled, tmp_path / "zoo"))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened).astype(int)


def said(capsys) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def relist(home: Path, file: str) -> None:
    """What a careless editor does: change a file's line in the index too."""
    index = read_json(home / "index.json")
    index["entries"][NAME]["files"][file] = digest(home / NAME / file).model_dump()
    write_json(home / "index.json", index)


def test_what_entered_draws_its_own_samples(bundled, tmp_path):
    place = bundled / NAME
    card = zoo.show(bundled, NAME)
    assert {"text_encoder.onnx", "unet.onnx", "decoder.onnx", "tokenizer.json", "sampling.json"} < set(card["files"])
    assert [(s["prompt"], s["seed"]) for s in card["drawn"]][:2] == [("red apple", 7), ("blue heart", 8)]
    assert len(card["drawn"]) == 2
    line = ["generate", "blue heart", "--seed", "8", "--model", str(place), "--out", str(tmp_path / "a.png")]
    assert main(line) == 0
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(place / "samples" / "1.png"))
    assert main(["zoo", "verify", str(bundled)]) == 0


def test_the_card_says_where_its_parts_are_from_and_what_they_weigh(bundled, model):
    card = zoo.show(bundled, NAME)
    facts, parts = card["facts"], ("text_encoder", "unet", "decoder")
    assert card["component"] == "tiny/text-to-image"
    assert facts["bytes"] == sum((bundled / NAME / f"{part}.onnx").stat().st_size for part in parts)
    weights = [generation._module(model / part).state_dict().values() for part in parts]
    assert facts["bytes_of_reference"] == 4 * sum(tensor.numel() for state in weights for tensor in state)
    page = (bundled / NAME / "README.md").read_text()
    assert "pipeline_tag: text-to-image" in page and "| red apple | 7 | ![picture](samples/0.png) |" in page
    assert 'mdcompress generate "red apple" --model FOLDER' in page
    sheet = pixels(bundled / NAME / "samples" / "preview.png")
    assert sheet.shape == (32, 2 * 64 + 4, 3)
    assert np.abs(sheet[:32, :32] - pixels(bundled / NAME / "samples" / "0.png")).max() <= 1  # the reference's
    assert np.array_equal(sheet[:32, 32:64], pixels(bundled / NAME / "samples" / "0.png"))


def test_a_sheet_has_rows_of_four_pairs_and_makes_large_pictures_small():
    images = torch.rand(6, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    with Image.open(io.BytesIO(bundle_pictures.sheet(images, 1 - images))) as opened:
        sheet = np.asarray(opened)
    assert sheet.shape == (2 * 160 + 4, 4 * 320 + 3 * 4, 3)
    sixth = sheet[164:, 324:644]  # in the second row, second
    expected = images[5].reshape(3, 160, 2, 160, 2).mean((2, 4)).permute(1, 2, 0).numpy() * 255
    assert np.abs(sixth[:, :160] - expected).max() <= 0.51 and np.abs(sixth[:, 160:] - (255 - expected)).max() <= 0.51
    assert (sheet[164:, 648:] == 255).all()


def test_the_same_parts_give_the_same_bytes(bundled, model, files, gates, tmp_path):
    again = tmp_path / "again"
    line = ["zoo", "bundle", NAME, "--zoo", str(again), "--model", str(files), "--reference", str(model)]
    assert main([*line, "--gates", str(bundled / NAME / "recipe.yaml"), "--no-seconds"]) == 0
    assert (again / "index.json").read_bytes() == (bundled / "index.json").read_bytes()


def test_pictures_are_measured_one_by_one_and_a_gate_that_fails_leaves_the_zoo_alone(model, tmp_path, gates, capsys):
    other = tmp_path / "unet"
    save_variant(tiny.unet(seed=1), other)
    line = ["zoo", "bundle", "tiny/other", "--zoo", str(tmp_path / "zoo"), "--model", str(model), "--unet", str(other)]
    assert main([*line, "--gates", str(gates)]) == 1
    assert "tiny/other does not enter the zoo" in said(capsys)
    assert not (tmp_path / "zoo").exists()
    lenient = tmp_path / "lenient.yaml"
    lenient.write_text(GATES.partition("gates:")[0] + "gates:\n  - {metric: lpips, max: 5}\n")
    main([*line, "--gates", str(lenient)])
    capsys.readouterr()
    rows = read_json(tmp_path / "zoo" / "tiny" / "other" / "samples" / "measurements.json")
    (psnr,) = [one["values"] for one in rows["measurements"] if one["metric"] == "psnr"]
    assert rows["seeds"] == [7, 8]
    both = [generation.open_model(str(model), given, pixels=32, threads=1) for given in ({}, {"unet": str(other)})]
    for prompt, seed, value in zip(rows["prompts"], rows["seeds"], psnr, strict=True):
        way = Way(solver="ddim", steps=2, guidance=2.0, seed=seed)
        pair = [generation.draw(prompt, one, way, lambda *_: None) for one in both]
        error = np.mean((pair[0].images.astype(np.float64) - pair[1].images) ** 2)
        assert value == pytest.approx(10 * math.log10(1 / error), abs=1e-3)


def test_latents_that_are_not_finite_pass_no_gate(model, tmp_path, capsys):
    broken = tiny.unet()  # finite weights, but what they make overflows
    for tensor in broken.module.parameters():
        tensor.mul_(1e30)
    save_variant(broken, tmp_path / "unet")
    loose = tmp_path / "loose.yaml"
    loose.write_text("schema: 1\nprompts: [red apple]\ngates:\n  - {metric: lpips, max: 1000}\n")
    line = ["zoo", "bundle", "a", "--zoo", str(tmp_path / "zoo"), "--model", str(model), "--gates", str(loose)]
    assert main([*line, "--unet", str(tmp_path / "unet")]) == 1
    out = said(capsys)
    assert "lpips: failed:" in out and "finite: failed: 1 of 1 pictures could not be drawn" in out
    assert not (tmp_path / "zoo").exists()
    shutil.copytree(model, tmp_path / "reference")
    shutil.copytree(tmp_path / "unet", tmp_path / "reference" / "unet", dirs_exist_ok=True)
    assert main([*line, "--reference", str(tmp_path / "reference")]) == 2
    assert "the reference itself does not draw 'red apple'" in said(capsys)


def test_the_default_gates_ask_for_quality_and_size(files, model, tmp_path, capsys):
    """A file's headers alone make these tiny ones too large; the other two gates pass."""
    line = ["zoo", "bundle", "a", "--zoo", str(tmp_path / "zoo"), "--model", str(files), "--reference", str(model)]
    assert main([*line, "--json", "--prompts", str(_prompts(tmp_path, "red apple\n\nheart\n"))]) == 1
    verdicts = json.loads(capsys.readouterr().out)
    assert {(v["metric"], v["limit"], v["passed"]) for v in verdicts} == {
        ("lpips", 0.15, True), ("psnr", 20.0, True), ("size", 1.05, False), ("sanity", 0.0, True), ("finite", 0.0, True),
    }  # fmt: skip


def _prompts(folder: Path, text: str) -> Path:
    (folder / "prompts.txt").write_text(text)
    return folder / "prompts.txt"


# ------------------------------------------------------------------------------------------------- verified, passed on


def test_a_picture_that_is_not_drawn_again_is_named(home, capsys):
    picture = home / NAME / "samples" / "1.png"
    Image.fromarray(np.clip(pixels(picture) + 12, 0, 255).astype(np.uint8)).save(picture)
    relist(home, "samples/1.png")
    assert main(["zoo", "verify", str(home)]) == 1
    out = said(capsys)
    assert "samples/1.png: 'blue heart' with seed 8 does not reproduce it: PSNR in dB 2" in out
    assert out.count("FAILED") == 1


def test_files_that_are_not_intact_draw_nothing(home, monkeypatch, capsys):
    with (home / NAME / "unet.onnx").open("r+b") as file:
        file.seek(5000)
        file.write(b"\0\1\2\3")
    monkeypatch.setattr(generation, "open_model", lambda *_, **__: pytest.fail("a changed file was run"))
    assert main(["zoo", "verify", str(home)]) == 1
    out = said(capsys)
    assert "unet.onnx: is not the listed file" in out and out.count("not drawn: unet.onnx is not intact") == 2


def test_a_missing_runtime_is_named_and_ends_with_3(home, monkeypatch, capsys):
    def absent(*_):
        raise MissingExtra("running unet.onnx needs onnxruntime: pip install 'mdcompress[onnx]'")

    monkeypatch.setitem(_run._RUNNERS, ".onnx", absent)
    assert main(["zoo", "verify", str(home)]) == 3
    assert said(capsys).count("pip install 'mdcompress[onnx]'") == 2
    line = ["zoo", "bundle", "b", "--zoo", str(home), "--model", str(home / NAME), "--reference", str(home / NAME)]
    assert main(line) == 3 and "pip install 'mdcompress[onnx]'" in said(capsys)


def test_a_bundle_is_listed_compared_pulled_and_shown(bundled, tmp_path, capsys):
    assert main(["zoo", "list", str(bundled)]) == 0
    table = said(capsys)
    assert "tiny/text-to-image" in table and "PSNR drawn, dB" in table
    assert main(["zoo", "show", str(bundled), NAME]) == 0 and "# tiny/onnx" in said(capsys)
    assert main(["zoo", "pull", str(bundled), "--zoo", str(tmp_path / "mine")]) == 0
    capsys.readouterr()
    assert main(["zoo", "diff", str(bundled / NAME), str(tmp_path / "mine" / NAME)]) == 0
    assert said(capsys) == "the same"
    assert main(["zoo", "gallery", str(bundled), "--out", str(tmp_path / "site")]) == 0
    front = (tmp_path / "site" / "index.html").read_text()
    assert all(f"zoo/tiny/onnx/{part}.onnx" in front for part in ("text_encoder", "unet", "decoder"))
    page = (tmp_path / "site" / "entries" / "tiny" / "onnx" / "index.html").read_text()
    assert "A whole model of tiny/text-to-image" in page and "zoo/tiny/onnx/samples/1.png" in page
    assert "PSNR at least 30 dB" in page  # bare files may hold integers


def test_a_bundle_takes_anothers_place_past_gates_on_the_others_pictures(home, model, gates, tmp_path, capsys):
    before = (home / "index.json").read_bytes()
    line = ["zoo", "bundle", NAME, "--zoo", str(tmp_path / "mine"), "--model", str(model), "--gates", str(gates)]
    assert main(line) == 0
    promote = ["zoo", "promote", str(tmp_path / "mine" / NAME), "--zoo", str(home)]
    assert main(promote) == 2 and "'tiny', is no preset and no folder from here; give --reference" in said(capsys)
    assert main([*promote, "--reference", str(model), "--json"]) == 0  # the variants themselves, which nothing beats
    verdicts = json.loads(capsys.readouterr().out)
    assert {v["metric"] for v in verdicts if v["against"] == "baseline"} == {"lpips", "psnr", "latent_sqnr", "size"}
    assert zoo.show(home, NAME)["drawn"][0]["format"] == "torch"
    old = home / "archive" / NAME / "1"
    assert zoo.show(home, f"archive/{NAME}/1")["drawn"][0]["format"] == "onnx"
    assert main(["zoo", "verify", str(home), NAME]) == 0
    capsys.readouterr()
    after = (home / "index.json").read_bytes()
    assert main(["zoo", "promote", str(old), "--zoo", str(home), "--reference", str(model)]) == 1
    out = said(capsys)
    assert "psnr: failed: mean drop of psnr from the baseline" in out and f"{NAME} of {home} is as it was" in out
    assert (home / "index.json").read_bytes() == after != before
    own = tmp_path / "own.yaml"
    own.write_text("schema: 1\nprompts: [red apple]\ngates:\n  - {metric: size, against: baseline, max_ratio: 9}\n")
    assert main(["zoo", "bundle", "b", "--zoo", str(home), "--model", str(model), "--gates", str(own)]) == 2
    assert "there is no entry to compare with" in said(capsys)
    assert main(["zoo", "promote", str(old), "--zoo", str(home), "--gates", str(own), "--reference", str(model)]) == 0
    assert zoo.show(home, NAME)["drawn"][0]["format"] == "onnx"


def test_the_reference_may_draw_in_its_own_way_and_the_recipe_says_so(model, tmp_path):
    gates = tmp_path / "g.yaml"
    gates.write_text(
        "schema: 1\nprompts: [red apple]\nreference_sampling: {steps: 2, guidance: 2.0}\n"
        "gates:\n  - {metric: lpips, max: 5}\n  - {metric: ssim, min: -1}\n"
    )
    line = ["zoo", "bundle", "a", "--zoo", str(tmp_path / "zoo"), "--model", str(model), "--gates", str(gates)]
    main([*line, "--steps", "1", "--guidance", "1"])
    recipe = (tmp_path / "zoo" / "a" / "recipe.yaml").read_text()
    assert '"steps": 1, "guidance": 1.0' in recipe and 'reference_sampling: {"steps": 2, "guidance": 2.0' in recipe
    facts = zoo.show(tmp_path / "zoo", "a")["facts"]
    assert facts["sampling_of_reference"] == "2 steps of ddim, guidance 2" and facts["psnr_to_reference_mean"] < 60
    assert "latent_sqnr_to_reference_mean" not in facts  # of other steps: nothing to compare


# -------------------------------------------------------------------------------------------------------- where from


def component(home: Path, file: Path, name: str, **limits: float) -> Path:
    """A zoo entry of one component."""
    sample = zoo.Sample(
        file=file.name, format="onnx", inputs=(torch.zeros(1, 2),), output=torch.zeros(1, 2), max_difference=None,
        **{"min_psnr_db": None, **limits},
    )  # fmt: skip
    verdict = {"subject": "onnx", "metric": "sqnr", "kind": "min", "value": 50.0, "limit": 20.0, "passed": True}
    entry = zoo.Entry(
        name=name, component=f"tiny/{file.stem}", files={file.name: file}, samples=(sample,), recipe="schema: 1\n",
        verdicts=(verdict,), licence="mit", tools={"maker": "1.0"},
    )  # fmt: skip
    return zoo.add(home, entry)


def test_parts_are_taken_from_entries_of_components(model, files, gates, tmp_path, capsys):
    home = tmp_path / "zoo"
    places = {f.stem: component(home, f, f"{f.stem}/fp32", min_sqnr_db=60.0) for f in sorted(files.glob("*.onnx"))}
    line = ["zoo", "bundle", NAME, "--zoo", str(home), "--model", str(model), "--gates", str(gates)]
    for leaf, place in places.items():
        line += [f"--{leaf.replace('_', '-')}", str(place)]
    assert main(line) == 0
    card = zoo.show(home, NAME)
    assert (card["facts"]["unet_from"], card["licence"], card["tools"]["maker"]) == ("unet/fp32", "mit", "1.0")
    assert {s["min_psnr_db"] for s in card["drawn"]} == {45.0}  # all three are known to be float
    assert card["facts"]["seconds_per_picture"] > 0
    (home / "unet" / "fp32" / "unet.onnx").write_bytes(b"another")
    assert main([*line, "--replace"]) == 2 and "is not the file that" in said(capsys)


def test_a_part_of_a_run_is_its_file_where_the_run_passed(files, model, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(model / "unet", run / "variant")
    (run / "artifacts").mkdir()
    shutil.copyfile(files / "unet.onnx", run / "artifacts" / "unet.onnx")
    write_json(run / "plan.json", {"recipe": "unet/w8a8"})
    write_json(run / "status.json", {"state": "passed"})
    write_json(run / "entry.json", {"licence": "mit"})
    part = bundle_parts.chosen(files, {"unet": str(run)}).parts["unet"]
    assert (part.place, part.origin, part.licence) == (run / "artifacts" / "unet.onnx", "unet/w8a8", "mit")
    assert part.whole is True
    torch_part = bundle_parts.chosen(model, {"unet": str(run)}).parts["unet"]
    assert torch_part.place == run / "variant"
    write_json(run / "variant" / "quantization.json", {"schema": 1, "layers": {}})
    assert bundle_parts.chosen(files, {"unet": str(run)}).parts["unet"].whole is False
    write_json(run / "status.json", {"state": "failed"})
    with pytest.raises(UserError, match="this run is failed; a bundle takes what passed"):
        bundle_parts.chosen(files, {"unet": str(run)})


def test_variants_are_bundled_as_folders(model, gates, tmp_path):
    home = tmp_path / "zoo"
    assert main(["zoo", "bundle", "tiny/torch", "--zoo", str(home), "--model", str(model), "--gates", str(gates)]) == 0
    card = zoo.show(home, "tiny/torch")
    assert "unet/weights.safetensors" in card["files"] and card["licence"] == "apache-2.0"
    assert "psnr_to_reference_mean" not in card["facts"]  # exact: no number says so
    assert next(v["exact"] for v in card["verdicts"] if v["metric"] == "psnr") is True
    assert main(["zoo", "verify", str(home)]) == 0


def test_what_does_not_go_together_is_refused(model, files, bundled, gates, tmp_path, monkeypatch, capsys):
    other = tmp_path / "parts"
    save_variant(replace(tiny.text(), component="tiny/text_encoder"), other / "text")
    decoder = component(tmp_path / "zoo", files / "decoder.onnx", "decoder/fp32", min_psnr_db=60.0)
    bare = tmp_path / "bare"
    shutil.copytree(files, bare)
    (bare / "scheduler.json").unlink()
    half = tmp_path / "half"
    shutil.copytree(files, half)
    (half / "tokenizer.json").unlink()
    quantized = tmp_path / "quantized"
    shutil.copytree(model, quantized)
    write_json(quantized / "unet" / "quantization.json", {"schema": 1, "layers": {}})
    (tmp_path / "component.yaml").write_text("schema: 1\ncomponent: md-tiny/decoder\ngates: []\n")
    (tmp_path / "truth.yaml").write_text("schema: 1\ngates:\n  - {metric: psnr, max_drop: 1}\n")
    (tmp_path / "typo.yaml").write_text("schema: 1\nprompt: [a]\ngates:\n  - {metric: psnr, min: 1}\n")
    whole = {"--model": str(files), "--reference": str(model), "--gates": str(gates), "--zoo": str(tmp_path / "new")}
    cases = [
        ({"--zoo": str(bundled)}, "an entry of this name is there; choose another name, or give --replace"),
        ({"--unet": str(model / "unet")}, "unet: torch; decoder: onnx); a bundle is of one format"),
        ({"--format": "litert"}, "not all parts are there as litert (text_encoder: onnx"),
        ({"--format": "coreml"}, "no format 'coreml'"),
        ({"--model": str(model), "--text-encoder": str(other / "text")}, "positions of the text encoder 9"),
        ({"--model": str(decoder)}, "a zoo entry of one component, not of a whole model"),
        ({"--unet": str(decoder)}, "this zoo entry is a decoder (decoder/fp32), not a unet"),
        ({"--decoder": str(files / "unet.onnx")}, "it is another component's file"),
        ({"--unet": "nowhere"}, "nowhere: no such part"),
        ({"--model": str(bare)}, "no text-to-image model; give a folder with tokenizer.json"),
        ({"--model": str(half)}, "tokenizer.json"),
        ({"--reference": None}, "has no torch variants to compare with; name the float model"),
        ({"--reference": str(quantized)}, "the reference's unet is quantized"),
        ({"--unet": "mobilediffusion/unet"}, "comes without weights: train it"),
        ({"--gates": str(tmp_path / "component.yaml")}, "is for one component; a bundle's gates file has"),
        ({"--gates": str(tmp_path / "truth.yaml")}, "there is no photograph of what words mean"),
        ({"--gates": str(tmp_path / "typo.yaml")}, "prompt: "),
        ({"--prompts": str(tmp_path / "nowhere.txt")}, "no UTF-8 text file of one prompt a line"),
        ({"--prompts": str(_prompts(tmp_path, "\n"))}, "no prompt in it"),
        ({"--pixels": "64"}, "makes pictures of 32 pixels, not 64"),
        ({"name": "../a"}, "is not allowed"),
    ]
    for change, message in cases:
        given = whole | change
        name = given.pop("name", NAME)
        line = ["zoo", "bundle", name, *(word for pair in given.items() if pair[1] for word in pair)]
        assert main(line) == 2, change
        assert message in said(capsys), change
    assert not (tmp_path / "new").exists()


def test_a_bundle_where_a_component_is_expected(bundled, tmp_path, capsys):
    place = str(bundled / NAME)
    (tmp_path / "g.yaml").write_text(
        "schema: 1\ncomponent: md-tiny/decoder\nevaluation: {source: photographs, count: 1, size: 64}\n"
        "gates:\n  - {metric: psnr, max_drop: 1}\n"
    )
    assert main(["gate", place, "--gates", str(tmp_path / "g.yaml")]) == 2
    assert "a bundle, a whole model, where one component is judged" in said(capsys)


def test_a_bundles_own_part_is_taken_for_a_part(bundled, model, tmp_path, capsys):
    line = [
        "generate",
        "red apple",
        "--model",
        str(model),
        "--unet",
        str(bundled / NAME),
        "--out",
        str(tmp_path / "a.png"),
    ]
    assert main(line) == 0 and "unet: ONNX Runtime, onnx/unet.onnx" in said(capsys)
