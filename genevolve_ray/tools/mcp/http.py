"""A server over streamable HTTP: the SDK's transport, with answers of bounded size."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp.client.streamable_http import streamable_http_client

_CONNECT_SECONDS = 10.0


class BoundedTransport(httpx2.AsyncHTTPTransport):
    """Send requests, and refuse answers that are packed or too large."""

    def __init__(self, limit: int) -> None:
        """Read at most `limit` bytes of an answer; a stream of events has limits of its own."""
        super().__init__(limits=httpx2.Limits(max_connections=256, max_keepalive_connections=64))
        self._limit = limit

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request. Raises httpx2.ReadError for an answer that is refused."""
        request.headers["Accept-Encoding"] = "identity"
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            await response.aclose()
            raise httpx2.ReadError("the answer is packed, which was not asked for")
        if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _Bounded(response.stream, self._limit)
        return response


class _Bounded(httpx2.AsyncByteStream):
    """Yield the bytes of a stream up to a limit."""

    def __init__(self, stream: httpx2.AsyncByteStream, limit: int) -> None:
        self._stream, self._limit = stream, limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > self._limit:
                raise httpx2.StreamError(f"the answer is larger than {self._limit} bytes")  # The SDK expects this kind.
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def http_streams(url: str, headers: Mapping[str, str], limit: int, seconds: float) -> AsyncIterator[Any]:
    """Yield the incoming and outgoing messages of a server over streamable HTTP.

    Args:
        url: its address; proxies of the environment are not used, and redirects stay on its host and port.
        headers: of each request.
        limit: the largest answer or event, bytes.
        seconds: the longest wait for the next bytes of an answer.
    """
    patience = httpx2.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))
    async with (
        httpx2.AsyncClient(headers=dict(headers), timeout=patience, transport=BoundedTransport(limit)) as client,
        streamable_http_client(url, http_client=client, max_sse_event_size=limit) as streams,
    ):
        yield streams
