"""The files in docs/ci and the hook do what they say, as far as a shell can tell without a forge."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from compress.cli import application
from eval import gates, metrics

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def read(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def github_lines() -> list[str]:
    steps = read(DOCS / "ci" / "github-actions.yml")["jobs"]["gates"]["steps"]
    return [line for step in steps for line in step.get("run", "").strip().splitlines()]


def gitlab_lines() -> list[str]:
    job = read(DOCS / "ci" / "gitlab-ci.yml")["decoder gates"]
    return [*job["before_script"], *job["script"]]


@pytest.mark.parametrize("lines", [github_lines, gitlab_lines])
def test_their_commands_exist(lines: Any) -> None:
    ours = [shlex.split(line) for line in lines() if line.startswith("mdcompress ")]
    assert ours
    for _, *words in ours:
        application().parse_args(words, exit_on_error=False, print_error=False)


def test_their_packages_are_this_project() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for line in (*github_lines(), *gitlab_lines()):
        for name, extra in re.findall(r'pip install "(\w+)\[(\w+)\]"', line):
            assert f'name = "{name}"' in text
            assert re.search(rf"^{extra} = \[", text, flags=re.MULTILINE)


@pytest.fixture
def repository(tmp_path: Path, checkpoint: Path, pictures: Path) -> Path:
    """A user's repository: models/decoder, gates/decoder.yaml; and an mdcompress on the path."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "decoder").symlink_to(checkpoint / "decoder")
    (tmp_path / "gates").mkdir()
    whole = {
        "schema": 1,
        "component": "md-tiny/decoder",
        "evaluation": {"source": str(pictures), "count": 2, "size": 64},
        "gates": [{"metric": "psnr", "against": "ground_truth", "min": 1.0}],
    }
    (tmp_path / "gates" / "decoder.yaml").write_text(json.dumps(whole), encoding="utf-8")
    program = tmp_path / "bin" / "mdcompress"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom compress.cli import entry\nentry()\n"
    )
    program.chmod(0o755)
    return tmp_path


def shell(script: list[str], repository: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{repository / 'bin'}:{os.environ['PATH']}", **variables}
    text = "set -e\n" + "\n".join(line for line in script if not line.startswith("pip "))
    return subprocess.run(
        ["bash", "-c", text], cwd=repository, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_githubs_lines_run_and_fill_the_jobs_page(repository: Path) -> None:
    """Of another model than md-tiny's, whose latents are its own: the pictures are bad, and CI says so with 1."""
    page = repository / "page.md"
    judging = [line for line in github_lines() if line.startswith("mdcompress")]
    done = shell(judging, repository, GITHUB_STEP_SUMMARY=str(page))
    assert done.returncode == 1, done.stderr
    showing = [line for line in github_lines() if "GITHUB_STEP_SUMMARY" in line]
    assert shell(showing, repository, GITHUB_STEP_SUMMARY=str(page)).returncode == 0
    assert "gates failed" in page.read_text(encoding="utf-8")
    report = read(DOCS / "ci" / "gitlab-ci.yml")["decoder gates"]["artifacts"]["reports"]["junit"]
    assert (repository / report).is_file()


def test_the_hook_checks_recipes() -> None:
    (hook,) = read(ROOT / ".pre-commit-hooks.yaml")
    assert {"id", "name", "entry", "language", "files"} <= set(hook)
    recipes = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml"))
    matched = [path for path in recipes if re.search(hook["files"], path)]
    assert matched == recipes
    assert not re.search(hook["files"], "recipes/README.md")
    program, *words = shlex.split(hook["entry"])
    assert program == "mdcompress"
    application().parse_args([*words, *matched], exit_on_error=False, print_error=False)


def test_the_page_on_gates_names_every_metric_and_floor() -> None:
    text = (DOCS / "gates.md").read_text(encoding="utf-8")
    for name in metrics.names():
        module = metrics.get(name)
        better = "higher" if module.HIGHER_IS_BETTER else "lower"
        assert f"| `{name}` | {module.TAKES} | {module.UNIT or '-'} | {better} | {module.DEFINITION} |" in text
    for name, spec in gates.FLOORS.items():
        assert f"{name} {spec.max if spec.min is None else spec.min:g}" in text


def test_the_example_on_the_page_is_a_gates_file(tmp_path: Path) -> None:
    from compress.gates_file import read_demands

    text = (DOCS / "gates.md").read_text(encoding="utf-8")
    path = tmp_path / "gates.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    assert len(read_demands(str(path)).recipe.gates) == 6
