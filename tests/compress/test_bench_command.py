"""`mdcompress bench`: what it asks of a target, what it prints, how it ends. No timing is judged here."""

import json
import types

import pytest
import torch

from compress import targets
from compress.cli import main
from eval.metrics.latency import LatencyRatio


@pytest.fixture
def bench(monkeypatch, capsys):
    """Runs the command against a target whose answer is known; gives exit code, output, and what was asked."""

    def call(*arguments, ratio=1.0, half=0.01):
        asked = []

        def measure(request):
            asked.append(request)
            request.tell(0.5)
            return LatencyRatio(
                ratio=ratio, low=ratio - half, high=ratio + half, noise_floor=0.012, reference_ms=(10.0,) * 3,
                candidate_ms=(10.0 * ratio,) * 3, pairs=3, threads=request.threads, host="Linux, a processor, 2 cores",
                runtime="fake", clock="processor", cpus=(1,), warmup=10, busy=0.25, looks=2,
            )  # fmt: skip

        fake = types.SimpleNamespace(SUFFIXES=("", ".onnx"), measure=measure)
        monkeypatch.setattr(targets, "get", lambda name: fake)
        code = main(["bench", *map(str, arguments)])
        return code, capsys.readouterr(), asked

    return call


def test_everything_is_printed(bench):
    code, shown, asked = bench("md-tiny/decoder", "md-tiny/decoder", "--pixels", 64)
    text = " ".join(shown.out.split())
    assert code == 0, shown.err
    for words in (
        "A 10 ms", "B 10 ms", "ratio B/A 1.0000, 95 % interval 0.9900 to 1.0100", "noise floor 0.0120", "verdict PASS",
        "Linux, a processor, 2 cores, 25% of the time busy", "fake, 1 thread on processor 1, processor time",
        "3 pairs, 2 looks, warm-up of 10 calls",
    ):  # fmt: skip
        assert words in text, text
    (request,) = asked
    assert [tuple(one.shape) for one in request.inputs] == [(1, 8, 8, 8)]
    assert request.sampling.limits == (1.03,)
    assert request.threads == 1


@pytest.mark.parametrize(
    ("ratio", "more", "code", "verdict"),
    [
        (1.0, (), 0, "pass"),
        (1.05, (), 1, "fail"),
        (1.03, (), 1, "undecided"),
        (1.03, ("--undecided", "pass"), 0, "undecided"),
        (1.05, ("--undecided", "pass"), 1, "fail"),
        (1.05, ("--max-ratio", "1.1"), 0, "pass"),
    ],
)
def test_the_verdict_is_the_exit_code(bench, ratio, more, code, verdict):
    ended, shown, _ = bench("md-tiny/decoder", "md-tiny/decoder", "--json", *more, ratio=ratio)
    record = json.loads(shown.out)
    assert (ended, record["verdict"]) == (code, verdict)
    assert record["candidate"]["median_ms"] == pytest.approx(10 * ratio)
    assert record["ratio"] == ratio
    assert record["host"] == "Linux, a processor, 2 cores"


def test_inputs_come_from_shapes_or_from_the_component_beside_a_file(bench, tmp_path, checkpoint):
    path = tmp_path / "artifacts" / "m.onnx"
    path.parent.mkdir()
    path.write_bytes(b"")
    _, shown, asked = bench(path, path, "--input", "1x8x4x4", "--input", "1x77", "--threads", 2, "--budget", 5)
    assert [tuple(one.shape) for one in asked[0].inputs] == [(1, 8, 4, 4), (1, 77)], shown.err
    assert (asked[0].threads, asked[0].sampling.seconds) == (2, 5.0)
    code, shown, _ = bench(path, path)
    assert (code, "--component md-tiny/decoder" in shown.err) == (2, True)
    (tmp_path / "variant").symlink_to(checkpoint / "decoder")
    again = [bench(path, path)[2][0].inputs[0] for _ in range(2)]
    assert again[0].dim() == 4
    assert torch.equal(*again)
    _, _, asked = bench(path, path, "--component", "md-tiny/encoder", "--pixels", 64)
    assert tuple(asked[0].inputs[0].shape) == (1, 3, 64, 64)


def test_mistakes_end_with_2(bench, tmp_path):
    for arguments, text in (
        (("md-tiny/decoder", "md-tiny/decoder", "--budget", 0), "each must be above 0"),
        (("md-tiny/decoder", "md-tiny/decodr"), "md-tiny/decoder"),
        (("md-tiny/decoder", tmp_path / "absent.onnx"), "no such file"),
        (("md-tiny/decoder", "md-tiny/decoder", "--input", "1xtwo"), "write a shape as 1x8x32x32"),
    ):
        code, shown, _ = bench(*arguments)
        assert (code, text in shown.err) == (2, True), shown.err
