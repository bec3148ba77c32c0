"""What a user can mend, told in one line."""

from __future__ import annotations

import errno

from genevolve_ray.config import ConfigError
from genevolve_ray.evolution.files import StoreError
from genevolve_ray.evolution.metrics import MetricWriterError
from genevolve_ray.evolution.plugins import PluginFault
from genevolve_ray.records.published.rejections import DataError
from genevolve_ray.tools.local import CorpusError

_FAULTS = (
    ConfigError,
    StoreError,
    CorpusError,
    DataError,
    MetricWriterError,
    PluginFault,
    FileNotFoundError,
    PermissionError,
    NotADirectoryError,
)
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""Errors of a disk that is full or cannot be written."""


class UserFault(Exception):
    """Bad input or a machine that lacks something: ends a command with one clear message and exit code 2."""


def as_user_fault(error: BaseException) -> UserFault | None:
    """Return what a user can mend behind an error, None when the error is ours.

    The cause may sit inside exception groups (tasks side by side) or below the error that a remote worker raised.
    """
    if isinstance(error, UserFault):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((fault for e in error.exceptions if (fault := as_user_fault(e))), None)
    if isinstance(error, _FAULTS) or (isinstance(error, OSError) and error.errno in _DISK):
        return UserFault(str(error))
    return None
