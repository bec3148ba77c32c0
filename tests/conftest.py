"""The helpers of every folder on the import path, the command line in this process, and the end of a test run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

# Tests of one package use helpers that lie beside the tests of another; each folder's tests must also run alone.
sys.path += sorted({str(module.parent) for module in Path(__file__).parent.rglob("*.py")})

_STATUS = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave at once with the tests' own verdict.

    Threads of Ray, torch and vLLM race with the end of an interpreter that has held all of them, and one run in many ended
    in a segmentation fault after every test had passed. What a test starts it ends itself; nothing is left to the exit.
    """
    status = config.stash.get(_STATUS, None)
    if status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def genevolve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the command line with some arguments."""
    from genevolve_ray.cli import main

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["genevolve", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Ended(code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on a machine without a GPU, wherever the tests run."""
    from genevolve_ray.doctor import preflight

    monkeypatch.setattr(preflight, "gpu_count", lambda: 0)
