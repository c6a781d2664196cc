import itertools
from pathlib import Path

import pytest

from compress.located import RecipeError, read_document


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, so that messages hold short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _messages(text: str) -> list[str]:
    Path("r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_document(Path("r.yaml"))
    return str(caught.value).split("\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml:1:1: the file is empty; a recipe starts with 'schema: 1'"),
        ("# nothing\n---\n", "r.yaml:1:1: the file is empty; a recipe starts with 'schema: 1'"),
        ("- a\n- b\n", "r.yaml:1:1: the top level must be a mapping that starts with 'schema: 1'"),
        ("hello", "r.yaml:1:1: the top level must be a mapping that starts with 'schema: 1'"),
        ("schema: 1\ndata:\n\tsource: x\n", "r.yaml:3:1: a tab where YAML wants spaces; indent with spaces"),
        ("schema: 1\nname: [a, b\n", "r.yaml:3:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("schema: 1\nname: a: b\n", "r.yaml:2:8: not valid YAML: mapping values are not allowed here"),
        (
            "schema: 1\n---\nschema: 1\n",
            "r.yaml:2:1: a second document; a recipe is one document, without '---' in the middle",
        ),
        ("%YAML 1.1\n---\nschema: 1\n", "r.yaml:2:1: directives (%YAML, %TAG) are not allowed; recipes are YAML 1.2"),
        ("schema: !!int 1\n", "r.yaml:1:9: tag tag:yaml.org,2002:int: tags are not allowed; write the plain value"),
        ("schema: 1\nname: a\x07b\n", "r.yaml:2:8: character 0x7 is not allowed in YAML"),
        ("schema: " + "[" * 50, "r.yaml:1:28: nested deeper than 20 levels"),
        ("schema: 1\n" + "#" * 1_000_000, "r.yaml: larger than 1000000 bytes; a recipe is a few dozen lines"),
    ],
)
def test_what_is_no_recipe_file(folder: Path, text: str, message: str) -> None:
    assert _messages(text) == [message]


def test_anchors_and_aliases_are_refused_unexpanded(folder: Path) -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{n}: &{n} [*{p}, *{p}]\n" for p, n in itertools.pairwise("abcdefghijklmnopqrstuvwxyz")
    )
    found = _messages(bomb)
    assert found[0] == "r.yaml:1:4: anchor &a: a recipe is whole and visible; write the value out where it is used"
    assert found[2] == "r.yaml:2:8: alias *a: a recipe is whole and visible; write the value out"
    assert len(found) == 26 + 2 * 25
    assert any("alias *d" in line for line in _messages("d: &d {count: 1}\ndata:\n  <<: *d\n"))


def test_what_cannot_be_read(folder: Path) -> None:
    Path("latin.yaml").write_bytes("schema: 1\nname: caf\u00e9\n".encode("latin-1"))
    Path("wide.yaml").write_bytes("schema: 1\n".encode("utf-16"))
    Path("folder.yaml").mkdir()
    for name, message in {
        "latin.yaml": "latin.yaml:2:10: byte 0xe9 is not UTF-8; save the file as UTF-8",
        "wide.yaml": "wide.yaml:1:1: byte 0xff is not UTF-8; save the file as UTF-8",
        "folder.yaml": "folder.yaml: this is a folder; give one YAML file",
        "none.yaml": "none.yaml: no such file",
        "none/none.yaml": "none/none.yaml: no such file",
        "latin.yaml/x.yaml": "latin.yaml/x.yaml: cannot be read: Not a directory",
    }.items():
        with pytest.raises(RecipeError) as caught:
            read_document(Path(name))
        assert str(caught.value) == message
        assert caught.value.exit_code == 2


def test_places_are_those_of_keys_and_items(folder: Path) -> None:
    Path("r.yaml").write_text("a: 1\nb:\n  - {c: 2,\n     d: 3}\n  -\n    4\n")
    document = read_document(Path("r.yaml"))
    assert document.data == {"a": 1, "b": [{"c": 2, "d": 3}, 4]}
    assert document.places == {
        (): (1, 1),
        ("a",): (1, 1),
        ("b",): (2, 1),
        ("b", 0): (3, 5),
        ("b", 0, "c"): (3, 6),
        ("b", 0, "d"): (4, 6),
        ("b", 1): (6, 5),
    }
