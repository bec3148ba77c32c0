"""The helpers of every folder on the import path, the order of a parallel run, the command line in this process, the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings

# The same examples every time, and no stop-watch: a busy machine must not fail a property.
settings.register_profile("repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")

# Once a machine has a token of Ray, private clusters ask for it. A process cannot then join a cluster that has none.
os.environ["RAY_AUTH_MODE"] = "disabled"

# Tests of one package use helpers that lie beside the tests of another; each folder's tests must also run alone.
sys.path += sorted({str(module.parent) for module in Path(__file__).parent.rglob("*.py")})

from head_node import Head, head_node  # noqa: E402

_STATUS = pytest.StashKey[int]()


@cache
def _starts_clusters(file: str) -> bool:
    return "mark.e2e" in (Path(__file__).parents[1] / file).read_text(encoding="utf-8")


def _unit(nodeid: str) -> str:
    """Return which tests of a parallel run stay together in one process: those of a file.

    The files of `tests/cluster` that start clusters are one unit, so that one process is busy with clusters and the other
    one with everything else.
    """
    file = nodeid.partition("::")[0]
    return "clusters" if file.startswith("tests/cluster/") and _starts_clusters(file) else file


def _turn(item: pytest.Item) -> int:
    """Return when a test comes: clusters first, since they take longest; other files that start engines or clusters last."""
    unit = _unit(item.nodeid)
    return 0 if unit == "clusters" else 1 + _starts_clusters(unit)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # A process of a parallel run.
        items.sort(key=_turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _unit(nodeid)

    config.option.loadscopereorder = False
    return Units(config, log)


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


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Head]:
    """A Ray cluster for all tests of this process that need one but neither kill it nor look at how it ends."""
    with head_node(cpus=4) as head:
        yield head


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on a machine without a GPU, wherever the tests run."""
    from genevolve_ray.doctor import preflight

    monkeypatch.setattr(preflight, "find_gpus", list)
