"""HTTP application of the site. It is imported by the command that serves it alone, as it loads the web framework."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from urllib.parse import urlencode

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.types import ASGIApp

from genevolve_ray.evolution.store.files import StoreError
from genevolve_ray.records.pictures import ImageRefused
from genevolve_ray.viewer.site.entries import FilterFault
from genevolve_ray.viewer.site.guard import LOOPBACK_NAMES, Guard
from genevolve_ray.viewer.site.index import UnknownAddress
from genevolve_ray.viewer.site.pages import (
    THUMBNAIL,
    PageMissing,
    PageRequest,
    file_name,
    pages_of,
    read_params,
    split_values,
)
from genevolve_ray.viewer.site.pictures import SIDES, Thumbnails
from genevolve_ray.viewer.site.rendering import prepare, render_home, render_message, render_source_page
from genevolve_ray.viewer.site.sources import ViewSource

STATIC = Path(__file__).resolve().parent.parent / "static"
_MEDIA = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_LONGEST_VALUE = 200
_FOLLOWERS = 64
"""Pages that may follow runs at once."""
_TICK, _SILENCE = 1.0, 15.0
"""Seconds between looks for news, and after which a follower hears that there is none, so that it stays connected."""
_FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}
"""Pictures are named by their content."""


class ServedLinks:
    """Return addresses on the server."""

    live = True

    def __init__(self, source: ViewSource | None = None) -> None:
        """Keep the source; without one, only the first page and the assets have addresses."""
        self._slug = source.slug if source else ""
        self._pages = pages_of(source.kind) if source else {}

    def home(self) -> str:
        """Return the address of the list of sources."""
        return "/"

    def page(self, name: str, /, **values: object) -> str:
        """Return the address of a page."""
        params, query = split_values(self._pages[name], values)
        path = "" if name == "overview" else "/".join((name, *params))
        return f"/{self._slug}/{path}" + (f"?{urlencode(query)}" if query else "")

    def picture(self, sha256: str, side: int | None = THUMBNAIL) -> str:
        """Return the address of a picture."""
        return f"/{self._slug}/image/{sha256}" + (f"?side={side}" if side else "")

    def asset(self, name: str) -> str:
        """Return the address of a file that the viewer brings along."""
        return f"/static/{name}"


def create_app(
    sources: Sequence[ViewSource], token: str | None = None, hosts: Collection[str] = LOOPBACK_NAMES
) -> ASGIApp:
    """Return the application.

    Args:
        sources: what it shows; each has another `slug`.
        token: callers must have it, as `?token=` once and in a cookie from then on; None admits everybody.
        hosts: names that callers may use for this server, so that no page from elsewhere can reach it under another one;
            they are not checked where there is a token, as its cookie belongs to one name.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    site = _Site(sources)
    app.add_api_route("/", site.home, methods=["GET", "HEAD"])
    app.add_api_route("/static/{name}", site.asset, methods=["GET", "HEAD"])
    app.add_api_route("/{slug}/image/{sha256}", site.image, methods=["GET", "HEAD"])
    app.add_api_route("/{slug}/events", site.events, methods=["GET"])
    app.add_api_route("/{slug}/{path:path}", site.page, methods=["GET", "HEAD"])
    app.add_exception_handler(404, site.unknown)
    return Guard(app, token, hosts)


class _Site:
    """Handle each route in one method; those that read files are no coroutines, so that they run in threads."""

    def __init__(self, sources: Sequence[ViewSource]) -> None:
        self._sources = {source.slug: source for source in sources}
        self._thumbnails, self._followers = Thumbnails(), 0
        self._assets = {path.name: path for path in STATIC.iterdir() if path.suffix in _MEDIA}
        # The modules and templates of first pages are loaded before anybody waits for one.
        prepare(page for source in sources for page in pages_of(source.kind).values() if page.label)

    def home(self) -> Response:
        """List the sources; a single one is shown at once."""
        if len(self._sources) == 1:
            return RedirectResponse(f"/{next(iter(self._sources))}/", 307)
        links = ServedLinks()
        places = [ServedLinks(source).page("overview") for source in self._sources.values()]
        return HTMLResponse(render_home(list(self._sources.values()), places, links))

    def asset(self, name: str) -> Response:
        """Send a file that the viewer brings along; the list of them was made at the start."""
        path = self._assets.get(name)
        return _missing("there is no such file") if path is None else FileResponse(path, media_type=_MEDIA[path.suffix])

    def page(self, request: Request, slug: str, path: str = "") -> Response:
        """Send a page of a source."""
        source = self._sources.get(slug)
        if source is None:
            return _missing("nothing of this name is open")
        name, *given = path.rstrip("/").split("/") if path.rstrip("/") else ["overview"]
        page = pages_of(source.kind).get(name)
        if page is None:
            return _missing("there is no page at this address", source)
        query = {k: v[:_LONGEST_VALUE] for k, v in request.query_params.items() if len(k) <= _LONGEST_VALUE}
        try:
            asked = PageRequest(source, ServedLinks(source), read_params(page, given), query, self._sources)
            if page.template:
                return HTMLResponse(render_source_page(page, asked))
            kept = page.build(asked)
        except (PageMissing, UnknownAddress) as error:
            return _missing(str(error), source)
        except FilterFault as error:
            return _message(400, "This filter cannot be used", str(error), source)
        except StoreError as error:
            return _message(500, "The files cannot be read", str(error), source)
        headers = {"Content-Disposition": f'attachment; filename="{file_name(kept["name"])}"'}
        return Response(kept["data"], media_type="application/json", headers=headers)

    def image(self, request: Request, slug: str, sha256: str) -> Response:
        """Send a picture, encoded again: scaled down, or whole without `side`."""
        source, side = self._sources.get(slug), request.query_params.get("side")
        if source is None or (side is not None and side not in map(str, SIDES)):
            return PlainTextResponse("no such picture or size\n", 404)
        pixels = int(side) if side else None
        picture = self._thumbnails.kept(sha256, pixels) if pixels else None
        try:
            picture = picture or self._thumbnails.make(sha256, source.picture(sha256), pixels)
        except FileNotFoundError as error:
            return PlainTextResponse(f"{error}\n", 404)
        except ImageRefused as error:
            return PlainTextResponse(f"this picture is not shown: {error}\n", 415)
        return Response(picture.data, media_type=picture.media_type, headers=_FOREVER)

    async def events(self, slug: str) -> Response:
        """Tell whenever pages of a source may have changed, as server-sent events."""
        source = self._sources.get(slug)
        if source is None:
            return PlainTextResponse("nothing of this name is open\n", 404)
        if self._followers >= _FOLLOWERS:
            return PlainTextResponse("too many pages follow this viewer\n", 503, {"Retry-After": "30"})
        return StreamingResponse(self._news(source), media_type="text/event-stream")

    async def _news(self, source: ViewSource) -> AsyncIterator[str]:
        self._followers += 1
        try:
            seen, told = -1, time.monotonic()
            while True:
                revision, silence = source.revision, time.monotonic() - told
                if revision != seen:
                    yield f"event: change\ndata: {revision}\n\n"
                    seen, told = revision, time.monotonic()
                elif silence > _SILENCE:
                    yield ": nothing new\n\n"
                    told = time.monotonic()
                await asyncio.sleep(_TICK)
        finally:
            self._followers -= 1

    async def unknown(self, request: Request, error: Exception) -> Response:
        """Answer for an address that no route has."""
        return _missing("there is no page at this address")


def _missing(text: str, source: ViewSource | None = None) -> Response:
    return _message(404, "Nothing here", text, source)


def _message(status: int, title: str, text: str, source: ViewSource | None = None) -> Response:
    return HTMLResponse(render_message(title, text, ServedLinks(source)), status)
