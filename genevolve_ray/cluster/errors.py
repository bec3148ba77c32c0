"""What goes wrong between processes, and how an error crosses from one to another as itself."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from ray.exceptions import RayTaskError

from genevolve_ray.faults import UserFault

T = TypeVar("T")


class PlacementError(UserFault):
    """What a run asks for does not exist; the message says what was asked and what there is."""


class StartError(UserFault):
    """A part of the run did not come up; the message names it."""


class WorkersLost(RuntimeError):
    """Rollout workers died more often than they may."""


async def arrive(reply: Awaitable[T]) -> T:
    """Await a remote call; what it raised is raised here as itself, with the remote traceback as its cause.

    Ray would raise a subclass of it whose text is the whole traceback, which must not reach the policy as the message
    of a tool.
    """
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
