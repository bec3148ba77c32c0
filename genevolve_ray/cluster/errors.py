"""What goes wrong between processes, and how an error crosses from one to another as itself."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from genevolve_ray.errors import GenevolveError, InfraFailure, ToolArgumentError, UserFault

T = TypeVar("T")


class PlacementError(UserFault):
    """What a run asks for does not exist; the message says what was asked and what there is."""


class StartError(UserFault):
    """A part of the run did not come up; the message names it."""


class PluginError(GenevolveError, RuntimeError):
    """A plug-in failed in a way that nobody expects, with an exception of its own package; the message names that."""


class WorkersLost(GenevolveError, RuntimeError):
    """Rollout workers died more often than they may."""


async def await_remote(reply: Awaitable[T]) -> T:
    """Await a remote call; what it raised is raised here as itself, with the remote traceback as its cause.

    Ray would raise a subclass of it whose text is the whole traceback, which must not reach the policy as the message
    of a tool.
    """
    from ray.exceptions import RayTaskError  # Late: commands that never start Ray read this module for its errors.

    try:
        return await reply
    except RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from RemoteTraceback(str(error))
        raise


class RemoteTraceback(Exception):
    """Carries a remote traceback as the cause of the error that it belongs to."""

    def __str__(self) -> str:
        """Return the traceback on lines of its own."""
        return f"\n{self.args[0]}"


def portable(error: Exception) -> Exception:
    """Return an error of a plug-in as one that any process can read.

    A class of the plug-in's own package may be importable nowhere else, and an error that cannot be unpickled arrives as
    something else: an InfraFailure that would be a broken run.
    """
    if type(error).__module__.partition(".")[0] in ("builtins", "genevolve_ray"):
        return error
    text = str(error)
    for kind in (InfraFailure, ToolArgumentError):
        if isinstance(error, kind):
            return kind(text)
    return PluginError(" ".join(f"{type(error).__name__}: {text}".split()))


async def portable_errors(work: Awaitable[T]) -> T:
    """Await what a plug-in does in a replica; what it raises is raised as an error that the caller can read."""
    try:
        return await work
    except Exception as error:
        readable = portable(error)
        if readable is error:
            raise
        raise readable from error
