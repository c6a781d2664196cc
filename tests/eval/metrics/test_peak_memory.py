import sys
import time

import pytest

from eval.errors import EvalError
from eval.metrics import peak_memory

MIB = 2**20


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A module that a child process can import."""
    (tmp_path / "memory_work.py").write_text(
        "import sys, time\n"
        "def take(mib):\n    block = bytearray(int(mib) << 20)\n    block[::4096] = bytes(len(block[::4096]))\n    del block\n"
        "def fail(text):\n    raise SystemExit(text)\n"
        "def wait(seconds):\n    time.sleep(float(seconds))\n"
        "def talk(text):\n    print(text)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "memory_work"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux counts what the test expects")
def test_the_peak_is_what_was_taken_though_it_was_given_back(work):
    small, large = (peak_memory.measured(f"{work}:take", [str(mib)]).added for mib in (8, 64))
    assert 7.5 * MIB <= small <= 14 * MIB
    assert 63.5 * MIB <= large <= 70 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux counts what the test expects")
def test_the_parents_size_is_not_the_childs(work):
    ballast = bytearray(300 * MIB)
    ballast[::4096] = bytes(len(ballast[::4096]))
    found = peak_memory.measured(f"{work}:talk", ["hello"])
    assert found.peak < 300 * MIB
    assert found.added < 4 * MIB


def test_a_child_that_fails_or_hangs_is_named(work):
    with pytest.raises(EvalError, match="ended with 1 in a process of its own: no such model"):
        peak_memory.measured(f"{work}:fail", ["no such model"])
    began = time.monotonic()
    with pytest.raises(EvalError, match=r"more than 0.5 s"):
        peak_memory.measured(f"{work}:wait", ["60"], seconds=0.5)
    assert time.monotonic() - began < 30
