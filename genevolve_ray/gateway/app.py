"""The gateway over HTTP: authorization, limits, and the answer or the reason for a refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from genevolve_ray.gateway.auth import Scope, TokenEntry
from genevolve_ray.gateway.config import MIB
from genevolve_ray.gateway.gateway import Gateway
from genevolve_ray.gateway.limits import read_bounded, while_connected
from genevolve_ray.gateway.meters import CONTENT_TYPE
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.gateway.versions import read_range
from genevolve_ray.gateway.wire import (
    BLIND_PROTOCOL,
    ZSTD,
    FileCard,
    LeaseOrder,
    OwnAnswer,
    RefusalBody,
    ToolOrder,
    compress,
    decompress,
    read_body,
)

MAX_WAIT = 30.0
_LEASE_BYTES = 4 << 10
_TOOL_BYTES = 256 << 10
_DOWNLOADS = 4
"""Parts of files that one token receives at once; others wait."""
_PIECE_BYTES = 256 << 10


def create_app(gateway: Gateway) -> FastAPI:
    """Return the application."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    door = _Door(gateway)
    app.add_exception_handler(GatewayRefusal, door.refused)
    app.add_exception_handler(RequestValidationError, door.malformed)
    app.add_exception_handler(ClientDisconnect, door.lost)
    app.add_api_route("/healthz", door.health, methods=["GET"])
    app.add_api_route("/v1/run", door.run, methods=["GET"])
    app.add_api_route("/v1/model/{name}", door.model, methods=["GET"])
    app.add_api_route("/v1/weights", door.weights, methods=["GET"])
    app.add_api_route("/v1/weights/{version}/{name}", door.weights_file, methods=["GET"])
    app.add_api_route("/v1/leases", door.lease, methods=["POST"])
    app.add_api_route("/v1/leases/{lease}/renew", door.renew, methods=["POST"])
    app.add_api_route("/v1/leases/{lease}/tools", door.tools, methods=["POST"])
    app.add_api_route("/v1/leases/{lease}/observations", door.show, methods=["POST"])
    app.add_api_route("/v1/leases/{lease}/images/{sha256}", door.picture, methods=["GET"])
    app.add_api_route("/v1/leases/{lease}/trajectory", door.trajectory, methods=["POST"])
    app.add_api_route("/v1/leases/{lease}", door.give_back, methods=["DELETE"])
    app.add_api_route("/v1/images", door.image, methods=["PUT"])
    app.add_api_route("/v1/status", door.status, methods=["GET"])
    app.add_api_route("/metrics", door.metrics, methods=["GET"])
    return app


class _Door:
    """Handle each route in one method. The token is checked before anything of the body is read."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._downloads: dict[str, asyncio.Semaphore] = {}

    # --- around every request ---

    async def refused(self, request: Request, error: Exception) -> Response:
        """Answer with the reason of a refusal."""
        assert isinstance(error, GatewayRefusal)
        self._gateway.meters.refuse(error.reason, error.worker or getattr(request.state, "worker", None))
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        if error.status in (408, 413):
            headers["Connection"] = "close"  # the rest of the body is not read
        body = RefusalBody(reason=error.reason.value, detail=error.detail)
        return JSONResponse(body.model_dump(), error.status, headers)

    async def malformed(self, request: Request, error: Exception) -> Response:
        """Answer that a path or a query is invalid."""
        return await self.refused(request, GatewayRefusal(RefusalReason.MALFORMED, "path or query"))

    async def lost(self, request: Request, error: Exception) -> Response:
        """Answer nobody: the client has disconnected."""
        return Response(status_code=400, headers={"Connection": "close"})

    async def _admit(self, request: Request, scope: Scope = Scope.ROLLOUT) -> TokenEntry:
        self._gateway.meters.requests += 1
        connection = getattr(request.state, "connection", None)
        count = (lambda name: None) if connection is None else connection.admit
        who = await self._gateway.admit(request.headers.get("authorization"), scope, count)
        request.state.worker = who.name
        return who

    async def _body(self, request: Request, who: TokenEntry, limit: int, expansion: float = 1.0) -> bytes:
        """Return a body of at most `limit` bytes, and at most `expansion` times that after decompression."""
        gateway = self._gateway
        encoding = request.headers.get("content-encoding", "identity")
        if encoding not in (ZSTD, "identity"):
            raise GatewayRefusal(
                RefusalReason.MALFORMED, f"content-encoding {encoding[:32]!r} is neither zstd nor identity"
            )
        announced, seconds = request.headers.get("content-length"), gateway.config.limits.body_seconds
        body = await read_bounded(request.stream(), announced, limit, seconds)
        gateway.meters.bytes_in += len(body)
        if encoding == ZSTD:
            most = int(limit * expansion)
            body = await gateway.aside(who, most, lambda: decompress(body, most))
        await gateway.charge(who, len(body))
        return body

    # --- routes ---

    async def health(self) -> Response:
        """Report that the gateway is running; no other information is given without a token."""
        return PlainTextResponse("ok")

    async def run(self, request: Request, protocol: int = BLIND_PROTOCOL) -> Response:
        """Describe the run to a worker; older ones do not name their protocol."""
        await self._admit(request)
        return _json(self._gateway.card(protocol))

    async def model(self, request: Request, name: str) -> Response:
        """Serve a part of a file of the model folder."""
        who = await self._admit(request)
        gateway = self._gateway

        def sent(size: int) -> None:
            if any(file.name == name for file in gateway.base_files):
                gateway.meters.base_bytes_out += size

        return self._file(request, who, gateway.run.model_dir, gateway.model_files + gateway.base_files, name, sent)

    async def weights(self, request: Request, after: int = -1, wait: float = 0.0) -> Response:
        """Name the newest version once it is beyond `after`; 204 when there is none in time."""
        await self._admit(request)
        card = await while_connected(request, self._gateway.weights(after, min(max(wait, 0.0), MAX_WAIT)))
        return Response(status_code=204) if card is None else _json(card)

    async def weights_file(self, request: Request, version: int, name: str) -> Response:
        """Serve a part of a file of a version."""
        who = await self._admit(request)
        found = self._gateway.version_store.get(version)

        def sent(size: int) -> None:
            self._gateway.meters.version_bytes_out[version] += size

        return self._file(request, who, found.folder, found.card.files, name, sent)

    async def lease(self, request: Request) -> Response:
        """Lease samples to play."""
        who = await self._admit(request)
        order = read_body(LeaseOrder, await self._body(request, who, _LEASE_BYTES))
        grants = await while_connected(request, self._gateway.lease(who, order))
        if await request.is_disconnected():
            for grant in grants:  # the client has disconnected and will not play them
                await self._gateway.give_back(who, grant.id)
        return JSONResponse({"leases": [grant.model_dump(mode="json") for grant in grants]})

    async def renew(self, request: Request, lease: str) -> Response:
        """Extend a lease."""
        who = await self._admit(request)
        lease_table = self._gateway.lease_table
        return JSONResponse({"seconds": lease_table.renew(lease_table.find(lease, who.name))})

    async def tools(self, request: Request, lease: str) -> Response:
        """Execute a tool call."""
        who = await self._admit(request)
        body = await self._body(request, who, _TOOL_BYTES)
        order = await self._gateway.aside(who, len(body), lambda: read_body(ToolOrder, body))
        return _json(await while_connected(request, self._gateway.call(who, lease, order)))

    async def show(self, request: Request, lease: str) -> Response:
        """Say what the policy sees of the answer of a trusted worker's own tool."""
        who = await self._admit(request, Scope.OWN_TOOLS)
        body = await self._body(request, who, _TOOL_BYTES)
        order = await self._gateway.aside(who, len(body), lambda: read_body(OwnAnswer, body))
        return _json(await self._gateway.show(who, lease, order.answer))

    async def picture(self, request: Request, lease: str, sha256: str) -> Response:
        """Serve a picture that the policy is shown in an episode."""
        who = await self._admit(request)
        gateway = self._gateway

        async def loaded() -> tuple[bytes, dict[str, str]]:
            data, media_type = await gateway.picture(who, lease, sha256)
            gateway.meters.bytes_out += len(data)
            gateway.meters.picture_bytes_out += len(data)
            return data, {"Content-Type": media_type, "Content-Length": str(len(data))}

        return _FilePart(self._turn(who), loaded, status=200)

    async def trajectory(self, request: Request, lease: str) -> Response:
        """Accept a played episode."""
        who = await self._admit(request)
        limits = self._gateway.config.limits
        async with self._gateway.receiving(who, lease):
            body = await self._body(request, who, int(limits.body_mib * MIB), limits.expansion)
            return _json(await self._gateway.push(who, lease, body))

    async def give_back(self, request: Request, lease: str) -> Response:
        """End a lease."""
        await self._gateway.give_back(await self._admit(request), lease)
        return Response(status_code=204)

    async def image(self, request: Request) -> Response:
        """Accept a picture of a trusted worker's own tools."""
        who = await self._admit(request, Scope.OWN_TOOLS)
        body = await self._body(request, who, int(self._gateway.config.limits.body_mib * MIB))
        return _json(await self._gateway.put_image(who, body))

    async def status(self, request: Request) -> Response:
        """Report the whole status."""
        await self._admit(request, Scope.STATUS)
        return JSONResponse(self._gateway.status())

    async def metrics(self, request: Request) -> Response:
        """Report the metrics."""
        await self._admit(request, Scope.STATUS)
        return Response(self._gateway.metrics(), headers={"Content-Type": CONTENT_TYPE})

    def _file(
        self,
        request: Request,
        who: TokenEntry,
        folder: Path,
        files: tuple[FileCard, ...],
        name: str,
        sent: Callable[[int], None],
    ) -> Response:
        """Return a part of a file; `sent` receives the number of bytes that are transferred."""
        gateway, packed = self._gateway, request.query_params.get("encoding") == ZSTD

        def load() -> tuple[bytes, dict[str, str]]:
            data, start, size = read_range(folder, files, name, request.headers.get("range"))
            media = "application/zstd" if packed else "application/octet-stream"
            part = f"bytes {start}-{start + len(data) - 1}/{size}"
            if packed:
                data = compress(data, gateway.config.zstd_level)
            headers = {"Content-Range": part, "Accept-Ranges": "bytes", "Content-Type": media}
            return data, headers | {"Content-Length": str(len(data))}

        async def loaded() -> tuple[bytes, dict[str, str]]:
            data, headers = await asyncio.to_thread(load)
            gateway.meters.bytes_out += len(data)
            sent(len(data))
            return data, headers

        return _FilePart(self._turn(who), loaded)

    def _turn(self, who: TokenEntry) -> asyncio.Semaphore:
        return self._downloads.setdefault(who.name, asyncio.Semaphore(_DOWNLOADS))


class _FilePart(Response):
    """Load a file or a part of one when its turn comes, and send it in pieces, so that few parts are in memory at once."""

    def __init__(
        self, turn: asyncio.Semaphore, load: Callable[[], Awaitable[tuple[bytes, dict[str, str]]]], status: int = 206
    ) -> None:
        """Keep the functions; nothing is read yet."""
        super().__init__(status_code=status)
        self._turn, self._load = turn, load

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Send the part. Raises GatewayRefusal before anything is sent."""
        async with self._turn:
            data, headers = await self._load()
            self.init_headers(headers)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for start in range(0, len(data), _PIECE_BYTES):
                await send(
                    {"type": "http.response.body", "body": data[start : start + _PIECE_BYTES], "more_body": True}
                )
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _json(record: BaseModel) -> Response:
    return Response(record.model_dump_json(), media_type="application/json")
