"""The zoo keeps what passed, names every byte that changed, and is the same bytes every time."""

import hashlib
import json
import os
from dataclasses import replace as changed

import pytest
import torch

from compress import zoo, zoo_placing
from compress import zoo_verify as verifying
from compress.errors import MissingExtra, UserError

PASSED = {
    "kind": "min",
    "metric": "psnr",
    "statistic": "mean",
    "against": "reference",
    "value": 31.5,
    "limit": 30.0,
    "passed": True,
}
NAME = "decoder/d4_w8a8"


def doubled(path, *, threads):
    """A runtime whose models are files with a factor in them."""
    text = path.read_text()
    if not text.startswith("factor "):
        raise UserError(f"{path}: not a model")
    return lambda x: x * float(text.split()[1])


def runner(name):
    assert name == "toy"
    return doubled


@pytest.fixture
def entry(toy_entry):
    return toy_entry


@pytest.fixture
def home(tmp_path):
    return tmp_path / "zoo"


def snapshot(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def problems(home, name=None, run=runner):
    return {c.file: c.problem for c in verifying.verify(home, name, runner=run) if not c.ok}


def relist(home, file):
    """What a forger or a careless editor does: change a file and its line in the index."""
    index = json.loads((home / "index.json").read_text())
    content = (home / NAME / file).read_bytes()
    index["entries"][NAME]["files"][file] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (home / "index.json").write_text(json.dumps(index))


def test_an_added_entry_is_listed_shown_and_verified(home, entry):
    place = zoo.add(home, entry)
    assert place == home / NAME
    (listed,) = zoo.list_entries(home)
    assert (listed.name, listed.component, listed.summary["parameters"]) == (NAME, "md-tiny/decoder", 123)
    assert listed.bytes == sum(len(content) for content in snapshot(place).values())
    card = zoo.show(home, NAME)
    assert card["files"]["model.toy"]["sha256"] == hashlib.sha256(b"factor 2.0").hexdigest()
    assert json.loads((place / "verdicts.json").read_text()) == [PASSED]
    assert (place / "recipe.yaml").read_text() == "schema: 1\n"
    checks = verifying.verify(home, runner=runner)
    assert all(check.ok for check in checks)
    assert {c.file for c in checks} == set(snapshot(place))
    assert [c.file for c in checks].count("samples/0.safetensors") == 2  # its bytes, and what it reproduces


def test_the_page_is_made_from_the_card(home, entry):
    page = (zoo.add(home, entry) / "README.md").read_text()
    assert page.startswith('---\nlicense: "apache-2.0"\n')
    for piece in (
        NAME,
        "| torch | 2.13.0 |",
        "| parameters | 123 |",
        "| note | a\\|b |",
        "psnr, mean | 31.5 | at least 30 | passed |",
    ):
        assert piece in page


def test_the_same_entry_gives_the_same_bytes_whatever_the_order(home, tmp_path, entry):
    other = changed(entry, name="decoder/other")
    turned = changed(entry, facts=dict(reversed(entry.facts.items())))
    zoo.add(home, entry)
    zoo.add(home, other)
    zoo.add(tmp_path / "again", other)
    zoo.add(tmp_path / "again", turned)
    assert snapshot(home) == snapshot(tmp_path / "again")


def test_adding_the_same_bytes_changes_nothing_and_other_bytes_need_replace(home, entry):
    place = zoo.add(home, entry)
    before, inode = snapshot(home), place.stat().st_ino
    zoo.add(home, entry)
    assert (snapshot(home), place.stat().st_ino) == (before, inode)
    newer = changed(entry, facts={"parameters": 100})
    with pytest.raises(UserError, match="other content"):
        zoo.add(home, newer)
    assert snapshot(home) == before
    zoo.add(home, newer, replace=True)
    assert zoo.list_entries(home)[0].summary == {"parameters": 100}
    assert problems(home) == {}


def test_a_failed_verdict_a_missing_one_and_nan_do_not_enter(home, entry):
    lpips = {"metric": "lpips", "statistic": "p5", "passed": False}
    with pytest.raises(UserError, match=r"gates not passed: lpips p5$"):
        zoo.add(home, changed(entry, verdicts=(PASSED, lpips)))
    for verdicts in ((), ({"metric": "psnr"},), ({"metric": "psnr", "passed": "yes"},)):
        with pytest.raises(UserError, match="does not enter"):
            zoo.add(home, changed(entry, verdicts=verdicts))
    with pytest.raises(UserError, match="psnr_db"):
        zoo.add(home, changed(entry, facts={"psnr_db": float("nan")}))
    broken = changed(entry.samples[0], output=torch.full((1, 3, 2, 2), float("nan")))
    with pytest.raises(UserError, match="not finite"):
        zoo.add(home, changed(entry, samples=(broken,)))
    assert not home.exists()


@pytest.mark.parametrize(
    "name", ["..", "a/../b", "/abs", "a\\b", ".hidden", "a/.b", "", "a//b", "a/", "C:/x", "a\x00b", " a", "a\nb"]
)
def test_names_that_leave_the_zoo_are_refused_everywhere(home, entry, name):
    with pytest.raises(UserError, match="not allowed"):
        zoo.add(home, changed(entry, name=name))
    with pytest.raises(UserError, match="not allowed"):
        zoo.add(home, changed(entry, files={name: entry.files["model.toy"]}, samples=()))
    assert not home.exists()
    zoo.add(home, entry)
    whole = json.loads((home / "index.json").read_text())
    listed = whole["entries"][NAME]
    for entries in ({name: listed}, {NAME: {**listed, "files": {name: listed["files"]["model.toy"]}}}):
        (home / "index.json").write_text(json.dumps({"schema": 1, "entries": entries}))
        with pytest.raises(UserError, match="not allowed"):
            verifying.verify(home, runner=runner)


def test_names_that_the_zoo_writes_itself_and_nested_entries_are_refused(home, entry):
    source = entry.files["model.toy"]
    for file in ("card.json", "README.md", "samples/x"):
        with pytest.raises(UserError, match="taken by the zoo"):
            zoo.add(home, changed(entry, files={file: source}, samples=()))
    zoo.add(home, entry)
    for name in ("decoder", f"{NAME}/more"):
        with pytest.raises(UserError, match="in one another"):
            zoo.add(home, changed(entry, name=name))


def test_a_folder_that_is_no_entry_is_never_replaced(home, entry):
    (home / NAME).mkdir(parents=True)
    (home / NAME / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no zoo entry"):
        zoo.add(home, entry, replace=True)
    assert snapshot(home) == {f"{NAME}/thesis.txt": b"years of work"}


def test_missing_sources_and_samples_of_unknown_files_are_named(home, tmp_path, entry):
    with pytest.raises(UserError, match=r"gone\.toy: no such file"):
        zoo.add(home, changed(entry, files={"gone.toy": tmp_path / "gone.toy"}))
    with pytest.raises(UserError, match=r"'other\.toy'"):
        zoo.add(home, changed(entry, samples=(changed(entry.samples[0], file="other.toy"),)))


@pytest.mark.parametrize("file", ["model.toy", "card.json", "README.md", "recipe.yaml", "samples/0.safetensors"])
def test_every_changed_truncated_or_missing_file_is_named(home, entry, file):
    path = zoo.add(home, entry) / file
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    checks = [c for c in verifying.verify(home, runner=runner) if c.file == file and not c.ok]
    assert "another SHA-256" in checks[0].problem
    path.write_bytes(content[:-1])
    assert file in problems(home)
    path.unlink()
    assert file in problems(home, NAME)
    path.symlink_to(os.devnull)
    assert file in problems(home)
    path.unlink()
    path.write_bytes(content)
    assert problems(home) == {}


def test_an_artifact_that_changed_is_not_run(home, entry):
    (zoo.add(home, entry) / "model.toy").write_text("factor 2.1")

    def never(name):
        raise AssertionError("ran a file that is not the one that was gated")

    found = problems(home, run=never)
    assert "not intact" in found["samples/0.safetensors"]


def test_extra_files_and_left_over_folders_are_named(home, entry):
    place = zoo.add(home, entry)
    (place / "notes.txt").write_text("mine")
    (home / "decoder" / ".x.1.part").mkdir()
    (home / "decoder" / ".x.1.part" / "model.toy").write_text("half")
    (home / "index.html").write_text("the gallery")
    found = problems(home)
    assert found.keys() == {"notes.txt", "decoder/.x.1.part/model.toy"}
    assert problems(home, NAME).keys() == {"notes.txt"}


@pytest.mark.parametrize(
    ("model", "words"),
    [("factor 2.1", "PSNR"), ("factor nan", "nan"), ("factor 2.01", "PSNR"), ("junk", "does not run: ")],
)
def test_a_sample_that_no_longer_reproduces_is_named(home, entry, model, words):
    (zoo.add(home, entry) / "model.toy").write_text(model)
    relist(home, "model.toy")
    problem = problems(home)["samples/0.safetensors"]
    assert words in problem


def test_a_sample_of_another_shape_fails_and_a_small_difference_passes(home, entry):
    zoo.add(home, entry)
    assert problems(home, run=lambda _: lambda path, threads: lambda x: x * 2 + 5e-4) == {}  # 66 dB
    shapes = problems(home, run=lambda _: lambda path, threads: lambda x: x[:, :, :1] * 2)
    assert "gives (1, 3, 1, 2), not (1, 3, 2, 2)" in shapes["samples/0.safetensors"]
    one_pixel = torch.zeros(1, 3, 2, 2)
    one_pixel[0, 0, 0, 0] = 2.5 / 255
    assert problems(home, run=lambda _: lambda path, threads: lambda x: x * 2 + one_pixel)


def test_wider_tolerances_of_a_sample_are_kept_with_it(home, entry):
    zoo.add(home, changed(entry, samples=(changed(entry.samples[0], max_difference=0.2, min_psnr_db=20.0),)))
    assert problems(home, run=lambda _: lambda path, threads: lambda x: x * 2 + 0.05) == {}
    assert problems(home, run=lambda _: lambda path, threads: lambda x: x * 2 + 0.15)


def test_a_missing_runtime_is_no_verdict(home, entry):
    zoo.add(home, entry)

    def absent(name):
        raise MissingExtra("pip install it")

    bad = [check for check in verifying.verify(home, runner=absent) if not check.ok]
    assert [(c.file, c.missing) for c in bad] == [("samples/0.safetensors", True)]
    assert "pip install it" in bad[0].problem


def test_a_runtime_that_is_installed_and_broken_fails_with_its_reason_and_costs_no_other_check(home, entry):
    zoo.add(home, entry)

    def broken(name):
        raise ImportError("libruntime.so: undefined symbol")

    checks = verifying.verify(home, runner=broken)
    bad = [check for check in checks if not check.ok]
    assert [(c.file, c.missing) for c in bad] == [("samples/0.safetensors", False)]
    assert "libruntime.so: undefined symbol" in bad[0].problem
    assert len(checks) > 1


@pytest.mark.parametrize("moment", ["before the move", "before the index"])
def test_an_add_that_is_cut_off_leaves_a_zoo_that_names_it_and_adding_again_completes_it(
    home, entry, monkeypatch, moment
):
    zoo.add(home, changed(entry, name="decoder/first"))
    whole = snapshot(home)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zoo_placing, "_move" if moment == "before the move" else "write_index", killed)
        with pytest.raises(KeyboardInterrupt):
            zoo.add(home, entry)
    assert problems(home, "decoder/first") == {}
    if moment == "before the move":
        assert snapshot(home) == whole
    else:
        assert f"{NAME}/card.json" in problems(home)
    zoo.add(home, entry)
    assert problems(home) == {}
    assert [e.name for e in zoo.list_entries(home)] == ["decoder/d4_w8a8", "decoder/first"]


def test_a_missing_zoo_and_an_unknown_entry_say_what_to_do(home, entry):
    for call in (zoo.list_entries, lambda z: zoo.show(z, NAME), lambda z: verifying.verify(z, runner=runner)):
        with pytest.raises(UserError, match="mdcompress zoo add"):
            call(home)
    zoo.add(home, entry)
    for call in (
        lambda: zoo.show(home, "decoder/d4_w8"),
        lambda: verifying.verify(home, "decoder/d4_w8", runner=runner),
    ):
        with pytest.raises(UserError, match=NAME):
            call()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema": 2, "entries": {}, "new": 1}', "schema 2 is newer"),
        ("{", "damaged index"),
        ("", "damaged index"),
        ("[]", "damaged index"),
        ('{"schema": 1}', "damaged index"),
        ('{"schema": 1, "entries": {"a": {"component": "c", "files": {"f": {"sha256": "x", "bytes": 1}}}}}', "damaged"),
    ],
)
def test_an_index_that_cannot_be_read_is_named(home, text, words):
    home.mkdir()
    (home / "index.json").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        zoo.list_entries(home)
    assert str(home / "index.json") in str(caught.value)
