"""The licence that a folder's page states, and nothing guessed."""

import pytest

from compress.components import licence_of

PAGE = "---\nlicense: {}\ntags: [x]\n---\n\n# Model\n\nlicense: not here\n"


@pytest.mark.parametrize("written", ["Apache-2.0", "'apache-2.0'", '"Apache-2.0"  '])
def test_the_front_matter_of_the_folder_or_its_model_is_read(tmp_path, written):
    folder = tmp_path / "model" / "decoder"
    folder.mkdir(parents=True)
    (folder.parent / "README.md").write_text(PAGE.format(written))
    assert licence_of(folder) == "apache-2.0"
    (folder / "README.md").write_text(PAGE.format("openrail++"))
    assert licence_of(folder) == "openrail++"


@pytest.mark.parametrize(
    "page", [None, "# Model\n\nlicense: mit\n", "---\ntags: [x]\n---\nlicense: mit\n", "---\nlicense:\n---\n"]
)
def test_what_states_none_is_unknown(tmp_path, page):
    folder = tmp_path / "a" / "b" / "decoder"
    folder.mkdir(parents=True)
    (tmp_path / "README.md").write_text(PAGE.format("mit"))  # too far up to be the model's
    if page is not None:
        (folder / "README.md").write_text(page)
    assert licence_of(folder) == "unknown"


def test_what_ships_with_weights_states_its_licence():
    from compress.components import find

    assert licence_of(find("md-tiny/decoder", None)) == "apache-2.0"
