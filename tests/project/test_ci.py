"""The workflow runs the make targets that there are, caches by files that there are, and says that it was never run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github/workflows/ci.yml"


def steps() -> list[dict[str, Any]]:
    jobs = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_it_runs_what_a_developer_runs() -> None:
    run = [step["run"] for step in steps() if "run" in step]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"make lint", "make test"} <= set(run)
    assert [line for line in run if f"\n{line.removeprefix('make ')}: " not in makefile] == []


def test_it_uses_the_python_of_the_project() -> None:
    versions = {step["with"]["python-version"] for step in steps() if "setup-python" in step.get("uses", "")}
    assert versions == {"3.11"}


def test_its_cache_keys_name_files() -> None:
    named = re.findall(r"hashFiles\(([^)]*)\)", WORKFLOW.read_text(encoding="utf-8"))
    patterns = {pattern for names in named for pattern in re.findall(r"'([^']+)'", names)}
    assert patterns
    assert [pattern for pattern in patterns if not list(ROOT.glob(pattern))] == []


def test_it_says_that_it_was_not_run() -> None:
    """Delete this test with the sentence once the workflow has run."""
    assert "has not been run yet" in WORKFLOW.read_text(encoding="utf-8").partition("\nname:")[0]
