"""The command line: help is light, ends are clean, and a full disk costs no step."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import genevolve_ray
from genevolve_ray.cli import main
from genevolve_ray.commands import evolve as session
from genevolve_ray.evolution.inprocess import Ports
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.weights import WeightFolders
from genevolve_ray.records.base import Config

HEAVY = ("ray", "torch", "vllm", "transformers", "pyarrow", "numpy")
COMMANDS = ("evolve", "demo", "sft", "rollout", "render", "judge", "rescore", "bench", "report", "doctor")


class Requests:
    """A request source as the configuration finds it."""

    Config = Config

    def __init__(self, config: Config, images: object) -> None:
        from loop_fakes import FakeRequests

        fake = FakeRequests()
        self.train, self.validation, self.heldout = fake.train, fake.validation, fake.heldout


@pytest.mark.parametrize("arguments", [["--help"], ["evolve", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom genevolve_ray.cli import main\n"
        f"try:\n    main()\nfinally:\n    print([n for n in {HEAVY!r} if n in sys.modules], file=sys.stderr)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(genevolve_ray.__file__).parents[1])}
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (ended.returncode, ended.stderr.strip()) == (0, "[]")
    assert "genevolve" in ended.stdout or "Usage" in ended.stdout


def test_composing_a_configuration_imports_nothing_that_takes_seconds() -> None:
    code = "import sys, genevolve_ray.config; print([n for n in ('ray', 'torch', 'vllm', 'transformers') if n in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout.strip()) == (0, "[]"), ended.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(genevolve: Callable[..., Any], command: str) -> None:
    code, out, _ = genevolve(command, "--help")
    assert code == 0
    assert command in out


@pytest.mark.parametrize("arguments", [["evolve", "atlas", "--steps", "many"], ["sft", "atlas", "--steps", "0"]])
def test_arguments_of_the_wrong_kind_are_named(genevolve: Callable[..., Any], arguments: list[str]) -> None:
    code, _, err = genevolve(*arguments)
    assert code == 2
    assert "--steps" in err


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Engine and learner of the session are fakes; loop, store, summary and report are real."""
    from loop_fakes import FakeLearner, FakeRollouts

    @asynccontextmanager
    async def ports(*_: Any, **__: Any) -> AsyncIterator[Ports]:
        learner = FakeLearner()
        learner.folders = WeightFolders(tmp_path / "weights")
        yield Ports(FakeRollouts(), learner)

    monkeypatch.setattr(session, "open_ports", ports)
    monkeypatch.setattr(session, "write_report", lambda store, out: out.write_text("report"))


@pytest.fixture
def evolve(genevolve: Callable[..., Any], fakes: None, tmp_path: Path, model: Path) -> Callable[..., Any]:
    """`genevolve evolve` on the fakes, two steps of 2 x 2 with a comparison on three requests."""
    settings = {
        "policy.model": model,
        "requests": "{type: 'test_entry:Requests'}",
        "loop.requests_per_step": 2,
        "loop.group_size": 2,
        "loop.validate_every": 0,
        "heldout.requests": 3,
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]

    def run(*more: str) -> Any:
        return genevolve("evolve", "atlas", "--in-process", "--run", str(tmp_path / "run"), *sets, *more)

    return run


def test_a_run_leaves_its_summary_and_report(evolve: Callable[..., Any], tmp_path: Path) -> None:
    code, _, err = evolve("--steps", "2")
    assert (code, err) == (0, "")
    summary = RunStore.read(str(tmp_path / "run")).summary()
    assert summary["steps"] == 2
    assert summary["heldout_pairs"] == 3
    low, high = summary["heldout_gain_interval"]
    # The fakes score by the task's seed, which is the same before and after.
    assert low == high == summary["heldout_gain"] == 0.0
    assert summary["parity_max"] == 1e-6
    assert summary["peak_memory_bytes"] > 1 << 20
    assert set(summary["seconds"]) == {"setup", "evolve", "total"}
    assert (tmp_path / "run" / "report.html").read_text() == "report"


def test_the_same_command_with_more_steps_goes_on(evolve: Callable[..., Any], tmp_path: Path) -> None:
    evolve("--steps", "1")
    code, _, _ = evolve("--steps", "3")
    store = RunStore.read(str(tmp_path / "run"))
    assert (code, store.last_step) == (0, 3)
    assert {"heldout-sft-000000", "heldout-final-000001", "heldout-final-000003"} <= set(store.trajectory_names())
    assert "heldout-sft-000001" not in store.trajectory_names()


def test_no_comparison_where_it_is_switched_off(evolve: Callable[..., Any], tmp_path: Path) -> None:
    code, _, _ = evolve("--steps", "1", "--set", "heldout.requests=0")
    store = RunStore.read(str(tmp_path / "run"))
    assert (code, store.trajectory_names()) == (0, [])
    assert "heldout_gain" not in store.summary()


@pytest.mark.parametrize("victim", ["manifest.json", ".parquet", "000002.json"])
def test_a_full_disk_costs_no_committed_step(
    evolve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    """The disk is full when a group, a checkpoint or the commit of step 2 is written; later it has room again."""
    replace = os.replace

    def full(source: str, target: str) -> None:
        if "00002" in str(target) and str(target).endswith(victim):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        code, _, err = evolve("--steps", "2")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert victim in err
    assert "no space left on the disk" in err
    assert RunStore.read(str(tmp_path / "run")).committed_steps() == [1]
    code, _, err = evolve("--steps", "2")
    assert (code, err) == (0, "")
    assert RunStore.read(str(tmp_path / "run")).committed_steps() == [1, 2]


def test_a_terminated_command_closes_its_run(
    evolve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loop_fakes import FakeRollouts

    draw = FakeRollouts.rollout

    async def terminated_in_step_2(self: FakeRollouts, task: Any) -> Any:
        if task.key.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        return await draw(self, task)

    with monkeypatch.context() as patch:
        patch.setattr(FakeRollouts, "rollout", terminated_in_step_2)
        assert evolve("--steps", "2").code == 128 + signal.SIGTERM
    assert RunStore.read(str(tmp_path / "run")).committed_steps() == [1]
    assert evolve("--steps", "2").code == 0


def test_our_own_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(session, "evolve_run", broken)
    monkeypatch.setattr(sys, "argv", ["genevolve", "evolve", "atlas"])
    with pytest.raises(ZeroDivisionError, match="ours"):
        main()


def test_a_message_of_many_lines_becomes_one(genevolve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise session.UserFault("first\n  second")

    monkeypatch.setattr(session, "evolve_run", fails)
    assert genevolve("evolve", "atlas").err == "error: first second\n"
