"""A gateway by its address: its status, asked every few seconds with the token of the environment."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from genevolve_ray.records.secrets import remember_secret, shown
from genevolve_ray.viewer.site.pages import PageRequest, SitePage
from genevolve_ray.viewer.site.sources import SourceFault, SourceKind, ViewSource

TOKEN_VARIABLE = "GENEVOLVE_TOKEN"  # noqa: S105 - the name of a variable
_EVERY_SECONDS, _RETRY_SECONDS, _TIMEOUT = 2.0, 15.0, 5.0
"""Seconds between questions, after one without an answer, and that an answer may take. One thread follows all sources: a
gateway that does not answer must not take most of its time."""
_LARGEST = 4 << 20
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class GatewaySource(ViewSource):
    """Represent a gateway."""

    kind = SourceKind.GATEWAY

    def __init__(self, url: str) -> None:
        """Name the address; nothing is asked yet.

        Raises:
            SourceFault: without a token in the environment, and for an address that would send it unencrypted.
        """
        parts = urlsplit(url)
        super().__init__(parts.netloc.rpartition("@")[2] or "gateway", url)
        self.url, self._token = url.rstrip("/"), os.environ.get(TOKEN_VARIABLE, "").strip()
        if not self._token:
            raise SourceFault(
                f"{url}: put a token with the scope status into the environment variable {TOKEN_VARIABLE}"
            )
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise SourceFault(f"{url}: http would send the token unencrypted; use https")
        remember_secret(self._token)
        self.found: Mapping[str, Any] = {}
        self.answer_fault = "it was not asked yet"
        self._asked, self._revision = float("-inf"), 0

    @property
    def revision(self) -> int:
        """Grows with every answer."""
        return self._revision

    def refresh(self) -> bool:
        """Ask for the status, unless that was done a moment ago."""
        pause = _EVERY_SECONDS if not self.answer_fault else _RETRY_SECONDS
        if time.monotonic() - self._asked >= pause:
            self.found, self.answer_fault = asyncio.run(self._ask())
            self._asked = time.monotonic()
            self._revision += 1
        return False

    async def _ask(self) -> tuple[Mapping[str, Any], str]:
        """Return the status, or why there is none, after a bounded time however slowly the answer comes."""
        import httpx

        headers = {"Authorization": f"Bearer {self._token}"}
        try:
            async with (
                asyncio.timeout(_TIMEOUT),
                httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False, follow_redirects=False) as client,
                client.stream("GET", f"{self.url}/v1/status", headers=headers) as answer,
            ):
                body = b""
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > _LARGEST:
                        return {}, "its status is too long"
                if answer.status_code != 200:
                    return {}, f"it answered with HTTP status {answer.status_code}"
            found = httpx.Response(200, content=body).json()
        except TimeoutError:
            return {}, f"it did not answer within {_TIMEOUT:g} seconds"
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            return {}, f"{type(error).__name__}: {shown(error)}"
        return (found, "") if isinstance(found, dict) else ({}, "its status is no object")


def build_gateway(request: PageRequest) -> dict[str, Any]:
    """Return what the overview of a gateway shows."""
    source = request.source
    assert isinstance(source, GatewaySource)
    found = source.found
    workers = found.get("workers")
    return {
        "title": f"Gateway {source.name}",
        "fault": source.answer_fault,
        "facts": [(k, v) for k, v in found.items() if isinstance(v, int | float | str)],
        "tables": [(k, list(v.items())) for k, v in found.items() if isinstance(v, Mapping) and v and k != "workers"],
        "lists": [(k, v) for k, v in found.items() if isinstance(v, list) and v],
        "workers": [(n, w) for n, w in workers.items() if isinstance(w, Mapping)]
        if isinstance(workers, Mapping)
        else [],
    }


GATEWAY = SitePage(
    "overview", "gateway.html.j2", build_gateway, label="Overview", kinds=frozenset({SourceKind.GATEWAY})
)
