"""`mdcompress weights`: only the pinned files are taken, and nothing is fetched unasked."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compress.cli import main
from eval import weights
from eval.errors import EvalError
from eval.metrics import lpips

SQUEEZE = Path(__file__).parents[2] / ".." / "shared" / "weights" / "lpips_squeeze"
CONTENT = b"weights" * 1000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MDCOMPRESS_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    return tmp_path / "weights"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> weights.Pinned:
    """A pinned file of a few bytes in squeeze's place."""
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    pinned = replace(weights.PINNED["squeeze"], sha256=sha256, bytes=len(CONTENT))
    monkeypatch.setitem(weights.PINNED, "squeeze", pinned)
    return pinned


@pytest.fixture
def host(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server on this machine, and the folder that it serves."""
    served = tmp_path / "served"
    served.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(served))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", served
    server.shutdown()
    server.server_close()


def test_the_pins_continue_torchvisions_file_names() -> None:
    for net, pinned in weights.PINNED.items():
        assert pinned.file == lpips.BACKBONES[net]
        assert pinned.sha256.startswith(pinned.file.rpartition("-")[2].removesuffix(".pth"))
        assert len(pinned.sha256) == 64


def test_listing_names_every_net_and_fetches_nothing(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["weights", "list", "--json"]) == 0
    rows = {row["net"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ["st-alex", "alex", "vgg", "squeeze"]
    assert rows["vgg"]["state"] == "missing"
    assert "weights add vgg --download (553 MB)" in rows["vgg"]["text"]
    assert not folder.exists()
    assert main(["weights", "verify", "vgg"]) == 1
    assert main(["weights", "verify"]) == 0


def test_a_source_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "add", "squeeze"]) == 2
    assert "--download" in capsys.readouterr().err
    assert main(["weights", "add", "st-alex", "--file", "x"]) == 2
    assert "needs no file" in capsys.readouterr().err


def test_only_the_pinned_file_is_imported(tmp_path: Path, small: weights.Pinned, folder: Path) -> None:
    file = tmp_path / "download.bin"
    file.write_bytes(CONTENT)
    assert main(["weights", "add", "squeeze", "--file", str(file)]) == 0
    assert (folder / small.file).read_bytes() == CONTENT
    assert weights.status("squeeze").state == "ok"
    (folder / small.file).write_bytes(CONTENT[:-1] + b"!")
    assert weights.status("squeeze").state == "wrong"
    assert main(["weights", "verify"]) == 1
    file.write_bytes(CONTENT[:-1])
    assert main(["weights", "add", "squeeze", "--file", str(file)]) == 2
    assert main(["weights", "add", "squeeze", "--file", str(tmp_path / "absent")]) == 2


def test_torch_hubs_cache_is_recognised(tmp_path: Path, small: weights.Pinned) -> None:
    place = tmp_path / "hub" / "hub" / "checkpoints"
    place.mkdir(parents=True)
    (place / small.file).write_bytes(CONTENT)
    found = weights.status("squeeze")
    assert (found.state, found.path) == ("ok", place / small.file)


def test_a_download_is_checked_before_it_is_kept(host: tuple[str, Path], small: weights.Pinned, folder: Path) -> None:
    address, served = host
    seen: list[int] = []
    (served / small.file).write_bytes(CONTENT)
    path = weights.download("squeeze", host=address, progress=lambda done, whole: seen.append(done))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == len(CONTENT)
    path.unlink()
    for wrong in (CONTENT[:-1] + b"!", CONTENT[:-1], CONTENT + b"!"):
        (served / small.file).write_bytes(wrong)
        with pytest.raises(EvalError, match="nothing was kept"):
            weights.download("squeeze", host=address)
        assert list(folder.iterdir()) == []
    (served / small.file).unlink()
    with pytest.raises(EvalError, match="import it with: mdcompress weights add squeeze --file"):
        weights.download("squeeze", host=address)


@pytest.mark.skipif(not SQUEEZE.is_dir(), reason="the SqueezeNet weights are not beside the repository")
def test_the_features_alone_are_known_by_their_content(folder: Path) -> None:
    path = weights.add("squeeze", SQUEEZE / "squeeze.backbone.pth")
    assert path == folder / "squeeze.backbone.pth"
    assert weights.status("squeeze").state == "ok"
