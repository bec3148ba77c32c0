"""Client of the gateway for workers: calls with bounded retries, typed refusals, and downloads that resume."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from genevolve_ray.errors import UserFault
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.gateway.versions import RANGE_BYTES
from genevolve_ray.gateway.wire import (
    PROTOCOL,
    ZSTD,
    FileCard,
    LeaseGrant,
    OwnAnswer,
    Push,
    RunCard,
    ToolAnswer,
    ToolOrder,
    WeightsCard,
    compress,
    decompress,
)
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.secrets import remember_secret
from genevolve_ray.remote.proxies import mounted

M = TypeVar("M", bound=BaseModel)
_COMPRESS_FROM = 4096
_SERVER_ERROR = 500


class GatewayDown(UserFault, RuntimeError):
    """Report that the gateway could not be reached, or had an error of its own, after bounded retries."""


class GatewayClient:
    """Call one gateway."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        ca_file: Path | None = None,
        timeout: float = 120.0,
        attempts: int = 5,
        backoff: float = 0.5,
    ) -> None:
        """Keep the address and the token.

        Args:
            url: the gateway, as `https://host:port`.
            token: the bearer token.
            ca_file: certificates to trust in addition to the system's.
            timeout: seconds of one attempt.
            attempts: attempts per call.
            backoff: seconds before the second attempt; they double from there.
        """
        remember_secret(token)
        verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=str(ca_file)) if ca_file else True
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(timeout, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            verify=verify,
            mounts=mounted((url.rstrip("/"),), verify=verify),
            trust_env=False,  # as for services: the proxies of the environment, and none for loopback
            follow_redirects=False,  # the token is sent to this address and no other
        )
        self._attempts, self._backoff = attempts, backoff
        self.received = 0

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def run(self) -> RunCard:
        """Return the description of the run."""
        return _read(RunCard, await self.call("GET", "/v1/run", params={"protocol": str(PROTOCOL)}))

    async def weights(self, after: int, wait: float = 0.0) -> WeightsCard | None:
        """Return the newest version when it is beyond `after`."""
        answer = await self.call("GET", "/v1/weights", params={"after": str(after), "wait": f"{wait:g}"})
        return None if answer.status_code == 204 else _read(WeightsCard, answer)

    async def lease(self, count: int = 1, wait: float = 20.0) -> list[LeaseGrant]:
        """Return new leases, none when there is nothing to play."""
        # Not retried: a lease that a lost answer granted expires without action.
        answer = await self.call("POST", "/v1/leases", json={"count": count, "wait": wait}, attempts=1)
        try:
            return TypeAdapter(list[LeaseGrant]).validate_python(answer.json()["leases"])
        except (ValueError, KeyError, TypeError) as error:
            raise GatewayDown(f"the gateway's answer is invalid: {type(error).__name__}") from error

    async def renew(self, lease: str) -> None:
        """Keep a lease."""
        await self.call("POST", f"/v1/leases/{lease}/renew")

    async def give_back(self, lease: str) -> None:
        """End a lease."""
        await self.call("DELETE", f"/v1/leases/{lease}", attempts=2)

    async def tool(self, lease: str, order: ToolOrder) -> ToolAnswer:
        """Execute a tool call at the gateway."""
        answer = await self.call("POST", f"/v1/leases/{lease}/tools", json=order.model_dump(mode="json"))
        return _read(ToolAnswer, answer)

    async def put_image(self, data: bytes) -> ImageRef:
        """Upload a picture of a tool of the worker's own; return its reference inside."""
        return _read(ImageRef, await self.call("PUT", "/v1/images", content=data))

    async def show(self, lease: str, answer: ToolAnswer) -> ToolAnswer:
        """Return the answer of a tool of the worker's own with what the policy sees of it."""
        body = OwnAnswer(answer=answer).model_dump(mode="json")
        return _read(ToolAnswer, await self.call("POST", f"/v1/leases/{lease}/observations", json=body))

    async def picture(self, lease: str, sha256: str) -> bytes:
        """Return a picture that the policy is shown. Raises GatewayDown when it does not match its hash."""
        answer = await self.call("GET", f"/v1/leases/{lease}/images/{sha256}")
        self.received += len(answer.content)
        if hashlib.sha256(answer.content).hexdigest() != sha256:
            raise GatewayDown(f"picture {sha256[:12]} arrived damaged")
        return answer.content

    async def push(self, lease: str, push: Push) -> None:
        """Push an episode. A retry that finds the lease answered counts as success."""
        body, headers = push.model_dump_json().encode(), {"Content-Type": "application/json"}
        if len(body) > _COMPRESS_FROM:
            body, headers["Content-Encoding"] = compress(body), ZSTD
        tries = 0

        async def once() -> None:
            nonlocal tries
            tries += 1
            try:
                await self._once("POST", f"/v1/leases/{lease}/trajectory", content=body, headers=headers)
            except GatewayRefusal as refusal:
                if refusal.reason is not RefusalReason.REPLAYED or tries == 1:
                    raise

        await self._retrying(self._attempts)(once)

    async def download(self, path: str, files: Sequence[FileCard], folder: Path) -> None:
        """Download files below `path` into a folder. Raises GatewayDown when they do not match their digests."""
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        for file in files:
            await self._download(f"{path}/{file.name}", file, folder / file.name)

    async def _download(self, path: str, file: FileCard, target: Path) -> None:
        """Download a file in ranges into `NAME.part`, resuming an earlier attempt.

        A complete, verified file gets its name.
        """
        part = target.with_name(f"{target.name}.part")
        if await asyncio.to_thread(is_there, target, file):
            return
        have = await asyncio.to_thread(_begun, part, file.size)
        while have < file.size:
            last = min(have + RANGE_BYTES, file.size) - 1
            headers = {"Range": f"bytes={have}-{last}"}
            answer = await self.call("GET", path, params={"encoding": ZSTD}, headers=headers)
            self.received += len(answer.content)
            data = await asyncio.to_thread(_append, part, answer.content)
            if not data:
                break
            have += data
        if await asyncio.to_thread(_digest, part) != file.sha256:
            part.unlink()
            raise GatewayDown(f"{path} arrived damaged")
        await asyncio.to_thread(os.replace, part, target)

    async def call(self, method: str, path: str, *, attempts: int | None = None, **options: Any) -> httpx.Response:
        """Call the gateway.

        Raises:
            GatewayRefusal: with the gateway's reason.
            GatewayDown: after the last try.
        """
        return await self._retrying(attempts or self._attempts)(self._once, method, path, **options)

    def _retrying(self, attempts: int) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_exception_type(GatewayDown),
            stop=stop_after_attempt(attempts),
            wait=wait_exponential_jitter(multiplier=self._backoff, max=10.0, jitter=self._backoff),
            reraise=True,
        )

    async def _once(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise GatewayDown(f"{method} {path.partition('?')[0]}: {type(error).__name__}") from error
        if answer.is_success:
            return answer
        try:
            reason = RefusalReason(answer.json()["reason"])
            detail = str(answer.json().get("detail", ""))[:300]
        except (ValueError, KeyError, TypeError) as error:
            raise GatewayDown(f"{method} {path}: HTTP {answer.status_code}") from error
        if reason is RefusalReason.RATE_LIMITED or answer.status_code >= _SERVER_ERROR:
            raise GatewayDown(f"{method} {path}: {reason.value}")
        raise GatewayRefusal(reason, detail)


def _read(kind: type[M], answer: httpx.Response) -> M:
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        raise GatewayDown(f"the gateway's {kind.__name__} is invalid: {error.error_count()} errors") from error


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_there(path: Path, file: FileCard) -> bool:
    """Return whether a file was downloaded before."""
    return path.is_file() and path.stat().st_size == file.size and _digest(path) == file.sha256


def _begun(part: Path, size: int) -> int:
    """Return the number of bytes that an earlier attempt downloaded; a partial file that is too long counts as 0."""
    part.touch()
    if part.stat().st_size > size:
        part.write_bytes(b"")
    return part.stat().st_size


def _append(part: Path, packed: bytes) -> int:
    """Append the content of a compressed answer; return its number of bytes."""
    data = decompress(packed, RANGE_BYTES)
    with open(part, "ab") as out:
        out.write(data)
    return len(data)
