"""genevolve doctor PRESET as a command: what it prints and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genevolve_ray.doctor import run as examine
from genevolve_ray.doctor.machine import Check, Status

Command = Callable[..., Any]


@pytest.fixture(autouse=True)
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "diagnose", lambda run_dir: [])
    monkeypatch.setenv("COLUMNS", "200")


def test_a_run_that_can_start_ends_with_0(genevolve: Command, tmp_path: Path) -> None:
    ended = genevolve("doctor", "atlas", "--run", str(tmp_path / "run"))
    assert (ended.code, "can start" in ended.out) == (0, True)
    assert not (tmp_path / "run").exists()


def test_a_run_that_lacks_something_ends_with_1_and_says_what(genevolve: Command) -> None:
    ended = genevolve("doctor", "paper", "--set", "renderer.config.url=http://gpu:8000")
    assert ended.code == 1
    assert "policy.model is 'FILL_IN/policy'" in ended.out
    assert "renderer.config.url" not in ended.out


def test_a_machine_that_cannot_run_anything_stops_a_run_too(
    genevolve: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        examine, "diagnose", lambda run_dir: [Check("ray", Status.PROBLEM, "not installed", "make setup")]
    )
    ended = genevolve("doctor", "atlas")
    assert (ended.code, "not installed" in ended.out) == (1, True)


@pytest.mark.parametrize(
    "arguments", [["atlass"], ["atlas", "--set", "loop.sise=3"], ["--deep"], ["atlas", "--spend"], ["--set", "seed=1"]]
)
def test_what_cannot_be_read_ends_with_2(genevolve: Command, arguments: list[str]) -> None:
    assert genevolve("doctor", *arguments).code == 2


def test_text_that_looks_like_markup_is_printed_as_it_is(genevolve: Command) -> None:
    ended = genevolve("doctor", "atlas", "--set", "policy.model='[/bold]nowhere'")
    assert (ended.code, "[/bold]nowhere" in ended.out) == (1, True)
