"""The gateway over HTTP: authorization, limits, and the answer or the reason for a refusal."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel

from genevolve_ray.gateway.auth import Scope, TokenEntry
from genevolve_ray.gateway.config import MIB
from genevolve_ray.gateway.gateway import Gateway
from genevolve_ray.gateway.limits import read_bounded
from genevolve_ray.gateway.meters import CONTENT_TYPE
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.gateway.versions import read_range
from genevolve_ray.gateway.wire import (
    ZSTD,
    FileCard,
    LeaseOrder,
    RefusalBody,
    ToolOrder,
    compress,
    decompress,
    read_body,
)

MAX_WAIT = 30.0


def create_app(gateway: Gateway) -> FastAPI:
    """Return the application."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    door = _Door(gateway)
    app.add_exception_handler(GatewayRefusal, door.refused)
    app.add_exception_handler(RequestValidationError, door.malformed)
    app.add_api_route("/healthz", door.health, methods=["GET"])
    app.add_api_route("/v1/run", door.run, methods=["GET"])
    app.add_api_route("/v1/model/{name}", door.model, methods=["GET"])
    app.add_api_route("/v1/weights", door.weights, methods=["GET"])
    app.add_api_route("/v1/weights/{version}/{name}", door.weights_file, methods=["GET"])
    app.add_api_route("/v1/leases", door.lease, methods=["POST"])
    app.add_api_route("/v1/leases/{lease}/renew", door.renew, methods=["POST"])
    app.add_api_route("/v1/leases/{lease}/tools", door.tools, methods=["POST"])
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

    async def _admit(self, request: Request, scope: Scope = Scope.ROLLOUT) -> TokenEntry:
        self._gateway.meters.requests += 1
        who = await self._gateway.admit(request.headers.get("authorization"), scope)
        request.state.worker = who.name
        return who

    async def _body(self, request: Request) -> bytes:
        limits = self._gateway.config.limits
        limit = int(limits.body_mib * MIB)
        body = await read_bounded(request.stream(), request.headers.get("content-length"), limit, limits.body_seconds)
        self._gateway.meters.bytes_in += len(body)
        encoding = request.headers.get("content-encoding", "identity")
        if encoding == ZSTD:
            return decompress(body, int(limit * limits.expansion))
        if encoding != "identity":
            raise GatewayRefusal(
                RefusalReason.MALFORMED, f"content-encoding {encoding[:32]!r} is neither zstd nor identity"
            )
        return body

    # --- routes ---

    async def health(self) -> Response:
        """Report that the gateway is running; no other information is given without a token."""
        return PlainTextResponse("ok")

    async def run(self, request: Request) -> Response:
        """Describe the run."""
        await self._admit(request)
        return _json(self._gateway.card())

    async def model(self, request: Request, name: str) -> Response:
        """Serve a part of a file of the model folder."""
        await self._admit(request)
        gateway = self._gateway
        answer, sent = self._file(request, gateway.run.model_dir, gateway.model_files + gateway.base_files, name)
        if any(file.name == name for file in gateway.base_files):
            gateway.meters.base_bytes_out += sent
        return answer

    async def weights(self, request: Request, after: int = -1, wait: float = 0.0) -> Response:
        """Name the newest version once it is beyond `after`; 204 when there is none in time."""
        await self._admit(request)
        card = await self._gateway.weights(after, min(max(wait, 0.0), MAX_WAIT))
        return Response(status_code=204) if card is None else _json(card)

    async def weights_file(self, request: Request, version: int, name: str) -> Response:
        """Serve a part of a file of a version."""
        await self._admit(request)
        found = self._gateway.version_store.get(version)
        answer, sent = self._file(request, found.folder, found.card.files, name)
        self._gateway.meters.version_bytes_out[version] += sent
        return answer

    async def lease(self, request: Request) -> Response:
        """Lease samples to play."""
        who = await self._admit(request)
        order = read_body(LeaseOrder, await self._body(request))
        grants = await self._gateway.lease(who, order)
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
        order = read_body(ToolOrder, await self._body(request))
        return _json(await self._gateway.call(who, lease, order))

    async def trajectory(self, request: Request, lease: str) -> Response:
        """Accept a played episode."""
        who = await self._admit(request)
        return _json(await self._gateway.push(who, lease, await self._body(request)))

    async def give_back(self, request: Request, lease: str) -> Response:
        """End a lease."""
        await self._gateway.give_back(await self._admit(request), lease)
        return Response(status_code=204)

    async def image(self, request: Request) -> Response:
        """Accept a picture of a trusted worker's own tools."""
        who = await self._admit(request, Scope.OWN_TOOLS)
        return _json(await self._gateway.put_image(who, await self._body(request)))

    async def status(self, request: Request) -> Response:
        """Report the whole status."""
        await self._admit(request, Scope.STATUS)
        return JSONResponse(self._gateway.status())

    async def metrics(self, request: Request) -> Response:
        """Report the metrics."""
        await self._admit(request, Scope.STATUS)
        return Response(self._gateway.metrics(), headers={"Content-Type": CONTENT_TYPE})

    def _file(self, request: Request, folder: Path, files: tuple[FileCard, ...], name: str) -> tuple[Response, int]:
        """Return a part of a file, and the number of bytes that are transferred."""
        data, start, size = read_range(folder, files, name, request.headers.get("range"))
        media = "application/octet-stream"
        headers = {"Content-Range": f"bytes {start}-{start + len(data) - 1}/{size}", "Accept-Ranges": "bytes"}
        if request.query_params.get("encoding") == ZSTD:
            data, media = compress(data, self._gateway.config.zstd_level), "application/zstd"
        self._gateway.meters.bytes_out += len(data)
        return Response(data, 206, headers, media_type=media), len(data)


def _json(record: BaseModel) -> Response:
    return Response(record.model_dump_json(), media_type="application/json")
