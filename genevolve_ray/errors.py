"""The errors of the package by kind: who can mend them, and what becomes of a rollout that meets one.

Subclasses stand beside what raises them. A subclass keeps the built-in kind that it has by nature (`ValueError`,
`RuntimeError`), so that pydantic and plain callers see it as such.
"""

from __future__ import annotations

import errno

_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""Errors of a disk that is full or cannot be written."""


class GenevolveError(Exception):
    """Root of all errors that this package raises on purpose."""


class UserFault(GenevolveError):
    """Bad input, or a machine that lacks something: ends a command with one clear message and exit code 2."""


class InfraFailure(GenevolveError, RuntimeError):
    """A tool, renderer or judge gave up after bounded retries. Never a reward, never "no hits"."""


class PolicyFault(GenevolveError, ValueError):
    """The policy wrote something unusable: it reads the message as an observation, or its rollout fails with reward 0."""


class ToolArgumentError(PolicyFault):
    """The policy's arguments are unusable; the message goes back to it as an observation."""


def as_user_fault(error: BaseException) -> UserFault | None:
    """Return what a user can mend behind an error, None when the error is ours.

    The cause may sit inside exception groups (tasks side by side). Errors of the operating system about files and disks
    are a user's to mend too.
    """
    if isinstance(error, UserFault):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((fault for e in error.exceptions if (fault := as_user_fault(e))), None)
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
        return UserFault(str(error))
    if isinstance(error, OSError) and error.errno in _DISK:
        return UserFault(str(error))
    return None
