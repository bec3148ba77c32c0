"""Errors between processes, and the transport of errors from one process to another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from genevolve_ray.errors import GenevolveError, InfraFailure, ToolArgumentError, UserFault

T = TypeVar("T")
Supervise = Callable[..., Awaitable[Any]]
"""See `evolution.deadlines.Supervisor.call`."""


class PlacementError(UserFault):
    """Report that a resource which a run requires does not exist.

    The message names the requirement and the resources.
    """


class StartError(UserFault):
    """Report that a part of the run did not start; the message names it."""


class PluginError(GenevolveError, RuntimeError):
    """Report that a plug-in failed with an unexpected exception of its own package.

    The message names that exception.
    """


class WorkersLost(GenevolveError, RuntimeError):
    """Signal that rollout workers died more often than allowed."""


async def unsupervised(kind: str, process: Any, work: Awaitable[T], ping: object = None) -> T:
    """Await a call on a process without any limit of time."""
    return await work


def dead(message: str) -> Exception:
    """Return the error of a call whose process was ended."""
    from ray.exceptions import RayActorError

    return RayActorError(error_msg=message)


async def await_remote(reply: Awaitable[T]) -> T:
    """Await a remote call; its error is raised here with its own class, with the remote traceback as its cause.

    Ray would raise a subclass of it whose text is the whole traceback. That text must not reach the policy as the
    message of a tool.
    """
    from ray.exceptions import RayTaskError  # Late: commands that never start Ray import this module for its errors.

    try:
        return await reply
    except RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from RemoteTraceback(str(error))
        raise


class RemoteTraceback(Exception):
    """Carry a remote traceback as the cause of the error that it belongs to."""

    def __str__(self) -> str:
        """Return the traceback on lines of its own."""
        return f"\n{self.args[0]}"


def portable(error: Exception) -> Exception:
    """Return an error of a plug-in as one that any process can read.

    A class of the plug-in's own package may not be importable elsewhere. An error that cannot be unpickled arrives as
    another error, and an InfraFailure would then end the run.
    """
    if type(error).__module__.partition(".")[0] in ("builtins", "genevolve_ray"):
        return error
    text = str(error)
    for kind in (InfraFailure, ToolArgumentError):
        if isinstance(error, kind):
            return kind(text)
    return PluginError(" ".join(f"{type(error).__name__}: {text}".split()))


async def portable_errors(work: Awaitable[T]) -> T:
    """Await the work of a plug-in in a replica; raise its errors as errors that the caller can read."""
    try:
        return await work
    except Exception as error:
        readable = portable(error)
        if readable is error:
            raise
        raise readable from error
