"""A file appears whole or not at all."""

import errno
import hashlib
import tempfile

import pytest
import torch
from safetensors.torch import load_file

from compress.errors import UserError
from compress.files import (
    copy_artifact,
    parts_of,
    read_json,
    sha256,
    size_of,
    write_atomically,
    write_folder_atomically,
    write_json,
    write_tensors,
    write_text,
)


def test_replaces_what_was_there_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b" / "text"
    write_text(path, "one")
    write_text(path, "zwölf\n")
    assert path.read_bytes() == "zwölf\n".encode() and path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["text"]


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt(), OSError(errno.EIO, "no")])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "text"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(tmp_path, number):
    def write(temporary):
        raise OSError(number, "full")

    with pytest.raises(UserError, match="no space left to write .*text"):
        write_atomically(tmp_path / "text", write)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_full_for_an_empty_file_is_named_too(tmp_path, monkeypatch):
    def no_room(*args, **kwargs):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(tempfile, "mkstemp", no_room)
    with pytest.raises(UserError, match="no space left to write"):
        write_text(tmp_path / "text", "x")


def test_json_is_sorted_and_refuses_what_json_cannot_say(tmp_path):
    path = tmp_path / "data.json"
    write_json(path, {"b": 1, "a": [1.5, None, "ü"]})
    assert path.read_text().index('"a"') < path.read_text().index('"b"')
    assert read_json(path) == {"a": [1.5, None, "ü"], "b": 1}
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.json is not valid JSON"):
        read_json(path)
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        read_json(tmp_path / "none.json")


def test_tensors_are_the_same_bytes_in_any_order_and_layout(tmp_path):
    tensors = {
        "b": torch.arange(24.0).reshape(1, 2, 3, 4),
        "a": torch.tensor([1, 2], dtype=torch.int8),
        "scalar": torch.tensor(3.0),
    }
    write_tensors(tmp_path / "one", tensors)
    shuffled = {n: tensors[n] for n in ("scalar", "a", "b")}
    shuffled["b"] = shuffled["b"].to(memory_format=torch.channels_last)
    write_tensors(tmp_path / "two", shuffled)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back = load_file(tmp_path / "one")
    assert all(torch.equal(back[n], t) and back[n].dtype == t.dtype for n, t in tensors.items())


def test_digest_of_a_file_longer_than_one_chunk(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_folder_appears_whole_in_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "a" / "model.package"
    for content in ("old", "new"):
        write_folder_atomically(path, lambda folder, content=content: write_text(folder / "data" / content, content))
    assert [p.relative_to(path).as_posix() for p in parts_of(path)] == ["data/new"]

    def fail(folder):
        (folder / "half").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_folder_atomically(path, fail)
    assert [p.relative_to(tmp_path).as_posix() for p in parts_of(tmp_path)] == ["a/model.package/data/new"]


def test_artifacts_are_copied_and_measured_whether_file_or_folder(tmp_path):
    folder, file = tmp_path / "m.package", tmp_path / "m.bin"
    write_text(folder / "a" / "b", "12345")
    write_text(folder / "c", "678")
    write_text(file, "12")
    (folder / "c").chmod(0o600)
    for artifact, size in ((folder, 8), (file, 2)):
        copy = tmp_path / "copies" / artifact.name
        copy_artifact(artifact, copy)
        copy_artifact(artifact, copy)
        assert size_of(copy) == size_of(artifact) == size
        assert {p.stat().st_mode & 0o777 for p in parts_of(copy)} == {0o644}
    assert sorted(p.name for p in (tmp_path / "copies").iterdir()) == ["m.bin", "m.package"]
