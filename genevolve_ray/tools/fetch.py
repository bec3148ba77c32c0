"""Fetching of untrusted pictures: only from public addresses, within limits of time and size, as pixels alone.

The connection uses the very address that was checked. Names are resolved here, once per connection, so a name server
that changes its answer between check and connection has no effect. TLS still verifies the host name.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary

import httpcore
import httpx
from pydantic import Field

from genevolve_ray import __version__
from genevolve_ray.errors import InfraFailure
from genevolve_ray.records.base import Config
from genevolve_ray.records.decoding import clean_apart
from genevolve_ray.records.pictures import ImageRefused, Picture, PictureLimits
from genevolve_ray.records.usage import Usage, record_usage
from genevolve_ray.tools.addresses import (
    FetchRefused,
    Resolver,
    addresses_of,
    check_url,
    host_of,
    port_of,
    system_resolver,
)

SERVICE = "image_fetch"
"""The name on the meter."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BUSY = frozenset({408, 425, 429})
_HEADERS: dict[bytes | str, bytes | str] = {
    "User-Agent": f"genevolve_ray/{__version__}",
    "Accept": "image/png, image/jpeg, image/webp, image/*;q=0.5",
    "Accept-Encoding": "identity",
    "Connection": "close",
}
# Two at once bound the memory of decoded pixels, regardless of the number of episodes.
_DECODERS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="decoder")


class FetchFailed(InfraFailure):
    """Signal a temporary failure of the host: no connection, a timeout, a server error."""


class FetchConfig(Config):
    """Configure the limits of content and time for an external host."""

    connect_s: float = Field(default=4, gt=0)
    """Seconds to resolve the name and connect, per connection."""
    total_s: float = Field(default=10, gt=0)
    """Seconds for one picture, redirects and decoding included."""
    decode_s: float = Field(default=5, gt=0)
    """Seconds of them to decode one picture; a decoder that takes longer is killed, and the picture refused."""
    max_redirects: int = Field(default=3, ge=0, le=10)
    """Redirects that are followed; each is checked like the first address."""
    allow_downgrade: bool = False
    """Whether https may redirect to http."""
    ports: tuple[int, ...] = (80, 443)
    """Ports that may be connected to."""
    allow: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks that are allowed although they are not on the public internet. DANGEROUS: the author of any web page
    that a search finds can then make this machine call any address in them. For tests and for an intranet of images
    only."""
    concurrency: int = Field(default=32, ge=1)
    """Images that one process fetches concurrently."""
    picture: PictureLimits = PictureLimits(
        max_bytes=10 << 20, max_pixels=24_000_000, min_side=16, long_side=1536, output="JPEG"
    )
    """Accepted images; `max_bytes` limits the download, and again its decompressed size."""


class Fetcher:
    """Fetch pictures. No state is kept between two fetches: no cookies, no connections."""

    def __init__(
        self,
        config: FetchConfig | None = None,
        *,
        resolver: Resolver = system_resolver,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Keep the limits; `resolver` and `tls` (the trusted certificates) are the system's unless given."""
        self.config = config or FetchConfig()
        self._resolver, self._tls = resolver, tls
        self._gates: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    async def fetch(self, address: str) -> Picture:
        """Return the picture at a URL, decoded and encoded again.

        Raises:
            FetchRefused: when address or content is rejected: a retry cannot help.
            FetchFailed: when the host failed temporarily.
        """
        loop = asyncio.get_running_loop()
        gate = self._gates.setdefault(loop, asyncio.Semaphore(self.config.concurrency))
        async with gate:
            started, done = monotonic(), False
            try:
                async with asyncio.timeout(self.config.total_s):
                    data = await self._follow(address)
                    limits, seconds = self.config.picture, self.config.decode_s
                    picture = await loop.run_in_executor(_DECODERS, clean_apart, data, limits, seconds)
                done = True
                return picture
            except (FetchRefused, FetchFailed):
                raise
            except ImageRefused as error:
                raise FetchRefused(str(error)) from error
            except TimeoutError as error:
                raise FetchFailed(f"no image within {self.config.total_s:g} s") from error
            except Exception as error:
                # Libraries raise anything on hostile input, which ends this picture alone.
                raise FetchRefused(f"{type(error).__name__}: {error}"[:300]) from error
            finally:
                usage = Usage(calls=1, failed_calls=not done, images=done, seconds=monotonic() - started)
                record_usage(SERVICE, usage)

    async def _follow(self, address: str) -> bytes:
        """Return the body of a URL; redirects are followed here, and each is checked like the first address."""
        config = self.config
        url = check_url(address, ports=config.ports, allow=config.allow)
        for _ in range(config.max_redirects + 1):
            found = await self._get(url)
            if isinstance(found, bytes):
                return found
            target = check_url(found, ports=config.ports, base=url, allow=config.allow)
            if url.scheme == "https" and target.scheme == "http" and not config.allow_downgrade:
                raise FetchRefused(f"{host_of(url)!r} redirects from https to http")
            url = target
        raise FetchRefused(f"more than {config.max_redirects} redirects")

    async def _get(self, url: httpx.URL) -> bytes | str:
        """Return the body, or the target of a redirect."""
        async with self._response(url) as response:
            headers = {
                name.decode("latin-1").lower(): value.decode(errors="replace") for name, value in response.headers
            }
            if response.status in _REDIRECTS and "location" in headers:
                return headers["location"]
            if response.status in _BUSY or response.status >= 500:
                raise FetchFailed(f"{host_of(url)!r} answered with status {response.status}")
            if response.status != 200:
                raise FetchRefused(f"{host_of(url)!r} answered with status {response.status}")
            return await self._body(response, headers)

    async def _body(self, response: httpcore.Response, headers: dict[str, str]) -> bytes:
        limit = self.config.picture.max_bytes
        length = headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20 and int(length) > limit:
            raise FetchRefused(f"{length} bytes, allowed {limit}")
        encoding = headers.get("content-encoding", "").strip().lower()
        unpack = _Gzip(limit) if encoding in ("gzip", "x-gzip") else None
        if unpack is None and encoding not in ("", "identity"):
            raise FetchRefused(f"content encoding {encoding[:40]!r}, allowed identity and gzip")
        data, read = bytearray(), 0
        async for piece in response.aiter_stream():
            read += len(piece)
            data += piece if unpack is None else unpack(piece)
            if max(read, len(data)) > limit:
                raise FetchRefused(f"more than {limit} bytes")
        return bytes(data)

    @asynccontextmanager
    async def _response(self, url: httpx.URL) -> AsyncIterator[httpcore.Response]:
        """Open a response over a connection of its own. Raises FetchRefused, FetchFailed."""
        config = self.config
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=port_of(url), target=url.raw_path)
        headers: dict[bytes | str, bytes | str] = {"Host": url.netloc, **_HEADERS}
        limits = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), config.total_s)}
        try:
            async with (
                httpcore.AsyncConnectionPool(
                    ssl_context=self._tls or _trust(),
                    max_connections=1,
                    network_backend=_Checked(config, self._resolver),
                ) as pool,
                pool.stream("GET", target, headers=headers, extensions=limits) as response,
            ):
                yield response
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            if isinstance(_cause(error), ssl.SSLCertVerificationError):
                raise FetchRefused(f"certificate of {host_of(url)!r} is not valid") from error
            raise FetchFailed(f"{host_of(url)!r}: {type(error).__name__}: {error}"[:300]) from error


class _Checked(httpcore.AsyncNetworkBackend):
    """Connect only to addresses that it has resolved and checked itself."""

    def __init__(self, config: FetchConfig, resolver: Resolver) -> None:
        self._config, self._resolver = config, resolver
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, check every address, and connect to the first that answers, all within `connect_s`."""
        if port not in self._config.ports:
            raise FetchRefused(f"port {port}")
        try:
            async with asyncio.timeout(self._config.connect_s):
                addresses = await addresses_of(host, port, self._resolver, self._config.allow)
                for address in addresses[:-1]:
                    try:
                        return await self._backend.connect_tcp(str(address), port, socket_options=socket_options)
                    except httpcore.ConnectError:
                        continue
                return await self._backend.connect_tcp(str(addresses[-1]), port, socket_options=socket_options)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"no connection within {self._config.connect_s:g} s") from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109  the signature is httpcore's
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Refuse: no supported URL names a socket."""
        raise FetchRefused("a socket of this machine")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class _Gzip:
    """Decompress gzip piece by piece, never beyond a limit."""

    def __init__(self, limit: int) -> None:
        self._left, self._inflate = limit, zlib.decompressobj(wbits=31)

    def __call__(self, piece: bytes) -> bytes:
        """Return a decompressed piece. Raises FetchRefused beyond the limit or for broken data."""
        try:
            data = self._inflate.decompress(piece, self._left + 1)
        except zlib.error as error:
            raise FetchRefused(f"broken gzip: {error}") from error
        self._left -= len(data)
        if self._left < 0 or self._inflate.unconsumed_tail:
            raise FetchRefused("unpacks to more bytes than allowed")
        return data


def _cause(error: BaseException) -> BaseException:
    """Return the innermost cause of an error."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


@lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    return ssl.create_default_context()
