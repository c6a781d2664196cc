"""The zoo that is built again has the same digests, or says which file has not."""

import json
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="extra onnx is not installed")
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import make_zoo

from compress import evaluation, pipeline
from compress.zoo_index import read_index
from compress.zoo_placing import settle


@pytest.mark.slow
def test_built_again_it_has_the_same_digests_or_the_file_is_named(
    checkpoint: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluation, "JUDGED_LATENCY_SECONDS", 0.05)
    monkeypatch.setattr(pipeline, "STAGE_LATENCY_SECONDS", 0.05)
    source = {"source": str(pictures), "count": 2, "size": 64}
    whole = {"schema": 1, "name": "decoder/tiny", "component": "tiny/decoder", "seed": 0}
    whole |= {"data": {"calibration": source, "evaluation": source}, "export": [{"format": "onnx", "dynamic": False}]}
    whole |= {"stages": [{"method": "quantize.palette", "bits": 8}], "gates": [{"metric": "psnr", "max_drop": 9}]}
    recipe, zoo, work = tmp_path / "tiny.yaml", tmp_path / "zoo", tmp_path / "work"
    monkeypatch.setattr(make_zoo, "THREADS", 1)

    def made(method: str) -> int | str:
        whole["stages"] = [{"method": method, "bits": 8}]
        recipe.write_text(json.dumps(whole))
        argv = ["make_zoo.py", recipe, "--zoo", zoo, "--work", work, "--checkpoint", checkpoint, "--formats", "onnx"]
        monkeypatch.setattr(sys, "argv", [*map(str, argv)])
        with pytest.raises(SystemExit) as ended:
            make_zoo.main()
        return ended.value.code or 0

    assert "no format holds it" in str(made("quantize.palette"))
    assert "left out: decoder/tiny in onnx: " in capsys.readouterr().out
    assert made("quantize.rtn") == 0
    shutil.rmtree(work)
    before = (zoo / "decoder" / "tiny" / "decoder.onnx").read_bytes()
    assert made("quantize.rtn") == 0
    assert " files as they were" in capsys.readouterr().out
    assert (zoo / "decoder" / "tiny" / "decoder.onnx").read_bytes() == before
    index = json.loads((zoo / "index.json").read_text())
    entry = next(iter(read_index(zoo)))
    text = json.dumps(index).replace(index["entries"][entry]["files"]["decoder.onnx"]["sha256"], "0" * 64)
    (zoo / "index.json").write_text(text)
    assert made("quantize.rtn") == 1
    assert f"differs: {entry}/decoder.onnx" in capsys.readouterr().out
    shutil.copytree(zoo / "decoder" / "tiny", tmp_path / "other")
    settle(zoo, "decoder/other", tmp_path / "other", replace=False)
    others = (zoo / "decoder" / "other" / "card.json").read_bytes()
    whole["gates"] = [{"metric": "psnr", "max_drop": 8}]
    assert made("quantize.rtn") == 1
    assert (zoo / "decoder" / "other" / "card.json").read_bytes() == others
    assert set(read_index(zoo)) == {entry, "decoder/other"}
