"""Entries of another zoo: over a real server on this machine, one that breaks off, one that lies."""

import hashlib
import http.server
import json
import threading
from contextlib import contextmanager
from dataclasses import replace as changed
from functools import partial
from pathlib import Path

import pytest

from compress import zoo, zoo_pull, zoo_verify
from compress.errors import UserError
from compress.runs import Event

NAME = "decoder/d4_w8a8"


class Host(http.server.SimpleHTTPRequestHandler):
    """A static host that knows ranges; it can stop half way, forget ranges, send others' bytes, or redirect."""

    stops: list[int] = []  # noqa: RUF012 - one test's
    ranges = True
    asked: list[tuple[str, str | None]] = []  # noqa: RUF012

    def do_GET(self):
        type(self).asked.append((self.path, self.headers.get("Range")))
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        begin = 0
        if self.ranges and (wanted := self.headers.get("Range")):
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        end = type(self).stops.pop(0) if self.path.endswith(".toy") and type(self).stops else len(content)
        self.wfile.write(content[begin : max(begin, end)])

    def log_message(self, *_):
        pass


@contextmanager
def served(folder, **traits):
    handler = type("Once", (Host,), {"asked": [], "stops": [], **traits})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def there(tmp_path, toy_entry):
    """A zoo of two entries, one of them with a file of some size."""
    big = tmp_path / "built" / "big.toy"
    big.write_bytes(bytes(range(256)) * 4096)
    zoo.add(tmp_path / "there", toy_entry)
    zoo.add(tmp_path / "there", changed(toy_entry, name="decoder/big", files={"big.toy": big}, samples=()))
    return tmp_path / "there"


def quiet(_: Event) -> None:
    pass


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(zoo_pull.time, "sleep", lambda _: None)


def snapshot(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("over", ["folder", "http"])
def test_a_whole_zoo_comes_over_byte_by_byte_and_the_second_time_nothing_moves(tmp_path, there, over):
    here = tmp_path / "here"
    with served(there) as (address, host):
        source = address if over == "http" else str(there)
        told = []
        brought = zoo_pull.pull(source, (), here, emit=told.append)
        assert [(one.name, one.new) for one in brought] == [("decoder/big", True), (NAME, True)]
        assert snapshot(here) == snapshot(there)
        moved = [e for e in told if e.kind == "progress" and e.name == "decoder/big"]
        assert moved[-1].done == moved[-1].total > 1 << 20
        host.asked.clear()
        again = zoo_pull.pull(source, (), here, emit=quiet)
        assert not any(one.new for one in again)
        assert [path for path, _ in host.asked] == ["/index.json"] * (over == "http")
    assert all(c.ok for c in zoo_verify.verify(here, "decoder/big", runner=None))


def test_one_entry_by_name_and_an_unknown_one(tmp_path, there):
    zoo_pull.pull(str(there), ("decoder/big",), tmp_path / "here", emit=quiet)
    assert [e.name for e in zoo.list_entries(tmp_path / "here")] == ["decoder/big"]
    with pytest.raises(UserError, match="no entry 'decoder/bog'; there are: decoder/big"):
        zoo_pull.pull(str(there), ("decoder/bog",), tmp_path / "here", emit=quiet)
    with served(there) as (address, _), pytest.raises(UserError, match=rf"^{address}: no entry 'decoder/bog'"):
        zoo_pull.pull(address, ("decoder/bog",), tmp_path / "here", emit=quiet)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_stops_half_way_is_asked_for_the_rest(tmp_path, there, ranges):
    with served(there, stops=[1000, 5000], ranges=ranges) as (address, host):
        zoo_pull.pull(address, ("decoder/big",), tmp_path / "here", emit=quiet)
        asked = [wanted for path, wanted in host.asked if path.endswith("big.toy")]
    assert asked[:2] == [None, "bytes=1000-"]
    assert (tmp_path / "here/decoder/big/big.toy").read_bytes() == (there / "decoder/big/big.toy").read_bytes()


def test_a_transfer_that_breaks_off_for_good_replaces_nothing_and_goes_on_later(tmp_path, there, toy_entry):
    here = tmp_path / "here"
    zoo.add(here, toy_entry)
    before = snapshot(here)
    words = r"stopped half way \(4000 of 1048576 bytes are here\); the same command"
    with served(there, stops=[1000, 2000, 3000, 4000]) as (address, _), pytest.raises(UserError, match=words):
        zoo_pull.pull(address, ("decoder/big",), here, emit=quiet)
    assert {k: v for k, v in snapshot(here).items() if not k.startswith(".pull/")} == before
    with served(there) as (address, host):
        zoo_pull.pull(address, ("decoder/big",), here, emit=quiet)
        assert [w for p, w in host.asked if p.endswith("big.toy")] == ["bytes=4000-"]
    assert not (here / ".pull").exists()
    assert snapshot(here / "decoder/big") == snapshot(there / "decoder/big")


def test_changed_bytes_of_the_same_length_are_thrown_away(tmp_path, there):
    model = there / "decoder/big/big.toy"
    model.write_bytes(b"x" + model.read_bytes()[1:])
    with pytest.raises(UserError, match="SHA-256 .* the index lists"):
        zoo_pull.pull(str(there), ("decoder/big",), tmp_path / "here", emit=quiet)
    assert not [f for f in snapshot(tmp_path / "here") if "big" in f]


def test_a_file_that_never_ends_is_cut_off(tmp_path, there):
    model = there / "decoder/big/big.toy"
    model.write_bytes(model.read_bytes() * 3)
    with served(there) as (address, _), pytest.raises(UserError, match="the index lists 1048576"):
        zoo_pull.pull(address, ("decoder/big",), tmp_path / "here", emit=quiet)


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a\\b", ".hidden"])
@pytest.mark.parametrize("what", ["entry", "file"])
def test_names_that_lead_out_of_the_zoo_are_refused_before_anything_is_written(tmp_path, there, name, what):
    index = json.loads((there / "index.json").read_text())
    listed = index["entries"].pop(NAME)
    if what == "file":
        index["entries"][NAME] = listed | {"files": {name: listed["files"]["model.toy"]}}
    else:
        index["entries"][name] = listed
    (there / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="not allowed"):
        zoo_pull.pull(str(there), (), tmp_path / "here", emit=quiet)
    assert not (tmp_path / "here").exists()


def test_a_link_out_of_a_folder_is_not_followed(tmp_path, there):
    secret = tmp_path / "secret"
    model = there / "decoder/big/big.toy"
    secret.write_bytes(model.read_bytes())
    model.unlink()
    model.symlink_to(secret)
    with pytest.raises(UserError, match="leads out of the zoo"):
        zoo_pull.pull(str(there), ("decoder/big",), tmp_path / "here", emit=quiet)


def test_an_entry_of_other_content_stays_unless_replaced(tmp_path, there, toy_entry):
    here = tmp_path / "here"
    zoo.add(here, changed(toy_entry, facts={"parameters": 7}))
    before = snapshot(here)
    with pytest.raises(UserError, match="--replace"):
        zoo_pull.pull(str(there), (NAME,), here, emit=quiet)
    assert snapshot(here) == before
    zoo_pull.pull(str(there), (NAME,), here, emit=quiet, replace=True)
    assert snapshot(here / NAME) == snapshot(there / NAME)


def test_the_index_can_be_pinned(tmp_path, there):
    right = hashlib.sha256((there / "index.json").read_bytes()).hexdigest()
    with pytest.raises(UserError, match="not the zoo you trust"):
        zoo_pull.pull(str(there), (), tmp_path / "here", emit=quiet, index_sha256="0" * 64)
    assert zoo_pull.pull(str(there), (), tmp_path / "here", emit=quiet, index_sha256=right.upper())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("ftp://example.org/zoo", "cannot pull over ftp"),
        ("nowhere", "no zoo here"),
        ("http://127.0.0.1:9/zoo", "is this the address of a zoo"),
    ],
)
def test_sources_that_are_no_zoo_are_named(tmp_path, source, words):
    with pytest.raises(UserError, match=words):
        zoo_pull.pull(source, (), tmp_path / "here", emit=quiet)


def test_an_index_from_the_future_and_a_missing_one_are_named(tmp_path, there):
    (there / "index.json").write_text('{"schema": 2, "entries": {}}')
    with served(there) as (address, _):
        with pytest.raises(UserError, match="schema 2 is newer"):
            zoo_pull.pull(address, (), tmp_path / "here", emit=quiet)
        with pytest.raises(UserError, match="HTTP 404"):
            zoo_pull.pull(f"{address}/other", (), tmp_path / "here", emit=quiet)
