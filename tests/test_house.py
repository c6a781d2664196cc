"""The rules of the house that a machine can check."""

import ast
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import CycloptsError

from compress import registry
from compress.cli import application

ROOT = Path(__file__).parents[1]
PACKAGES = ("compress", "calibration", "eval")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
TALKS = {
    "compress/cli.py",
    "compress/commands.py",
    "compress/model_commands.py",
}  # the rooms that print, and that answer for every error
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "recipes/README.md", "docs/checkpoints.md")
MOST_LINES = 400


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def python(script: str, *, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-B", "-c", script], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


each_module = pytest.mark.parametrize("path", MODULES, ids=relative)

# ---------------------------------------------------------------------------------------------------------- imports

LINT = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
VIOLATIONS = {
    "a room below imports the one above": ("eval/stats.py", "import compress.errors"),
    "eval imports calibration": ("eval/stats.py", "import calibration.errors"),
    "a method imports another": ("compress/prune/width.py", "import compress.quantize.rtn"),
    "the pipeline imports the commands": ("compress/pipeline.py", "import compress.commands"),
}


def test_data_flows_one_way() -> None:
    pytest.importorskip("importlinter", reason="needs import-linter, a test dependency")
    result = python(LINT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("what", VIOLATIONS)
def test_the_import_contracts_catch(what: str, tmp_path: Path) -> None:
    pytest.importorskip("importlinter", reason="needs import-linter, a test dependency")
    for package in PACKAGES:
        ignore = shutil.ignore_patterns("presets", "__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    file, line = VIOLATIONS[what]
    with (tmp_path / file).open("a", encoding="utf-8") as module:
        module.write(f"\n{line}\n")
    result = python(LINT, cwd=tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout


HELP = """
import json, sys
from compress.cli import main
assert main(["--help"]) == 0
assert main(["run", "--help"]) == 0
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def test_help_loads_nothing_heavy() -> None:
    result = python(HELP)
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stderr.splitlines()[-1])
    assert "cyclopts" in loaded
    assert not {"torch", "numpy", "pydantic", "PIL", "ruamel.yaml"} & set(loaded)


IMPORT_ALL = """
import importlib, json, logging, os, pkgutil, random, sys, warnings
import cyclopts, jaxtyping, numpy, PIL.Image, pydantic, rich.console, rich.progress, ruamel.yaml, safetensors.torch
import torch, torch.export, torch.nn.functional

def state():
    return {
        "grad": torch.is_grad_enabled(),
        "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "seed": torch.initial_seed(),
        "torch numbers": hash(torch.get_rng_state().numpy().tobytes()),
        "random numbers": hash(random.getstate()),
        "numpy numbers": hash(numpy.random.get_state()[1].tobytes()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "log handlers": len(logging.getLogger().handlers),
        "log level": logging.getLogger().level,
        "warnings": len(warnings.filters),
        "environment": hash(tuple(sorted(os.environ.items()))),
        "path": hash(tuple(sys.path)),
    }

done = []
SEEN = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.mkdir", "os.remove", "os.rename")

def watch(event, arguments):
    if event in SEEN:
        done.append(f"{event} {arguments}")
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        done.append(f"wrote {arguments[0]}")

before = state()
sys.addaudithook(watch)
names = []
for package in ("compress", "calibration", "eval"):
    module = importlib.import_module(package)
    names += [m.name for m in pkgutil.walk_packages(module.__path__, f"{package}.")]
for name in names:
    importlib.import_module(name)
HEAVY = ("onnx", "onnxruntime", "onnxscript", "skimage", "sklearn", "jinja2", "torchmetrics", "torchvision")
heavy = [name for name in HEAVY if name in sys.modules]
after = state()
changed = [key for key in before if before[key] != after[key]]
print(json.dumps({"names": len(names), "done": done, "changed": changed, "heavy": heavy}))
"""


def test_importing_every_module_does_nothing() -> None:
    result = python(IMPORT_ALL)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert found["names"] >= len([path for path in MODULES if path.name != "__init__.py"])
    assert {key: found[key] for key in ("done", "changed", "heavy")} == {"done": [], "changed": [], "heavy": []}


def test_a_test_that_used_the_network_would_fail() -> None:
    with socket.socket() as line, pytest.raises(pytest.fail.Exception, match="the network was used"):
        line.connect(("192.0.2.1", 80))


# ------------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=relative)
def test_a_module_fits_in_one_head(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__init__.py"], ids=relative)
def test_a_file_says_what_it_is(path: Path) -> None:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert doc
    assert doc.splitlines()[0].endswith((".", ":", ";")) or len(doc.splitlines()) > 1
    assert path.stem.strip("_") not in ("utils", "util", "common", "helpers", "base", "manager", "misc")


@pytest.mark.parametrize(
    ("name", "test"),
    [
        *((n, f"tests/compress/{n.replace('.', '/test_')}.py") for k in registry.KINDS for n in registry.names(k)),
        *((n, f"tests/eval/metrics/test_{n}.py") for n in registry.metrics()),
    ],
)
def test_every_method_metric_and_exporter_has_its_tests(name: str, test: str) -> None:
    assert (ROOT / test).is_file(), f"{name} has no {test}"
    assert "def test_" in (ROOT / test).read_text(encoding="utf-8")


PICKLES = ("pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
SAFE = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False", "numpy.load": "allow_pickle=False"}


def unsafe(source: str) -> list[str]:
    """Every use of pickle but the name of its error, every load that could unpickle, every call that runs text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, ast.expr) else ""
        if isinstance(node, ast.ImportFrom) and node.module in PICKLES:
            found.append(f"from {node.module}")
        elif isinstance(node, ast.Attribute) and text.split(".")[0] in PICKLES and node.attr != "UnpicklingError":
            found.append(text)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = [f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in node.keywords]
            if called in ("torch.save", "eval", "exec", "os.system") or SAFE.get(called, "") not in (*keywords, ""):
                found.append(text)
    return found


@each_module
def test_nothing_is_pickled(path: Path) -> None:
    assert unsafe(path.read_text(encoding="utf-8")) == []


def test_a_pickle_would_be_found() -> None:
    assert unsafe("import pickle\nx = pickle.UnpicklingError\ntorch.load(f, weights_only=True)\nm.eval()") == []
    for line in (
        "import pickle; pickle.loads(b)",
        "from pickle import loads",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f)",
        "torch.save(m, f)",
        "eval(t)",
    ):
        assert unsafe(line), line


@each_module
def test_only_the_command_line_prints_and_catches_everything(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "input"):
            assert relative(path) in TALKS, f"line {node.lineno} prints"
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            allowed = relative(path) in TALKS or caught not in ("Exception", "BaseException", "everything")
            assert allowed, f"line {node.lineno} catches {caught}"


@each_module
def test_tensor_files_keep_their_annotations(path: Path) -> None:
    """`from __future__ import annotations` would turn off the check of shapes."""
    assert not [n for n in nodes(path) if isinstance(n, ast.ImportFrom) and n.module == "__future__"]


def committed_texts() -> list[Path]:
    folders = (*PACKAGES, "recipes", "scripts", "tests", "docs", ".ci")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]  # a worktree's
    binary = (".safetensors", ".pyc", ".png", ".jpg", ".onnx", ".npz", ".webp")
    return [path for path in found if path.suffix not in binary and path != Path(__file__)]


MACHINE_PATHS = re.compile(r"(?<![\w.$}~-])/(?:work|root|home|Users|tmp|opt|mnt)/|[A-Z]:\\Users|\.\./shared")


def test_no_committed_file_names_a_path_of_some_machine() -> None:
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in committed_texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE_PATHS.search(line)
    ]
    assert found == []


# -------------------------------------------------------------------------------------------------------- documents


def shell_lines(text: str) -> Iterator[str]:
    """The `mdcompress` and `make` lines of fenced or indented blocks, without prompt, explanation and pipe."""
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            command = re.split(r"\s{2,}|\s[|>#]|\s&&|;", line.strip().removeprefix("$ "))[0]
            if command.startswith(("mdcompress ", "make ")):
                yield command


def targets() -> set[str]:
    makefile = ROOT / "Makefile"
    text = makefile.read_text(encoding="utf-8") if makefile.exists() else ""
    return set(re.findall(r"^([a-z][\w-]*):", text, flags=re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_in_the_documents_exist(document: str) -> None:
    path = ROOT / document
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not text:
        pytest.skip(f"{document} has no content yet")
    for line in shell_lines(text):
        program, *words = shlex.split(line)
        if program == "make":
            assert {word for word in words if "=" not in word and word[0] != "-"} <= targets(), line
        elif "--help" not in words and "--version" not in words:
            try:
                application().parse_args(words, exit_on_error=False, print_error=False)
            except CycloptsError as error:
                pytest.fail(f"{document}: {line}: {error}")


def test_a_command_that_does_not_exist_would_be_found() -> None:
    text = (
        "Text\n\n```\n$ mdcompress plan x --jsno\n```\n\n    mdcompress check a/b     explained\n    make demo && ls\n"
    )
    assert list(shell_lines(text)) == ["mdcompress plan x --jsno", "mdcompress check a/b", "make demo"]
    with pytest.raises(CycloptsError):
        application().parse_args(["plan", "x", "--jsno"], exit_on_error=False, print_error=False)
