import pytest

from eval.errors import EvalError
from eval.metrics import size


def test_a_file_and_a_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.bin").write_bytes(b"x" * 300)
    (tmp_path / "deep" / "b.bin").write_bytes(b"x" * 700)
    (tmp_path / "again.bin").symlink_to(tmp_path / "a.bin")
    assert size.bytes_of(tmp_path / "a.bin") == 300
    assert size.bytes_of(tmp_path) == 1000
    assert size.ratio(tmp_path / "a.bin", tmp_path) == pytest.approx(0.3)


def test_nothing_there_and_nothing_inside(tmp_path):
    with pytest.raises(EvalError, match="no file or folder"):
        size.bytes_of(tmp_path / "missing")
    (tmp_path / "empty.bin").touch()
    with pytest.raises(EvalError, match="is empty"):
        size.ratio(tmp_path / "empty.bin", tmp_path / "empty.bin")
