import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import compress.prune
from compress import registry
from compress.errors import UserError

METHOD = '''"""Cut what hurts least.

Source: Somebody 2024, arXiv:2401.00001,
section 3.
Differs: less.
Cost: nothing.
"""
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from compress.schema import Schema


class Needs(StrEnum):
    TRAINING = "training"


NEEDS = Needs.TRAINING


class Config(Schema):
    ratio: float = Field(gt=0, lt=1, description="share to cut")
    round_to: PositiveInt = 8
    bits: Literal[8, 4] = 8
    keep: tuple[str, ...] = ("conv_*",)
    limit: PositiveInt | None = None
'''


@pytest.fixture
def methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files are prune methods for the length of one test."""
    monkeypatch.setattr(compress.prune, "__path__", [str(tmp_path)])
    importlib.invalidate_caches()
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("compress.prune."):
            del sys.modules[name]
            delattr(compress.prune, name.rsplit(".", 1)[-1])


def test_a_file_is_a_method_and_an_underscore_or_a_folder_is_not(methods: Path) -> None:
    for name in ("zeta.py", "alpha.py", "_loop.py", "notes.txt"):
        (methods / name).write_text("")
    (methods / "sub").mkdir()
    (methods / "sub" / "__init__.py").write_text("")
    assert registry.names("prune") == ["prune.alpha", "prune.zeta"]


def test_listing_and_summary_import_nothing(methods: Path) -> None:
    (methods / "boom.py").write_text('"""Bang.\n\nSource: TNT.\n"""\nraise SystemError\nNEEDS = Needs.NOTHING\n')
    assert "prune.boom" in registry.methods()
    assert registry.summary("prune.boom") == registry.Summary(
        name="prune.boom", summary="Bang.", source="TNT.", needs="nothing"
    )
    with pytest.raises(SystemError):
        registry.load("prune.boom")


def test_load_imports_exactly_that_file(methods: Path) -> None:
    (methods / "one.py").write_text("VALUE = 1\n")
    (methods / "two.py").write_text("raise SystemError\n")
    assert registry.load("prune.one").VALUE == 1
    assert "compress.prune.two" not in sys.modules


def test_describe_has_the_docstring_and_every_option(methods: Path) -> None:
    (methods / "least.py").write_text(METHOD)
    found = registry.describe("prune.least")
    assert (found.summary, found.source, found.differs, found.cost, found.needs) == (
        "Cut what hurts least.",
        "Somebody 2024, arXiv:2401.00001, section 3.",
        "less.",
        "nothing.",
        "training",
    )
    assert [(option.name, option.type, option.default, option.help) for option in found.options] == [
        ("ratio", "float, > 0, < 1", None, "share to cut"),
        ("round_to", "int, > 0", "8", ""),
        ("bits", "8 or 4", "8", ""),
        ("keep", "list of str", "[conv_*]", ""),
        ("limit", "int, > 0 or null", "null", ""),
    ]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("prune.alpa", "prune.alpha"),
        ("pruning.alpha", "prune.alpha"),
        ("alpha", "prune.alpha"),
        ("prune/alpha", "prune.alpha"),
    ],
)
def test_an_unknown_method_is_refused_with_a_guess(methods: Path, asked: str, meant: str) -> None:
    (methods / "alpha.py").write_text("")
    with pytest.raises(UserError, match=f"no method '{asked}'; did you mean '{meant}'.*known: prune.alpha"):
        registry.load(asked)


@pytest.mark.parametrize(
    "asked", ["prune._loop", "prune.os", "prune", "", "prune.", "prune..alpha", "os.path", "prune.sub.x"]
)
def test_only_listed_files_can_be_loaded(methods: Path, asked: str) -> None:
    (methods / "_loop.py").write_text("raise SystemError")
    for call in (registry.load, registry.summary, registry.describe):
        with pytest.raises(UserError, match="no method"):
            call(asked)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="no kind of method 'pruning'; did you mean 'prune'"):
        registry.names("pruning")


def test_a_metric_without_a_file_is_refused() -> None:
    with pytest.raises(UserError, match="no metric 'psrn'; did you mean 'psnr'"):
        registry.metric_traits("psrn")


def test_metric_traits_are_what_the_imported_files_say() -> None:
    from eval import metrics

    assert registry.metrics() == sorted(metrics.names())
    for name in registry.metrics():
        traits, module = registry.metric_traits(name), metrics.get(name)
        assert traits.of_images == (metrics.is_image_metric(name) or traits.of_asked)
        assert traits.of_asked == (metrics.takes(name) == "asked")
        assert traits.sampled == metrics.is_sampled(name)
        assert traits.needs_net == module.NEEDS_NET
        assert ("min" in traits.limits) == module.HIGHER_IS_BETTER


def test_every_file_says_what_it_is() -> None:
    for name in (*registry.methods(), *registry.names("export")):
        found = registry.summary(name)
        assert found.summary.endswith((".", "!")), name
        assert found.source, name
        assert found.needs in ({""} if name.startswith("export") else {"nothing", "statistics", "training"}), name


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys\nfrom compress import recipe, registry\n"
        "[registry.summary(n) for n in (*registry.methods(), *registry.names('export'))]\n"
        "[registry.metric_traits(n) for n in registry.metrics()]\n"
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
