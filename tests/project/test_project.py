"""House rules that no linter checks: lazy imports, layering, lengths, ignored files, package data."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "genevolve_ray"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES = 400
SMALL_FILE_LINES = 40
MAX_SMALL_FILES = 12
MAX_FUNCTION_LINES = 60
UNFINISHED = ("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("statement", ["import genevolve_ray.cli", "import genevolve_ray.doctor.machine"])
def test_the_command_line_imports_nothing_heavy(statement: str) -> None:
    code = f"import sys; {statement}; print([n for n in ('ray', 'torch', 'vllm', 'transformers') if n in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.strip() == "[]"


def test_imports_follow_the_arrows_of_the_design() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without its docstring."""
    has_docstring = ast.get_docstring(function) is not None
    docstring = function.body[0].end_lineno - function.body[0].lineno + 1 if has_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


def test_functions_stay_short() -> None:
    long = [
        f"{name_of(path)}:{node.lineno} {node.name} has {code_lines(node)} lines"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and code_lines(node) > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_files_stay_short() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_few_files_are_slivers() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES if path.name != "__init__.py"}
    small = sorted(name for name, length in lengths.items() if length < SMALL_FILE_LINES)
    assert len(small) <= MAX_SMALL_FILES, f"put some of them where they are used: {small}"


def test_no_two_modules_of_tests_have_one_name() -> None:
    """Pytest imports them by their bare names, and the folders of all helpers are on the path."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_no_two_public_classes_have_one_name() -> None:
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name_of(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_nothing_is_left_unfinished() -> None:
    assert [name_of(path) for path in SOURCES if any(mark in path.read_text() for mark in UNFINISHED)] == []


@pytest.mark.parametrize("name", ["runs/demo/x", ".venv/x", "a/__pycache__/x", ".mypy_cache/x", ".pytest_cache/x"])
def test_what_is_generated_is_ignored(name: str) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    answer = subprocess.run(["git", "check-ignore", "--quiet", "--no-index", name], cwd=ROOT, timeout=20, check=False)
    assert answer.returncode == 0


def test_every_data_file_of_the_package_is_shipped() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "genevolve_ray"
    ]
    shipped = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    data = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert sorted(name_of(path) for path in data - shipped) == []


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in SOURCES}
    assert sorted(name_of(folder) for folder in folders if not (folder / "__init__.py").exists()) == []


def test_tests_mirror_the_packages() -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    besides = {Path("benchmarks"), Path("e2e"), Path("model_zoo"), Path("project")}
    assert sorted(str(path) for path in folders - besides if not (PACKAGE / path / "__init__.py").exists()) == []


def test_ci_runs_the_linters_and_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert "make lint" in script and "make test" in script
    assert "make test" in (ROOT / "README.md").read_text()


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    inside = [target for target in targets if "://" not in target and not target.startswith("mailto:")]
    assert [target for target in inside if not (page.parent / target).exists()] == []
