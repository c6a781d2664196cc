"""Whom a run's files are compared with: only what was measured alike, and the rest by name with its reason."""

from types import SimpleNamespace

import pytest
import torch

from compress import zoo
from compress.comparable import differing, quality_of
from compress.rivals import conditions, trade_off
from eval.compare import Measurement

INPUTS, HERE = "e" * 64, {"latency_host": "here", "latency_runtime": "onnxruntime"}
FACTS = {
    "bytes": 300, "psnr_mean": 26.0, "psnr_definition": "as ever", "latency_ratio": 0.4, "evaluation_sha256": INPUTS,
    **HERE,
}  # fmt: skip


def measurement(values, *, of="candidate", metric="psnr", against="ground_truth"):
    return Measurement(
        metric=metric, net=None, unit="dB", higher_is_better=True, of=of, against=against, values=values,
        definition="as ever",
    )  # fmt: skip


def exported(*measurements):
    return SimpleNamespace(
        format="onnx",
        measurements=measurements,
        sizes=SimpleNamespace(candidate_bytes=250, reference_bytes=1000),
        latency=SimpleNamespace(ratio=0.5, host="here", runtime="onnxruntime"),
    )


PLAN = SimpleNamespace(recipe=SimpleNamespace(name="decoder/mine", component="tiny/decoder"))
MEASURED = SimpleNamespace(basis=SimpleNamespace(digest=INPUTS))
FILE = exported(measurement((26.0, 27.0)), measurement((27.0, 28.0), of="reference"))


@pytest.fixture
def home(tmp_path):
    """Makes a zoo out of names and their facts."""

    def make(component="tiny/decoder", **facts):
        file = tmp_path / "file.onnx"
        file.write_bytes(b"1")
        x = torch.zeros(1, 1)
        for name, known in facts.items():
            entry = zoo.Entry(
                name=f"decoder/{name}", component=component, files={"file.onnx": file}, recipe="", facts=known,
                samples=(zoo.Sample(file="file.onnx", format="onnx", inputs=(x,), output=x.clone()),),
                verdicts=({"metric": "psnr", "passed": True},),
            )  # fmt: skip
            zoo.add(tmp_path / "zoo", entry)
        return tmp_path / "zoo"

    return make


def test_without_a_zoo_a_run_is_beside_its_reference(tmp_path):
    found = trade_off(PLAN, MEASURED, [FILE], tmp_path)
    assert [(c.group, c.quality, c.bytes, c.ratio) for c in found.contenders] == [
        ("reference", 27.5, 1000, 1.0),
        ("run", 26.5, 250, 0.5),
    ]
    assert (found.quality, found.left_out) == ("PSNR to ground truth, dB", ())
    assert trade_off(PLAN, MEASURED, [], tmp_path) is None
    assert trade_off(PLAN, MEASURED, [exported()], tmp_path) is None


def test_only_what_was_measured_alike_is_compared(home):
    other = {"inputs": {"evaluation_sha256": "f" * 64}, "definition": {"psnr_definition": "new"}}
    folder = home(
        alike=FACTS,
        mine=FACTS,
        inputs=FACTS | other["inputs"],
        definition=FACTS | other["definition"],
        elsewhere=FACTS | {"latency_host": "a phone"},
        runtime=FACTS | {"latency_runtime": "torch"},
        older={"bytes": 300, "psnr_mean": 26.0},
    )
    home(component="tiny/unet", stranger=FACTS)
    found = trade_off(PLAN, MEASURED, [FILE], folder)
    assert [(c.name, c.quality, c.bytes, c.ratio) for c in found.contenders if c.group == "zoo"] == [
        ("decoder/alike", 26.0, 300, 0.4),
        ("decoder/elsewhere", 26.0, 300, None),
        ("decoder/runtime", 26.0, 300, None),
    ]
    assert dict(found.left_out) == {
        "decoder/definition": "measured with another definition",
        "decoder/elsewhere": "in the latency chart: measured with another host",
        "decoder/inputs": "measured on other inputs",
        "decoder/older": "its card names no inputs; its card names no definition",
        "decoder/runtime": "in the latency chart: measured with another runtime",
    }


def test_what_a_run_writes_into_its_card_makes_it_comparable(home):
    facts = FACTS | conditions(MEASURED, FILE.measurements)
    assert facts == FACTS
    assert differing(conditions(MEASURED, FILE.measurements), facts) == ""


def test_components_without_pictures_are_compared_by_tensors(home):
    sqnr = exported(measurement((30.0, 32.0), metric="sqnr", against="reference"))
    facts = {"sqnr_mean": 29.0, "sqnr_definition": "as ever", "evaluation_sha256": INPUTS, "bytes": 9, **HERE}
    found = trade_off(PLAN, MEASURED, [sqnr], home(alike=facts))
    assert [(c.group, c.quality) for c in found.contenders] == [("reference", None), ("run", 31.0), ("zoo", 29.0)]
    assert found.quality == "SQNR to the uncompressed model, dB"
    assert quality_of({"psnr_mean": float("nan"), "cosine_mean": 0.9}).metric == "cosine"


def test_a_damaged_zoo_is_said_and_does_not_end_a_run(home):
    folder = home(alike=FACTS)
    (folder / "index.json").write_text("{")
    found = trade_off(PLAN, MEASURED, [FILE], folder)
    assert [c.group for c in found.contenders] == ["reference", "run"]
    ((what, why),) = found.left_out
    assert (what, "damaged index" in why) == ("the zoo", True)
