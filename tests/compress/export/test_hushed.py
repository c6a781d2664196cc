"""Loading the runtimes is silent; what is not known to be noise is passed on, and so is everything where it fails."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compress.export._hushed import environment, lines_without, loggers_without_warnings

ROOT = Path(__file__).parents[3]
ZOO = ROOT / "zoo" / "decoder" / "d4_c50_kd_w8a8"


def test_of_native_lines_only_those_that_are_named_are_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    with lines_without(r"\[pool\.cpp:\d+\] Resetting"):
        os.write(2, b"[pool.cpp:66] Resetting to 1\n[pool.cpp:70] out of memory\nsee [pool.cpp:66] Resetting\n")
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == "[pool.cpp:70] out of memory\nsee [pool.cpp:66] Resetting\nafterwards"


def test_an_error_passes_with_what_was_said_before_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="as it is"), lines_without("noise"):
        os.write(2, b"why it failed\n")
        raise RuntimeError("as it is")
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == "why it failed\nafterwards"


def test_a_logger_says_errors_and_then_all_again(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tests.talker")
    with loggers_without_warnings("tests.talker"):
        logger.warning("untested version")
        logger.error("broken")
    logger.warning("later")
    assert caplog.messages == ["broken", "later"]


def test_a_variable_is_set_for_a_while_and_the_users_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MDCOMPRESS_TEST", raising=False)
    with environment("MDCOMPRESS_TEST", "1"):
        assert os.environ["MDCOMPRESS_TEST"] == "1"
    assert "MDCOMPRESS_TEST" not in os.environ
    monkeypatch.setenv("MDCOMPRESS_TEST", "0")
    with environment("MDCOMPRESS_TEST", "1"):
        assert os.environ["MDCOMPRESS_TEST"] == "0"
    assert os.environ["MDCOMPRESS_TEST"] == "0"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "file", "package"),
    [
        ("coreml", "decoder.mlpackage", "coremltools"),
        ("executorch", "decoder.pte", "executorch"),
        ("litert", "decoder.tflite", "ai_edge_litert"),
    ],
)
def test_a_runtime_loads_a_file_without_a_word(form: str, file: str, package: str) -> None:
    pytest.importorskip(package, reason=f"extra {form} is not installed")
    script = f"from pathlib import Path; from compress.export import {form}; {form}.load(Path({str(ZOO / file)!r}), threads=1)"
    done = subprocess.run([sys.executable, "-B", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
