"""Addresses from which pictures may be fetched: only the public internet, in plain spelling.

These tables are stricter than `ipaddress.is_global` and the maintained packages httpx-secure 2.0 (`is_global` and
NAT64) and safehttpx 0.2. All three accept 6to4 addresses, ISATAP addresses, 6to4 relays and a cloud's platform address;
the first two also accept multicast. Of a name with several addresses httpx-secure connects to one before it checks that
one, and safehttpx takes the first public one. Here every address is checked before any connection.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpx

from genevolve_ray.errors import GenevolveError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port in, every address of that name out. Raises OSError when the name cannot be resolved."""

MAX_URL_CHARS = 4096
_SHOWN = 80
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A last label that some resolvers read as (part of) a number: 127.1, 2130706433, 0x7f000001, 0177.0.0.1."""

# IANA's special-purpose registries, and public addresses that clouds reserve for their own services.
_CLOSED_4 = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # "this" network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT, and the metadata of one cloud
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # the platform address of one cloud
        "169.254.0.0/16",  # link-local, and the metadata of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
_OPEN_6 = ip_network("2000::/3")
"""The only part of IPv6 that is allocated for the public internet."""
_CLOSED_6 = tuple(
    ip_network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
_NAT64 = ip_network("64:ff9b::/96")
_EMBEDDING = tuple(ip_network(text) for text in ("64:ff9b:1::/48", "::ffff:0:0:0/96", "::/96"))
"""Local translation, IPv4-translated and IPv4-compatible addresses: the last 32 bits are an IPv4 address."""
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})


class FetchRefused(GenevolveError, ValueError):
    """Signal that an address or its content is permanently rejected; the message states the reason."""


def check_url(
    text: str, *, ports: Sequence[int] = (80, 443), base: httpx.URL | None = None, allow: Sequence[Network] = ()
) -> httpx.URL:
    """Return an untrusted URL, with a plain host in lower case and without fragment, if it may be requested.

    A host that is an address is checked here. The addresses of a name are checked when it is resolved
    (`check_address`).

    Args:
        text: the URL; with `base`, it may be relative.
        ports: the ports that are allowed.
        base: the URL that sent a redirect.
        allow: networks that are accepted although they are not public.

    Raises:
        FetchRefused: for another scheme or port, credentials, an odd spelling of the host, a closed address.
    """
    if len(text) > MAX_URL_CHARS:
        raise FetchRefused(f"a URL of {len(text)} characters, allowed {MAX_URL_CHARS}")
    try:
        url = httpx.URL(text) if base is None else base.join(text)
        host = host_of(url).removesuffix(".")
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise FetchRefused(f"not a URL: {_shown(text)}: {error}") from error
    if url.scheme not in ("http", "https"):
        raise FetchRefused(f"scheme {_shown(url.scheme)} of {_shown(text)}, allowed http and https")
    if url.userinfo:
        # Never shown: it may contain a password.
        raise FetchRefused(f"credentials in a URL of {_shown(host)}")
    if port_of(url) not in ports:
        raise FetchRefused(f"port {port_of(url)} of {_shown(host)}, allowed {', '.join(map(str, ports))}")
    address = literal(host)
    if address is not None:
        check_address(address, allow)
    else:
        _check_name(host)
    return url.copy_with(host=host, fragment=None)


def host_of(url: httpx.URL) -> str:
    """Return the host of a URL as it is sent. `httpx.URL.host` decodes it, and raises for an invalid IDNA name."""
    return url.raw_host.decode("ascii", "replace")


def port_of(url: httpx.URL) -> int:
    """Return the port of a URL, the scheme's default where it names none."""
    return url.port if url.port is not None else (443 if url.scheme == "https" else 80)


def literal(host: str) -> Address | None:
    """Return the address that a host denotes, in its canonical notation, None for a name.

    Raises:
        FetchRefused: for an IPv6 address with a zone.
    """
    if "%" in host:
        raise FetchRefused(f"host {_shown(host)} has a zone or an escape")
    try:
        return ip_address(host)
    except ValueError:
        return None


def _check_name(host: str) -> None:
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise FetchRefused(f"host {_shown(host)} is not a plain name")
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        raise FetchRefused(f"host {_shown(host)} is an address in an odd spelling")


def check_address(address: Address, allow: Sequence[Network] = ()) -> None:
    """Accept an address of the public internet, or one inside an allowed network.

    Raises:
        FetchRefused: for every other one, including those embedded in an IPv6 address.
    """
    for part in _parts(address):
        allowed = any(part in network for network in allow if network.version == part.version)
        if not (allowed or _public(part)):
            held = "" if part == address else f" (inside it {part})"
            raise FetchRefused(f"address {address}{held} is not on the public internet")


def _parts(address: Address) -> list[Address]:
    """Return all addresses that a packet to an address may reach.

    A mapped or translated address is only another notation of the IPv4 address inside it. In every other form the
    packet first goes to the outer address, and a relay there sends it to the inner one: both must be public.
    """
    if isinstance(address, IPv4Address):
        return [address]
    low = IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None or address in _NAT64:
        return [low]
    inner = [address.sixtofour, *(address.teredo or ())]
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP or any(address in network for network in _EMBEDDING):
        inner.append(low)
    return [address, *(part for part in inner if part is not None)]


def _public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _CLOSED_4)
    return address in _OPEN_6 and not any(address in network for network in _CLOSED_6)


async def addresses_of(host: str, port: int, resolver: Resolver, allow: Sequence[Network] = ()) -> list[Address]:
    """Return the addresses of a host after checking every one of them.

    A name with one closed address is rejected as a whole.

    Raises:
        FetchRefused: for an odd spelling or a closed address.
        OSError: when the name cannot be resolved.
    """
    found = literal(host)
    if found is None:
        _check_name(host)
        texts = list(dict.fromkeys(await resolver(host, port)))
        try:
            addresses = [ip_address(text) for text in texts]
        except ValueError as error:
            raise FetchRefused(f"host {_shown(host)} resolves to something odd: {error}") from error
        if not addresses:
            raise OSError(f"host {_shown(host)} has no address")
    else:
        addresses = [found]
    for address in addresses:
        if isinstance(address, IPv6Address) and address.scope_id:
            raise FetchRefused(f"host {_shown(host)} resolves to {address}, which has a zone")
        check_address(address, allow)
    return addresses


# Look-ups cannot be canceled: they get threads of their own, so that slow name servers block nothing else.
_LOOK_UPS = ThreadPoolExecutor(max_workers=16, thread_name_prefix="resolver")


async def system_resolver(host: str, port: int) -> list[str]:
    """Resolve a name with this machine's resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.run_in_executor(_LOOK_UPS, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    return [str(entry[4][0]) for entry in found]


def _shown(text: str) -> str:
    return repr(text[:_SHOWN])
