"""The end of a test run."""

from __future__ import annotations

import os
import sys

import pytest

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
