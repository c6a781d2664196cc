"""What a user sees: exit codes, messages that say what to do, JSON that scripts read, and nothing half-written."""

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import evaluation, extras, pipeline
from compress.cli import COMMANDS, GROUPS, main
from compress.prune import width

SHIPPED = "decoder/d4_c50_kd_w8a8"
WIDTH: dict[str, Any] = {"method": "prune.width", "ratio": 0.5, "round_to": 4}
PRESET = Path(pipeline.__file__).parent / "components" / "presets" / "md-tiny" / "decoder"

Write = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def write(tmp_path: Path, pictures: Path) -> Write:
    """Makes a recipe file; JSON is YAML."""

    def make(**changes: Any) -> Path:
        source = {"source": str(pictures), "count": 3, "size": 64}
        whole = {
            "schema": 1,
            "name": "decoder/small",
            "component": "tiny/decoder",
            "seed": 0,
            "data": {"calibration": source, "evaluation": source},
            "stages": [WIDTH],
            "gates": [{"metric": "psnr", "min": 5.0}],
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(whole | changes, indent=1), encoding="utf-8")
        return path

    return make


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(autouse=True)
def short_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "JUDGED_LATENCY_SECONDS", 0.1)
    monkeypatch.setattr(pipeline, "STAGE_LATENCY_SECONDS", 0.1)


def mistake(result: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, one message on the error stream with these words, and no trace."""
    code, out, err = result
    assert code == 2, err
    assert "Traceback" not in err
    for word in words:
        assert word in err or word in out


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class TestRecipes:
    def test_all_mistakes_at_once_each_with_its_line(self, run: Run, write: Write) -> None:
        stages = [
            {"method": "prune.widht", "ratio": 0.5},
            {"method": "prune.width", "ratio": 1.5, "rond_to": 8},
            {"method": "distill.output", "steps": "many"},
        ]
        path = write(stages=stages, gates=[{"metric": "pnsr", "min": 5}], colour="red")
        code, out, err = run("check", path)
        assert (code, err) == (2, "")
        lines = out.splitlines()
        assert len(lines) == 6
        assert all(line.startswith(f"{path}:") and line.split(":")[1].isdigit() for line in lines)
        for word in (
            "did you mean 'prune.width'",
            "did you mean 'round_to'",
            "less than 1",
            "'psnr'",
            "many",
            "colour",
        ):
            assert word in out
        source = path.read_text(encoding="utf-8").splitlines()
        (wrong,) = [line for line in lines if "pnsr" in line]
        assert "pnsr" in source[int(wrong.split(":")[1]) - 1]

    def test_plan_and_run_refuse_the_same_way(self, run: Run, write: Write, tmp_path: Path) -> None:
        path = write(stages=[{"method": "prune.width", "ratio": 2}])
        mistake(run("plan", path), f"{path}:", "less than 1")
        mistake(run("run", path, "--out", tmp_path / "out"), f"{path}:", "less than 1")
        assert not (tmp_path / "out").exists()

    def test_check_json_lists_every_recipe(self, run: Run, write: Write) -> None:
        code, out, _ = run("check", SHIPPED, write(seed=-1), "--json")
        good, bad = json.loads(out)
        assert code == 2
        assert good == {"recipe": SHIPPED, "mistakes": []}
        assert ["seed" in line for line in bad["mistakes"]] == [True]

    def test_an_unknown_name_is_answered_with_a_guess(self, run: Run) -> None:
        mistake(run("plan", "decoder/d4_c50_kd_w8a9"), f"did you mean '{SHIPPED}'")
        mistake(run("check"), "name at least one recipe")

    def test_a_file_that_is_no_recipe(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "text.yaml").write_text("just words\n")
        (tmp_path / "broken.yaml").write_text("schema: [1\n")
        (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
        for name in ("text.yaml", "broken.yaml", "bytes.yaml", "absent.yaml"):
            mistake(run("plan", tmp_path / name), name)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            (
                {"stages": [{"method": "prune.width", "ratio": 0.99, "round_to": 8}]},
                ("leaves no channel", "levels.0.stream", "lower"),
            ),
            ({"stages": [{"method": "prune.depth", "blocks": 99}]}, ("blocks: 99", "only 4", "ask for fewer")),
            (
                {"stages": [{"method": "quantize.rtn", "bits": 4, "granularity": "per_group", "group_size": 7}]},
                ("group_size 7 does not divide", "divisors near it", "choose another size"),
            ),
            (
                {"stages": [{"method": "quantize.rtn", "bits": 2}], "export": [{"format": "onnx"}]},
                ("4 or 8 bits, not 2", "choose weight_bits"),
            ),
            ({"stages": [{"method": "quantize.rtn", "exclude": ["nothing.*"]}]}, ("'nothing.*' matches no layer",)),
        ],
        ids=["no channel", "too many blocks", "group size", "bits of a format", "pattern"],
    )
    def test_what_cannot_be_done_is_said_before_anything_runs(
        self, changes: dict[str, Any], words: tuple[str, ...], run: Run, write: Write, checkpoint: Path, tmp_path: Path
    ) -> None:
        recipe = write(**changes)
        mistake(run("plan", recipe, "--checkpoint", checkpoint), *words)
        mistake(run("run", recipe, "--checkpoint", checkpoint, "--out", tmp_path / "out"), *words)
        assert not (tmp_path / "out").exists()

    def test_an_unknown_component_names_those_that_exist(self, run: Run, write: Write) -> None:
        mistake(run("plan", write(component="md-tiny/decodr")), "did you mean 'md-tiny/decoder'?")


class TestPlan:
    def test_json_has_keys_and_forecasts(self, run: Run, write: Write, checkpoint: Path) -> None:
        quantize = {"method": "quantize.rtn", "bits": 4}
        path = write(stages=[WIDTH, quantize])
        code, out, _ = run("plan", path, "--checkpoint", checkpoint, "--json")
        made = json.loads(out)
        assert code == 0
        assert [stage["method"] for stage in made["stages"]] == ["prune.width", "quantize.rtn"]
        assert len({stage["key"] for stage in made["stages"]}) == 2
        held = sum(t.numel() for t in load_file(checkpoint / "decoder" / "weights.safetensors").values())
        assert made["reference"]["parameters"] == {"low": held, "high": held}
        pruned, rounded = (stage["forecast"] for stage in made["stages"])
        assert pruned["macs"]["high"] < made["reference"]["macs"]["low"]
        assert rounded["macs"] == pruned["macs"]
        assert rounded["weight_bytes"]["high"] < pruned["weight_bytes"]["low"] / 4
        assert run("plan", path, "--checkpoint", checkpoint, "--json")[1] == out

    def test_the_table_names_every_stage(self, run: Run, write: Write, checkpoint: Path) -> None:
        code, out, _ = run("plan", write(), "--checkpoint", checkpoint)
        assert code == 0
        for word in ("teacher", "prune.width", "parameters", "MACs", "1 gates"):
            assert word in out


class TestData:
    def test_an_empty_folder(self, run: Run, write: Write, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        arguments = ("plan", write(), "--checkpoint", checkpoint, "--images")
        mistake(run(*arguments, tmp_path / "empty"), "is empty", "give a folder with pictures")
        mistake(run(*arguments, tmp_path / "absent"), "no folder", "give an existing folder")
        mistake(run(*arguments, write()), "is a file")

    def test_a_half_broken_folder(
        self, run: Run, write: Write, checkpoint: Path, pictures: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "half"
        folder.mkdir()
        for number, path in enumerate(sorted(pictures.iterdir())):
            data = path.read_bytes()
            (folder / path.name).write_bytes(data if number < 10 else data[:40])
        mistake(
            run("plan", write(), "--checkpoint", checkpoint, "--images", folder), "14 of 24 pictures", "cannot be read"
        )

    def test_too_few_pictures(self, run: Run, write: Write, checkpoint: Path, pictures: Path) -> None:
        many = {"source": str(pictures), "count": 23, "size": 64}
        recipe = write(data={"calibration": many, "evaluation": many})
        mistake(run("plan", recipe, "--checkpoint", checkpoint), "usable pictures", "23 asked", "lower the count")


class TestCheckpoints:
    @pytest.fixture
    def broken(self, checkpoint: Path, tmp_path: Path) -> Path:
        """A copy to be broken."""
        for path in checkpoint.rglob("*"):
            if path.is_file():
                copy = tmp_path / "broken" / path.relative_to(checkpoint)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
        return tmp_path / "broken"

    def refused(self, run: Run, write: Write, folder: Path, *words: str) -> None:
        out = folder.parent / "out"
        mistake(run("run", write(), "--checkpoint", folder, "--out", out), *words)
        assert not (out / "variant").exists()
        assert not (out / "verdicts.json").exists()

    def test_missing(self, run: Run, write: Write, broken: Path) -> None:
        self.refused(run, write, broken / "absent", "no arch.json")
        (broken / "decoder" / "weights.safetensors").unlink()
        self.refused(run, write, broken, "weights.safetensors does not exist")

    @pytest.mark.parametrize("kept", [0, 5, 100, 4000])
    def test_truncated(self, kept: int, run: Run, write: Write, broken: Path) -> None:
        weights = broken / "decoder" / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:kept])
        self.refused(run, write, broken, "weights.safetensors")

    def test_mismatched_tensors_are_named(self, run: Run, write: Write, broken: Path) -> None:
        weights = broken / "decoder" / "weights.safetensors"
        tensors = load_file(weights)
        tensors["conv_inn.weight"] = tensors.pop("conv_in.weight")
        tensors["conv_out.bias"] = torch.zeros(4)
        save_file(tensors, weights)
        self.refused(
            run,
            write,
            broken,
            "missing tensor conv_in.weight",
            "unexpected tensor conv_inn.weight",
            "conv_out.bias is [4] in the file, [3] in arch.json",
        )

    def test_nan_is_named(self, run: Run, write: Write, broken: Path) -> None:
        weights = broken / "decoder" / "weights.safetensors"
        tensors = load_file(weights)
        tensors["conv_out.bias"][1] = torch.nan
        save_file(tensors, weights)
        self.refused(run, write, broken, "conv_out.bias holds NaN or Inf")

    def test_an_architecture_that_does_not_fit(self, run: Run, write: Write, broken: Path) -> None:
        arch = broken / "decoder" / "arch.json"
        data = json.loads(arch.read_text(encoding="utf-8"))
        data["config"]["norm_groups"] = 5
        arch.write_text(json.dumps(data))
        self.refused(run, write, broken, "arch.json", "norm groups")
        arch.write_text("{")
        self.refused(run, write, broken, "arch.json", "not valid JSON")


class TestRuns:
    @pytest.fixture
    def arguments(self, write: Write, checkpoint: Path, tmp_path: Path) -> list[object]:
        return ["run", write(), "--checkpoint", checkpoint, "--out", tmp_path / "out"]

    def test_json_is_all_that_a_script_reads(self, run: Run, arguments: list[object], tmp_path: Path) -> None:
        code, out, err = run(*arguments, "--json")
        assert code == 0
        rows = json.loads(out)
        assert rows == json.loads((tmp_path / "out" / "verdicts.json").read_text(encoding="utf-8"))
        assert {"metric", "statistic", "against", "value", "limit", "passed"} <= set(rows[0])
        assert "prune.width" in err
        assert json.loads(run("report", tmp_path / "out", "--json")[1]) == rows

    def test_a_run_directory_of_another_recipe(
        self, run: Run, arguments: list[object], write: Write, tmp_path: Path
    ) -> None:
        assert run(*arguments)[0] == 0
        before = (tmp_path / "out" / "recipe.yaml").read_bytes()
        write(seed=1)
        mistake(run(*arguments), "is a run of another recipe", "choose another --out")
        assert (tmp_path / "out" / "recipe.yaml").read_bytes() == before

    def test_a_file_or_a_folder_of_something_else_is_left_alone(
        self, run: Run, arguments: list[object], tmp_path: Path
    ) -> None:
        (tmp_path / "out").write_text("mine")
        mistake(run(*arguments), "choose another")
        mistake(run(*arguments[:-1], tmp_path / "out" / "below"), "choose another")
        assert (tmp_path / "out").read_text() == "mine"
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "file").write_text("mine")
        mistake(run(*arguments[:-1], tmp_path / "mine"), "no run directory")
        assert files(tmp_path / "mine") == ["file"]

    def test_interrupted_then_picked_up(
        self, run: Run, arguments: list[object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(width, "apply", interrupted)
            code, _, err = run(*arguments)
        assert code == 130
        assert "picks up where this one stopped" in err
        assert "Traceback" not in err
        assert run(*arguments)[0] == 0

    @pytest.mark.parametrize("after", [0, 4, 7, 12])
    def test_a_full_disk_leaves_nothing_half_written(
        self,
        after: int,
        run: Run,
        arguments: list[object],
        cache: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        written = {"bytes": Path.write_bytes, "text": Path.write_text}
        count = 0

        def full(kind: str) -> Callable[..., int]:
            def write(path: Path, data: Any, **options: Any) -> int:
                nonlocal count
                count += 1
                if count > after:
                    written[kind](path, data[: len(data) // 2], **options)
                    raise OSError(errno.ENOSPC, "No space left on device", str(path))
                return written[kind](path, data, **options)

            return write

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full("bytes"))
            patch.setattr(Path, "write_text", full("text"))
            code, _, err = run(*arguments)
        assert count > after
        assert code == 2, err
        assert "pace" in err
        assert "Traceback" not in err
        left = [name for folder in (tmp_path / "out", cache) if folder.exists() for name in files(folder)]
        assert not [name for name in left if Path(name).name.startswith(".")]
        for path in (tmp_path / "out").rglob("*.json"):
            json.loads(path.read_text(encoding="utf-8"))
        assert run(*arguments)[0] == 0

    def test_our_own_bug_is_called_one(
        self, run: Run, arguments: list[object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def buggy(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(width, "apply", buggy)
        code, _, err = run(*arguments)
        assert code == 70
        assert "Traceback" in err
        assert "please report" in err

    def test_a_missing_package_is_named_with_its_command(
        self, run: Run, write: Write, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnx", None)
        recipe = write(export=[{"format": "onnx"}])
        code, _, err = run("run", recipe, "--checkpoint", checkpoint, "--out", tmp_path / "out")
        assert code == 3
        assert "pip install 'mdcompress[onnx]'" in err


class TestLookups:
    def test_models_show_counts_what_the_file_holds(self, run: Run) -> None:
        code, out, _ = run("models", "show", "md-tiny/decoder", "--json")
        shown = json.loads(out)
        assert code == 0
        assert shown["parameters"] == sum(t.numel() for t in load_file(PRESET / "weights.safetensors").values())
        assert shown["macs"] == sum(layer["macs"] for layer in shown["layers"])
        first = shown["layers"][0]
        channels = load_file(PRESET / "weights.safetensors")["conv_in.weight"].shape
        assert first["macs"] == channels.numel() * 32 * 32
        half = json.loads(run("models", "show", "md-tiny/decoder", "--pixels", "128", "--json")[1])
        assert half["macs"] * 4 == shown["macs"]
        assert sum(block["macs"] for block in shown["blocks"]) == shown["macs"]
        assert shown["bytes"]["fp32"] == shown["weight_bytes"] == 2 * shown["bytes"]["fp16"]
        assert shown["bytes"]["int4"] < shown["bytes"]["int8"] < shown["bytes"]["fp16"]

    def test_models(self, run: Run) -> None:
        listed = json.loads(run("models", "list", "--json")[1])
        assert listed["md-tiny/decoder"]["weights"] and not listed["stable-diffusion-1.5/decoder"]["weights"]
        assert listed["taesd/decoder"]["parameters"] == 1_222_531
        table = run("models", "list")[1]
        assert [line.split() for line in table.splitlines() if "taesd/decoder" in line] == [
            ["taesd/decoder", "1,222,531", "70.7G", "no"]
        ]
        blocks = run("models", "show", "md-tiny/decoder")[1]
        assert "conv_out" in blocks and "levels.0.resnets.0 " in blocks and "resnets.0.conv1" not in blocks
        layers = run("models", "show", "md-tiny/decoder", "--layers")[1]
        assert "levels.0.resnets.0.conv1" in layers and "in int4" in layers
        assert "--checkpoint" in run("models", "show", "taesd/decoder")[1]
        mistake(run("models", "show", "md-tiny/decodr"), "did you mean 'md-tiny/decoder'?")
        mistake(run("models", "show", "md-tiny/decoder", "--pixels", "100"), "multiple of 8")

    def test_a_recipe_on_an_architecture_without_weights_is_told_what_to_do(self, run: Run, write: Write) -> None:
        for component in ("stable-diffusion-1.5/decoder", "snapfusion/decoder"):
            mistake(run("plan", write(component=component)), component, "without weights", "--checkpoint FOLDER")

    def test_methods(self, run: Run) -> None:
        listed = json.loads(run("methods", "--json")[1])
        assert {"prune.depth", "prune.width", "distill.output", "quantize.rtn", "quantize.static"} <= {
            method["name"] for method in listed
        }
        assert all(method["summary"] and method["source"] for method in listed)
        assert "prune.width" in run("methods")[1]
        options = json.loads(run("methods", "prune.width", "--json")[1])["options"]
        assert next(o for o in options if o["name"] == "ratio")["default"] is None
        table = run("methods", "prune.width")[1]
        assert "Source: " in table
        assert "round_to" in table
        mistake(run("methods", "prune.widht"), "did you mean 'prune.width'")

    def test_schema_is_a_json_schema_that_accepts_what_ships(self, run: Run) -> None:
        jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, a test dependency")
        from compress.recipe import as_written, find, read_recipe

        code, out, _ = run("schema")
        schema = json.loads(out)
        assert code == 0
        jsonschema.Draft202012Validator.check_schema(schema)
        written = as_written(read_recipe(find(SHIPPED)))
        jsonschema.validate(written, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(written | {"colour": "red"}, schema)

    def test_doctor_fails_only_on_a_problem(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        code, out, _ = run("doctor", "--json")
        findings = {finding["what"]: finding for finding in json.loads(out)}
        assert code == (2 if any(finding["state"] == "problem" for finding in findings.values()) else 0)
        assert findings["torch"]["text"] == torch.__version__
        real = extras.version
        monkeypatch.setattr(extras, "version", lambda name: None if name in ("onnx", "rich") else real(name))
        code, out, _ = run("doctor")
        assert code == 2
        assert "problem  rich: not installed: pip install rich" in out
        assert "missing  onnx (for onnx): not installed: pip install 'mdcompress[onnx]'" in out

    def test_report_and_zoo_without_anything_there(
        self, run: Run, write: Write, checkpoint: Path, tmp_path: Path
    ) -> None:
        mistake(run("report", tmp_path), "holds no finished run", "mdcompress run")
        mistake(run("zoo", "list", tmp_path))
        mistake(run("zoo", "verify", tmp_path / "absent"))
        mistake(run("zoo", "add", tmp_path, "--zoo", tmp_path / "zoo"), "nothing for a zoo")
        arguments = ("--recipe", write(), "--checkpoint", checkpoint)
        mistake(run("gate", tmp_path / "absent", *arguments), "nothing to judge")
        assert files(tmp_path) == ["recipe.yaml"]


STAND_INS = ("--images", "--checkpoint", "--module", "--encoder")  # one set of flags: for what a recipe names
STAND_INS += ("--model", "--text-encoder", "--unet", "--decoder")  # and for the parts that draw a picture
STAND_INS += ("--component", "--pixels", "--input")  # for the inputs of bare files
STAND_INS += ("--reference", "--prompts", "--steps", "--guidance", "--solver", "--seed")  # for a bundle's gates file
STAND_INS += ("--device", "--binary", "--cpus")  # and for this host, of --target android alone


class TestCommandLine:
    def test_a_wrong_option_or_command_is_answered_with_a_guess(self, run: Run) -> None:
        mistake(run("plan", SHIPPED, "--imges", "x"), "--images")
        mistake(run("plam"), 'Did you mean "plan"')
        mistake(run("run", SHIPPED), "--out")

    def test_every_command_has_a_help_line(self, run: Run) -> None:
        for page, names in (((), (*COMMANDS, *GROUPS)), *(((group,), names) for group, (_, names) in GROUPS.items())):
            code, out, _ = run(*page, "--help")
            assert code == 0
            described = {words[1]: len(words) > 3 for line in out.splitlines() if len(words := line.split()) > 2}
            assert {name: described.get(name) for name in names} == dict.fromkeys(names, True)

    @pytest.mark.parametrize("command", [*((c,) for c in COMMANDS), *((g, n) for g in GROUPS for n in GROUPS[g][1])])
    def test_at_most_six_options_and_each_explained(self, command: tuple[str, ...], run: Run) -> None:
        code, out, _ = run(*command, "--help")
        assert code == 0
        rows = [line.strip("│ *") for line in out.splitlines() if line.startswith("│") and " --" in line]
        options = [row for row in rows if row.startswith("--") and not row.startswith("--help")]
        own = [row for row in options if row.split()[0] not in STAND_INS]
        assert len(own) <= 6
        assert all("  " in row for row in rows), "an option without an explanation"

    def test_a_reader_that_has_seen_enough_is_no_error(self) -> None:
        command = [sys.executable, "-c", "from compress.cli import entry; entry()", "schema"]
        root = Path(pipeline.__file__).parents[1]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, cwd=root, text=True, **pipes) as process:
            process.stdout.close()  # as `| head` does
            assert process.stderr.read() == ""
        assert process.returncode == 141

    def test_what_scripts_read_is_called_json(self, run: Run) -> None:
        for command in ("check", "plan", "run", "gate", "report", "methods", "doctor"):
            assert "--json " in run(command, "--help")[1]
