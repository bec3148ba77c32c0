"""Answers of a service, and how a reader takes one: text from outside never escapes as an untyped error."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from genevolve_ray.errors import MISREAD, GenevolveError

T = TypeVar("T")

MAX_TOKENS = 1 << 40
"""Largest number of tokens that a service may report; a larger one is not a count."""


class Unusable(GenevolveError):
    """Signal that an answer arrived but cannot be used; raised by readers, it makes the call try again."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        """Keep the wait in seconds that the server requested."""
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True)
class Answer:
    """Hold an answer with status 200 from the server with that base address; header names are in lower case."""

    headers: Mapping[str, str]
    data: bytes
    server: str = ""

    def object(self) -> dict[str, Any]:
        """Return the JSON object in the body. Raises Unusable when it holds something else."""
        try:
            value = json.loads(self.data)
        except (ValueError, RecursionError) as error:
            raise Unusable(f"not JSON: {error}") from error
        if not isinstance(value, dict):
            raise Unusable(f"not a JSON object but {type(value).__name__}")
        return value


async def value_of(answer: Awaitable[Answer], read: Callable[[Answer], T | Awaitable[T]]) -> T:
    """Wait for an answer and return the value that `read`, plain or async, returns for it.

    Raises:
        Unusable: for an answer that neither the client's library nor `read` expected; typed errors pass.
    """
    try:
        value = read(await answer)
        return await value if inspect.isawaitable(value) else value
    except GenevolveError:
        raise
    except MISREAD as error:
        raise Unusable(f"unexpected content: {type(error).__name__}: {error}"[:300]) from error


def reported_count(value: object) -> int | None:
    """Return a number of tokens as a service reports it, None for anything that is not a count."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and isinstance(value, int) and 0 <= value <= MAX_TOKENS else None
