"""Checks before every request of the site (method, name of the host, token), and the headers of every answer."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genevolve_ray.viewer.site.rendering import POLICY

COOKIE = "genevolve_view"
"""First part of the name of the cookie. The port follows, as browsers send a cookie to every port of a host."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_STRANGER = (
    "This viewer needs its token: open the address that `genevolve view` printed, which ends in ?token=... "
    "(cookies must be allowed).\n"
)


class Guard:
    """Admit requests that may be answered, and send the headers that every answer needs."""

    def __init__(self, app: ASGIApp, token: str | None, hosts: Collection[str]) -> None:
        """Stand before `app`; the other arguments are those of `create_app`."""
        self._app, self._token, self._hosts = app, token, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = self._refusal(scope)
        await (self._app if refused is None else refused)(scope, receive, send_safely)

    def _refusal(self, scope: Scope) -> Response | None:
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("This viewer only reads: use GET.\n", 405, {"Allow": "GET, HEAD"})
        headers = Headers(scope=scope)
        # A page from elsewhere whose name is made to lead here would be of the same origin as this server.
        if self._token is None and _host_of(headers.get("host", "")) not in self._hosts:
            return PlainTextResponse("This viewer is not known under that name.\n", 421)
        return None if self._token is None else self._without_token(scope, headers, self._token)

    def _without_token(self, scope: Scope, headers: Headers, token: str) -> Response | None:
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = next((value for key, value in query if key == "token"), None)
        name, proof = f"{COOKIE}_{_port_of(scope, headers)}", _proof_of(token)
        if given is not None:
            if not _same(given, token):
                return PlainTextResponse(_STRANGER, 401)
            rest = urlencode([pair for pair in query if pair[0] != "token"])
            # The path begins with one slash: with two it would be the address of another host.
            answer = RedirectResponse("/" + scope["path"].lstrip("/") + (f"?{rest}" if rest else ""), 303)
            # Sent with a link from another site too: the viewer only answers requests that change nothing.
            answer.set_cookie(name, proof, httponly=True, samesite="lax", path="/")
            return answer
        return None if _same(_cookie(headers.get("cookie", ""), name), proof) else PlainTextResponse(_STRANGER, 401)


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on is this machine's alone."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


def _proof_of(token: str) -> str:
    """Return what the cookie holds: it shows that the token was given, and the token does not follow from it."""
    return hmac.new(token.encode(), b"genevolve view", "sha256").hexdigest()


def _port_of(scope: Scope, headers: Headers) -> int:
    """Return the port that the browser asks, which a tunnel may give another number; that of the server if unknown."""
    try:
        named = urlsplit(f"//{headers.get('host', '')}").port
    except ValueError:
        named = None
    return named or (scope.get("server") or ("", 0))[1] or 0


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _host_of(header: str) -> str:
    """Return the name in a Host header without its port, "" for none that is valid."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
