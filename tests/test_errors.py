"""Which errors a user can mend, however deep they sit."""

from __future__ import annotations

import errno

import pytest

from genevolve_ray.config import ConfigError
from genevolve_ray.errors import UserFault, as_user_fault
from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.lock import RunLockedError
from genevolve_ray.tools.local import CorpusError

MENDABLE = [
    UserFault("x"),
    ConfigError("x"),
    StoreError("x"),
    RunLockedError("x"),
    CorpusError("x"),
    FileNotFoundError("x"),
    PermissionError("x"),
    OSError(errno.ENOSPC, "x"),
    OSError(errno.EDQUOT, "x"),
]


@pytest.mark.parametrize("error", MENDABLE, ids=lambda e: type(e).__name__)
def test_what_a_user_can_mend_keeps_its_words(error: Exception) -> None:
    fault = as_user_fault(error)
    assert fault is not None
    assert "x" in str(fault)


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), RuntimeError("x"), AssertionError("x"), FloatingPointError("x"), OSError(errno.EPIPE, "x")],
)
def test_what_is_ours_is_no_fault_of_the_user(error: Exception) -> None:
    assert as_user_fault(error) is None


def test_a_fault_is_found_inside_groups() -> None:
    deep = ExceptionGroup("outer", [KeyError("k"), ExceptionGroup("inner", [StoreError("disk")])])
    assert str(as_user_fault(deep)) == "disk"
    assert as_user_fault(ExceptionGroup("outer", [KeyError("k")])) is None
