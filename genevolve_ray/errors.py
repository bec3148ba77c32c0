"""The errors of the package by kind: who can fix them, and how a rollout that meets one ends.

Each subclass is defined next to the code that raises it. A subclass keeps its natural built-in kind (`ValueError`,
`RuntimeError`), so that pydantic and plain callers recognize it.
"""

from __future__ import annotations

import errno

_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""Errors of a disk that is full or cannot be written."""
MISREAD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Errors of code that meets content from outside which it did not expect: they become typed failures."""


class GenevolveError(Exception):
    """Provide the root of all errors that this package raises on purpose."""


class UserFault(GenevolveError):
    """Report bad input, or a machine that lacks something: ends a command with one clear message and exit code 2."""


class InfraFailure(GenevolveError, RuntimeError):
    """Signal that a tool, renderer or judge failed after bounded retries. Never a reward, never "no hits"."""


class PolicyFault(GenevolveError, ValueError):
    """Signal unusable output of the policy.

    The policy reads the message as an observation, or its rollout fails with reward 0.
    """


class ToolArgumentError(PolicyFault):
    """Signal unusable arguments of the policy; the message is returned to it as an observation."""


def as_user_fault(error: BaseException) -> UserFault | None:
    """Return the cause that a user can fix behind an error, None when the error is ours.

    The cause may be inside exception groups (of concurrent tasks). Errors of the operating system about files and disks
    are also the user's to fix.
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
