"""Proxies for calls of services: from the environment, never for loopback, named by their variable in every failure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from genevolve_ray.errors import UserFault
from genevolve_ray.records.secrets import redacted

if TYPE_CHECKING:
    import httpx

_SCHEMES = ("http", "https", "socks5", "socks5h")


@dataclass(frozen=True)
class ServiceProxy:
    """Hold the address of a proxy, and the environment variable that names it."""

    variable: str
    address: str

    def __str__(self) -> str:
        """Return it for messages, without its password."""
        return f"the proxy {redacted(self.address)} of {self.variable}"


def proxy_for(url: str) -> ServiceProxy | None:
    """Return the proxy for calls of an address, None where they are direct.

    Lower-case variables win, as in curl. Loopback is never called through a proxy, whatever NO_PROXY says.

    Raises:
        UserFault: naming a variable with an address that is no proxy's.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".").lower()
    if is_loopback(host) or _excluded(host, parts.port):
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            # In a CGI process, HTTP_PROXY is a header of the request.
            if (address := os.environ.get(variable, "").strip()) and not (
                variable == "HTTP_PROXY" and "REQUEST_METHOD" in os.environ
            ):
                return _checked(variable, address)
    return None


def _checked(variable: str, address: str) -> ServiceProxy:
    address = address if "://" in address else f"http://{address}"
    address = f"socks5{address[5:]}" if address.startswith("socks:") else address
    try:
        parts = urlsplit(address)
        usable = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserFault(
            f"environment variable {variable}: {redacted(address)!r} is no proxy: write {', '.join(_SCHEMES)}://HOST:PORT"
        )
    return ServiceProxy(variable, address)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine by its name or address."""
    if host in ("localhost", "") or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def _excluded(host: str, port: int | None) -> bool:
    """Return whether NO_PROXY names a host: itself, a domain above it, a network, or `*`."""
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return any(_matches(host, port, entry.strip().lower()) for entry in listed.split(",") if entry.strip())


def _matches(host: str, port: int | None, entry: str) -> bool:
    if entry == "*":
        return True
    try:
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass  # One of them is a name.
    name, colon, its_port = entry.partition(":")
    if colon and its_port.isdigit() and int(its_port) != port:
        return False
    name = name.removeprefix("*").removeprefix(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def mounted(urls: tuple[str, ...], **options: Any) -> dict[str, httpx.AsyncBaseTransport]:
    """Return the transports of the addresses that are called through a proxy, for `httpx.AsyncClient(mounts=...)`.

    Raises:
        UserFault: naming the variable of a proxy that cannot be used.
    """
    import httpx

    found: dict[str, httpx.AsyncBaseTransport] = {}
    for url in urls:
        if (proxy := proxy_for(url)) is None:
            continue
        parts = urlsplit(url)
        try:
            transport = httpx.AsyncHTTPTransport(proxy=httpx.Proxy(proxy.address), **options)
        except (ImportError, ValueError) as error:
            raise UserFault(f"environment variable {proxy.variable}: {redacted(str(error))}") from error
        found[f"{parts.scheme}://{parts.netloc}"] = transport
    return found
