"""The errors of the package by kind: who can fix them, and how a rollout that meets one ends.

Each subclass is defined next to the code that raises it. A subclass keeps its natural built-in kind (`ValueError`,
`RuntimeError`), so that pydantic and plain callers recognize it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import ClassVar

_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""Errors of a disk that is full or cannot be written."""
_PATH = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY, errno.EXDEV})
"""Errors of a path that no file can have, beside those with a class of their own."""
MISREAD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Errors of code that meets content from outside which it did not expect: they become typed failures."""


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{4,}")


def without_addresses(text: str) -> str:
    """Return a text without addresses of objects, as `<_io.BytesIO object at 0x7f..>` has one: no two runs share them."""
    return _ADDRESS.sub("", text)


class GenevolveError(Exception):
    """Provide the root of all errors that this package raises on purpose."""

    def __str__(self) -> str:
        """Return the message; it may quote other libraries, but holds no addresses of objects."""
        return without_addresses(super().__str__())


class UserFault(GenevolveError):
    """Report bad input, or a machine that lacks something: ends a command with one clear message and exit code 2."""


class InfraFailure(GenevolveError, RuntimeError):
    """Signal that a tool, renderer or judge failed after bounded retries. Never a reward, never "no hits"."""


class RunError(GenevolveError, RuntimeError):
    """End a command with one line and an exit code of its own: nothing in the code of the package explains more."""

    exit_code: ClassVar[int] = 1


class OutageError(RunError):
    """Signal that outside services failed for longer than a run may wait. 75 is EX_TEMPFAIL of sysexits.h."""

    exit_code = 75


class PolicyFault(GenevolveError, ValueError):
    """Signal unusable output of the policy.

    The policy reads the message as an observation, or its rollout fails with reward 0.
    """


class ToolArgumentError(PolicyFault):
    """Signal unusable arguments of the policy; the message is returned to it as an observation."""


def as_ending(error: BaseException) -> tuple[str, int] | None:
    """Return the line and the exit code with which an error ends a command, None for an error that needs a traceback."""
    every = list(_leaves(error))
    if (fault := as_user_fault(error)) is not None:
        return _line(fault), 2
    if (ending := next((e for e in every if isinstance(e, RunError)), None)) is not None:
        return _line(ending), ending.exit_code
    # A service that failed explains itself, unless something else failed with it.
    return (_line(every[0]), 1) if all(isinstance(e, InfraFailure) for e in every) else None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, or those inside exception groups of concurrent tasks."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def as_user_fault(error: BaseException) -> UserFault | None:
    """Return the cause that a user can fix behind an error, None when the error is ours.

    The cause may be inside exception groups (of concurrent tasks). Errors of the operating system about files and disks
    are also the user's to fix.
    """
    if isinstance(error, UserFault):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((fault for e in error.exceptions if (fault := as_user_fault(e))), None)
    if isinstance(
        error, FileNotFoundError | FileExistsError | PermissionError | NotADirectoryError | IsADirectoryError
    ):
        return UserFault(str(error))
    if isinstance(error, OSError) and error.errno in _DISK | _PATH:
        return UserFault(str(error))
    full = os.strerror(errno.EMFILE)
    if (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)) or (
        isinstance(error, ImportError | RuntimeError) and full in str(error)
    ):
        return UserFault(f"{error}: this process may not open more files; raise the limit (ulimit -n 65536)")
    return None
