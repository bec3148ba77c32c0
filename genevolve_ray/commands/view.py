"""`genevolve view`: serve the pages over runs and outputs, or write them as files."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import tempfile
import threading
import time
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from genevolve_ray.serving.local import bound_socket, serve_app, stop_event
from genevolve_ray.viewer.site.copy import PAGES, write_copy
from genevolve_ray.viewer.site.guard import LOOPBACK_NAMES, is_loopback
from genevolve_ray.viewer.site.sources import ViewSource, open_sources

_GRACE_SECONDS = 1.0
_BODY_MIB = 0.1
_NICENESS = 5
"""The viewer leaves the processors to the run that it follows."""
_LOOK_SECONDS, _RETRY_SECONDS = 1.0, 10.0
"""Seconds between looks at a run, and after a look that failed: the folder is away, or a file is half copied."""
_SHARE, _LONGEST_PAUSE = 0.01, 5.0
"""Share of one core that the viewer may take where it follows a run, by looks less often, and the longest pause for that."""
_THREADS = 8
"""Pages and pictures that are made at a time: each may hold a whole group of trajectories."""


@dataclass(frozen=True)
class Viewed:
    """Hold the options of a viewer: what it shows, and where it listens."""

    places: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    open: bool = False
    static: Path | None = None
    limit: int = PAGES
    token: bool = False


class Follower:
    """Read what is new in all sources, in one thread."""

    def __init__(self, sources: Sequence[ViewSource]) -> None:
        """Keep the sources; nothing is read yet."""
        self._sources, self._stop = sources, threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """Stop, after at most one look."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        pause, used = 0.0, time.process_time()
        while not self._stop.wait(pause):
            pause = min(map(_pause_after_look, self._sources))
            spent, used = time.process_time() - used, time.process_time()
            if pause:  # What was there at the start is read without a pause.
                pause = max(pause, pause_for(spent))


def pause_for(spent: float) -> float:
    """Return the seconds until the next look, after `spent` seconds of processor time since the last one.

    They hold what this look took, and the pages that the last one made browsers load again.
    """
    return min(spent / _SHARE, _LONGEST_PAUSE)


def _pause_after_look(source: ViewSource) -> float:
    """Read what is new in a source, and return the seconds until the next look."""
    more = source.look()
    return _RETRY_SECONDS if source.fault else 0.0 if more else _LOOK_SECONDS


def view_run(viewed: Viewed) -> None:
    """Serve the pages until Ctrl-C or SIGTERM, or write them as files.

    Raises:
        UserFault: for a path that holds nothing to show, and for an address that cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="genevolve-view-") as scratch, ExitStack() as opened:
        if viewed.static is None:
            listener = opened.enter_context(bound_socket(viewed.host, viewed.port))
        sources = open_sources(viewed.places, Path(scratch))
        for source in sources:
            opened.callback(source.close)
        if viewed.static is not None:
            _copy(sources, viewed.static, viewed.limit)
        else:
            asyncio.run(_serve(viewed, sources, listener, token_for(viewed.host, viewed.token)))


def token_for(host: str, asked: bool) -> str | None:
    """Return a new token, None on loopback, unless one is asked for there: another user of the machine can connect."""
    return secrets.token_urlsafe(24) if asked or not is_loopback(host) else None


def _copy(sources: Sequence[ViewSource], out: Path, limit: int) -> None:
    for source in sources:
        while source.refresh():
            pass
    with Console(stderr=True).status("") as shown:
        totals = write_copy(sources, out, limit, lambda name, pages: shown.update(f"{name}: {pages} pages"))
    print(f"{totals.pages} pages and {totals.pictures} pictures: open {out / 'index.html'}")
    if totals.left_out:
        print(f"{totals.left_out} pages are left out (--limit {limit}); the pages that link to them say so")


async def _serve(viewed: Viewed, sources: Sequence[ViewSource], listener: socket.socket, token: str | None) -> None:
    import anyio.to_thread

    from genevolve_ray.viewer.site.app import create_app

    anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
    app = create_app(sources, token, {*LOOPBACK_NAMES, viewed.host})
    follower, url = Follower(sources), _url(viewed.host, listener, token)

    def listening() -> None:
        follower.start()
        print(f"view {', '.join(source.name for source in sources)} at {url} (Ctrl-C ends it)", flush=True)
        if viewed.open:
            webbrowser.open(url)

    os.nice(_NICENESS)
    try:
        await serve_app(app, listener, stop_event(), listening, grace=_GRACE_SECONDS, body_mib=_BODY_MIB)
    finally:
        follower.close()


def _url(host: str, listener: socket.socket, token: str | None) -> str:
    name = host if host not in ("0.0.0.0", "::") else socket.gethostname()  # noqa: S104 - compared, not bound
    place = f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}/"
    return place if token is None else f"{place}?token={token}"
