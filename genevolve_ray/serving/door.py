"""The common part of served components over HTTP: token, body and queue within bounds, and typed errors."""

from __future__ import annotations

import asyncio
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from genevolve_ray.errors import GenevolveError
from genevolve_ray.gateway.limits import read_bounded, while_connected
from genevolve_ray.gateway.reasons import GatewayRefusal
from genevolve_ray.records.base import Config
from genevolve_ray.records.pictures import PictureLimits
from genevolve_ray.records.secrets import shown
from genevolve_ray.serving.access import Access

MIB = 1 << 20
_SMALL_BYTES = 1 << 18
"""A body up to this size is parsed in the event loop."""
_RETRY_SECONDS = "2"
_LOG = logging.getLogger(__name__)


class DoorLimits(Config):
    """Configure the limits of the callers of a served component, for each replica."""

    body_mib: float = Field(default=64.0, gt=0)
    """Largest request, MiB."""
    body_seconds: float = Field(default=120.0, gt=0)
    """Seconds within which a request must have arrived."""
    concurrent: int = Field(default=64, ge=1)
    """Calls that the component works on at once."""
    queue: int = Field(default=256, ge=0)
    """Calls that wait; further ones are refused with status 503."""
    seconds: float = Field(default=300.0, gt=0)
    """Seconds that the component may take for a call, without the wait."""
    pictures: int = Field(default=16, ge=1)
    """Most pictures of one request."""
    picture: PictureLimits = PictureLimits()
    """Pictures that are accepted; each is encoded again."""


class Fault(GenevolveError):
    """Signal a request that is not answered: HTTP status, code, message, and the field of the request at fault."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        """Keep the parts of the answer."""
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


@dataclass
class _Places:
    """Count the calls of a component: those in progress and those that wait."""

    limits: DoorLimits
    taken: int = 0
    working: int = 0

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.limits.concurrent)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place in the queue from before the body is read. Raises Fault when none is left."""
        if self.taken >= self.limits.concurrent + self.limits.queue:
            raise Fault(503, "overloaded", f"{self.taken} calls are in progress or waiting: try again later")
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the component, and count the call as in progress."""
        async with self._free:
            self.working += 1
            try:
                yield
            finally:
                self.working -= 1


Handler = Callable[[Request], Awaitable[Response]]


class Door(ABC):
    """Answer the requests of one component. The token is checked before anything of the body is read."""

    def __init__(self, access: Access, limits: DoorLimits) -> None:
        """Keep who may call, and the limits."""
        self.access, self.limits = access, limits
        self._places = _Places(limits)
        self.routes: dict[tuple[str, str], Handler] = {("GET", "/health"): self._health, ("GET", "/"): self._health}

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the plug-in's type and settings by which a run calls this component, without address and token."""

    @abstractmethod
    def check_health(self) -> None:
        """Raise when the component can no longer answer."""

    @abstractmethod
    async def aclose(self) -> None:
        """Release the resources of the component."""

    @abstractmethod
    def fault_body(self, fault: Fault) -> dict[str, Any]:
        """Return the body of an error in the form of the contract."""

    async def handle(self, request: Request) -> Response:
        """Return the answer to a request; every error has the form of the contract."""
        try:
            return await self._route(request)(request)
        except Fault as fault:
            return self._refused(fault)
        except GatewayRefusal as refusal:
            return self._refused(Fault(refusal.status, refusal.reason.value, refusal.detail or refusal.why))
        except ClientDisconnect:
            return Response(status_code=400, headers={"Connection": "close"})
        except Exception as error:  # noqa: BLE001 - the edge of the service: a caller never sees a traceback
            _LOG.exception("a request failed")
            return self._refused(Fault(500, "internal_error", f"the server failed: {type(error).__name__}"))

    def _route(self, request: Request) -> Handler:
        path = request.url.path.rstrip("/") or "/"
        if (found := self.routes.get((request.method, path))) is not None:
            return found
        methods = sorted(method for method, known in self.routes if known == path)
        if methods:
            raise Fault(405, "method_not_allowed", f"{path} takes {', '.join(methods)}, not {request.method[:16]}")
        known = ", ".join(f"{method} {path}" for method, path in self.routes if path != "/")
        raise Fault(404, "not_found", f"no such path; there are {known}")

    def _refused(self, fault: Fault) -> Response:
        headers = {}
        if fault.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if fault.status in (408, 413):
            headers["Connection"] = "close"  # The rest of the body is not read.
        if fault.status == 503:
            headers["Retry-After"] = _RETRY_SECONDS
        return JSONResponse(self.fault_body(fault), fault.status, headers)

    async def _health(self, request: Request) -> Response:
        """Report whether the component can answer, to everybody, busy or not."""
        try:
            self.check_health()
        except Exception as error:  # noqa: BLE001 - a component reports its end by any error
            return JSONResponse({"status": "unhealthy", "reason": shown(error)[:300]}, 503)
        places = self._places
        return JSONResponse(
            {"status": "healthy", "working": places.working, "waiting": max(0, places.taken - places.working)}
        )

    def admit(self, request: Request) -> None:
        """Check the token of a request. Raises GatewayRefusal."""
        name = self.access.admit(request.headers.get("authorization"))
        connection = getattr(request.state, "connection", None)
        if connection is not None:
            connection.admit(name)

    async def worked(self, request: Request, work: Callable[[Mapping[str, Any]], Awaitable[Response]]) -> Response:
        """Return the answer to the JSON object of a request, within all limits.

        Raises:
            Fault: naming the limit or the invalid field.
            GatewayRefusal: for a missing or wrong token, and a body that is too large or too slow.
        """
        self.admit(request)
        async with self._places.place():
            body = await self._object(request)

            async def answer() -> Response:
                async with self._places.turn():
                    try:
                        async with asyncio.timeout(self.limits.seconds):
                            return await work(body)
                    except TimeoutError as error:
                        raise Fault(504, "timeout", f"no answer within {self.limits.seconds:g} s") from error

            return await while_connected(request, answer())

    async def _object(self, request: Request) -> Mapping[str, Any]:
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise Fault(415, "unsupported_encoding", f"content-encoding {encoding[:32]!r}: send the body uncompressed")
        announced, limit = request.headers.get("content-length"), int(self.limits.body_mib * MIB)
        data = await read_bounded(request.stream(), announced, limit, self.limits.body_seconds)
        try:
            value = _parsed(data) if len(data) <= _SMALL_BYTES else await asyncio.to_thread(_parsed, data)
        except (ValueError, RecursionError) as error:
            raise Fault(400, "invalid_json", f"the body is not JSON: {str(error)[:200]}") from error
        if not isinstance(value, dict):
            raise Fault(400, "invalid_json", f"the body is a JSON {type(value).__name__}, not an object")
        return value


def _parsed(data: bytes) -> Any:
    """Return a JSON value whose texts UTF-8 can hold. Raises ValueError and RecursionError."""
    value = json.loads(data)
    if b"\\u" in data:  # No model and no answer can hold half of a surrogate pair.
        json.dumps(value, ensure_ascii=False).encode()
    return value
