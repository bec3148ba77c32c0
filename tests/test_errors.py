"""The errors of the package: one root, and what a user can mend ends in one line, however deep it sits."""

from __future__ import annotations

import ast
import builtins
import errno
import importlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from genevolve_ray.cli import entry
from genevolve_ray.config import ConfigError
from genevolve_ray.errors import (
    GenevolveError,
    InfraFailure,
    OutageError,
    PolicyFault,
    UserFault,
    as_ending,
    as_user_fault,
)
from genevolve_ray.evolution.flow import FlowError
from genevolve_ray.evolution.restore import ResumeError
from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.evolution.store.lock import RunLockedError
from genevolve_ray.gateway.reasons import RefusalReason
from genevolve_ray.tools.local import CorpusError

PACKAGE = Path(__file__).parents[1] / "genevolve_ray"
OUTSIDE = {
    "RemoteTraceback": "is the cause of an error that was raised in another process, and is never raised itself",
}
"""Exception classes that do not descend from the root, and why."""
MADE: dict[str, Callable[[type[Exception]], Exception]] = {
    "GatewayRefusal": lambda kind: kind(RefusalReason.NO_TOKEN, "several\nlines"),
    "RequestNotUnderstood": lambda kind: kind("x", {"names": ["y"]}, ["several\nlines"]),
}
"""Errors that are not built from a message alone."""
MENDABLE = [
    UserFault("x"),
    ConfigError("x"),
    StoreError("x"),
    RunLockedError("x"),
    CorpusError("x"),
    FileNotFoundError("x"),
    FileExistsError("x"),
    PermissionError("x"),
    IsADirectoryError("x"),
    OSError(errno.ENAMETOOLONG, "x"),
    OSError(errno.ELOOP, "x"),
    OSError(errno.ENOSPC, "x"),
    OSError(errno.EDQUOT, "x"),
    OSError(errno.EMFILE, "x"),
    OSError(errno.ENFILE, "x"),
    ImportError("x.so: cannot open shared object file: Too many open files"),
]


class Defined(NamedTuple):
    """A class of the package, as its source says."""

    module: str
    name: str
    bases: tuple[str, ...]


def classes() -> Iterator[Defined]:
    """Yield every class of every module, nested ones too."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(("genevolve_ray", *path.relative_to(PACKAGE).with_suffix("").parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = (ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases)
                yield Defined(module, node.name, tuple(bases))


def ancestors(found: Defined, parents: dict[str, set[str]]) -> set[str]:
    """Return the names of all classes that a class descends from."""
    names: set[str] = set()
    queue = list(found.bases)
    while queue:
        name = queue.pop()
        if name not in names:
            names.add(name)
            queue += parents.get(name, ())
    return names


def exceptions() -> dict[Defined, set[str]]:
    """Return the exception classes of the package with the names of their ancestors."""
    all_classes = list(classes())
    parents: dict[str, set[str]] = {}
    for found in all_classes:
        parents.setdefault(found.name, set()).update(found.bases)
    built_in = {
        name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, BaseException)
    }
    found_all = {found: ancestors(found, parents) for found in all_classes}
    return {found: names for found, names in found_all.items() if names & built_in}


EXCEPTIONS = exceptions()
FAULTS = sorted(found for found, names in EXCEPTIONS.items() if "UserFault" in names)


def test_every_exception_descends_from_one_root() -> None:
    assert len(EXCEPTIONS) > 30
    strangers = {found.name for found, names in EXCEPTIONS.items() if GenevolveError.__name__ not in names}
    assert strangers - {GenevolveError.__name__} == OUTSIDE.keys()


@pytest.mark.parametrize("found", FAULTS, ids=lambda found: found.name)
def test_a_user_fault_ends_a_command_with_one_line_and_exit_code_2(
    found: Defined, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = getattr(importlib.import_module(found.module), found.name)
    error = MADE.get(found.name, lambda kind: kind("several\nlines"))(kind)
    assert isinstance(error, UserFault)

    def command() -> NoReturn:
        raise error

    monkeypatch.setattr(entry, "app", command)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert printed.err.startswith("error: ") and printed.err.endswith("several lines\n")
    assert len(printed.err.splitlines()) == 1


def test_what_is_no_user_fault_leaves_a_command_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> NoReturn:
        raise GenevolveError("x")

    monkeypatch.setattr(entry, "app", command)
    with pytest.raises(GenevolveError, match="x"):
        entry.main()


@pytest.mark.parametrize(("kind", "code"), [(OutageError, 75), (ResumeError, 1), (FlowError, 1), (InfraFailure, 1)])
def test_what_ends_a_run_is_one_line_with_its_own_code(
    kind: type[GenevolveError], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> NoReturn:
        raise ExceptionGroup("tasks", [kind("judge\n\x1b[31mdown")])

    monkeypatch.setattr(entry, "app", command)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == code
    assert capsys.readouterr().err == "error: judge down\n"


def test_a_process_without_free_files_says_how_to_raise_the_limit() -> None:
    line, code = as_ending(OSError(errno.EMFILE, "Too many open files", "/run/x")) or ("", 0)
    assert code == 2 and "ulimit -n" in line and "/run/x" in line


def test_an_error_of_no_known_kind_keeps_its_traceback() -> None:
    assert as_ending(ExceptionGroup("tasks", [KeyError("k")])) is None


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


@pytest.mark.parametrize("kind", [UserFault, InfraFailure, PolicyFault, OutageError])
def test_no_message_of_ours_holds_the_address_of_an_object(kind: type[GenevolveError]) -> None:
    foreign = OSError(f"cannot identify image file {io.BytesIO()!r} of {object()!r}")
    assert "0x" in str(foreign)
    assert str(kind(f"x.png: {foreign}")) == (
        "x.png: cannot identify image file <_io.BytesIO object> of <object object>"
    )
    assert str(kind("bytes at 0x12")) == "bytes at 0x12"
