"""Results are kept whole or not at all, under keys that change with everything that made them."""

import errno
import threading

import pytest

from compress import store as stores
from compress.errors import UserError
from compress.store import Store, code_digest, key_of

KEY = "ab" * 32


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def left_over(store):
    return sorted(p.name for p in store.root.rglob("*") if p.is_dir() and p.name != KEY[:2])


def write(text):
    return lambda folder: (folder / "result").write_text(text)


def test_what_was_put_is_got(store):
    assert store.get(KEY) is None
    folder = store.put(KEY, write("done"))
    assert store.get(KEY) == folder and (folder / "result").read_text() == "done"
    assert left_over(store) == [KEY] and folder.stat().st_mode & 0o777 == 0o755


def test_the_first_result_stays(store):
    first = store.put(KEY, write("first"))
    assert store.put(KEY, write("second")) == first
    assert (first / "result").read_text() == "first" and left_over(store) == [KEY]


def test_eight_at_once_leave_one_result(store):
    barrier, folders = threading.Barrier(8), []

    def work(number):
        def build(folder):
            (folder / "a").write_text(str(number))
            barrier.wait(timeout=10)  # all have built before any is renamed in
            (folder / "b").write_text(str(number))

        folders.append(store.put(KEY, build))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 8 and len(set(folders)) == 1
    assert (folders[0] / "a").read_text() == (folders[0] / "b").read_text()  # of one builder
    assert left_over(store) == [KEY]


@pytest.mark.parametrize("error", [RuntimeError("no"), UserError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(store, error):
    def build(folder):
        (folder / "half").write_text("x")
        raise error

    with pytest.raises(type(error)):
        store.put(KEY, build)
    assert store.get(KEY) is None and left_over(store) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EEXIST, errno.ENOTEMPTY])
def test_a_disk_that_says_no_is_the_users_to_mend(store, number):
    """Whatever the number: without a result there is no folder to give back."""

    def build(folder):
        raise OSError(number, "the disk says no")

    with pytest.raises(UserError, match="cannot write the store .*the disk says no; set MDCOMPRESS_CACHE"):
        store.put(KEY, build)
    assert store.get(KEY) is None and left_over(store) == []


def test_a_store_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for attempt in (lambda s: s.put(KEY, write("")), lambda s: s.scratch(KEY)):
        with pytest.raises(UserError, match="set MDCOMPRESS_CACHE"):
            attempt(Store(tmp_path / "file"))


def test_scratch_space_survives_until_it_is_cleared(store):
    (store.scratch(KEY) / "checkpoint").write_text("3")
    assert (store.scratch(KEY) / "checkpoint").read_text() == "3"
    assert store.get(KEY) is None
    store.clear_scratch(KEY)
    store.clear_scratch(KEY)
    assert list(store.scratch(KEY).iterdir()) == []


def test_a_key_depends_on_values_and_not_on_their_order():
    one = key_of({"method": "a", "config": {"x": 1, "y": [1, 2]}})
    assert one == key_of({"config": {"y": [1, 2], "x": 1}, "method": "a"}) and len(one) == 64
    others = [{"method": "a", "config": {"x": 2, "y": [1, 2]}}, {"method": "a", "config": {"x": 1, "y": [2, 1]}}, {}]
    assert len({one, *map(key_of, others)}) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_key_of_no_number_is_refused(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        key_of({"config": {"ratio": value}})


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small tree in the place of this one."""
    for name in (*stores.FILES_BELOW, "compress/quantize/rtn.py", "compress/quantize/_layers.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for room in stores.ROOMS_BELOW:
        (tmp_path / room / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / room / "deep" / "some.py").write_text(room)
    monkeypatch.setattr(stores, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "changed",
    [
        "compress/quantize/rtn.py",
        "compress/quantize/_layers.py",
        *(f"{room}/deep/some.py" for room in stores.ROOMS_BELOW),
        *stores.FILES_BELOW,
    ],
)
def test_the_code_of_a_method_is_its_file_and_all_below_it(checkout, changed):
    method = checkout / "compress/quantize/rtn.py"
    before = code_digest(method)
    assert code_digest(method) == before
    (checkout / changed).write_text("another line")
    assert code_digest(method) != before


def test_the_code_of_a_method_is_not_its_sibling(checkout):
    before = code_digest(checkout / "compress/quantize/rtn.py")
    (checkout / "compress/quantize/static.py").write_text("another method")
    (checkout / "compress/cli.py").write_text("another command")
    assert code_digest(checkout / "compress/quantize/rtn.py") == before


def test_every_file_that_keys_depend_on_exists():
    assert all((stores.ROOT / name).is_file() for name in stores.FILES_BELOW)
    assert all(list((stores.ROOT / room).rglob("*.py")) for room in stores.ROOMS_BELOW)


def test_the_store_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MDCOMPRESS_CACHE", str(tmp_path / "here"))
    assert stores.default_root() == tmp_path / "here"
    monkeypatch.delenv("MDCOMPRESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert stores.default_root() == tmp_path / "mdcompress" / "store"
