"""The HTTP endpoint of a run's live metrics, by prometheus_client's own server: a thread, so that no scrape waits."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server

from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.evolution.telemetry.config import PrometheusConfig
from genevolve_ray.evolution.telemetry.watching import WatchedRun

TARGETS = "prometheus_targets.json"
"""File of a run's folder with the address, in the form that Prometheus reads (`file_sd_configs`)."""

_REQUEST_SECONDS = 10.0
"""Seconds that a reader may take to send its request."""
_NOT_IN_NAMES = re.compile(r"[^\w.-]")


@contextmanager
def serving(
    registry: CollectorRegistry, config: PrometheusConfig, folder: Folder, run: WatchedRun, say: Callable[[str], None]
) -> Iterator[str]:
    """Serve the metrics of a registry until the end of the block; yield the address, as a URL.

    The address is written to `TARGETS` of the run's folder and to the folder of `targets`; both files are removed at the
    end. A file that cannot be written or removed is a note. In the folder of `targets` the file is named by the run's id, so
    that a resumed run replaces the one that a killed process left.

    Args:
        registry: the metrics.
        config: where to listen.
        folder: the run's.
        run: the run.
        say: receives a line with the address, and the notes.

    Raises:
        UserFault: when the address is taken, or is none of this machine.
    """
    try:
        server, thread = start_http_server(config.port, config.host, registry)
    except OSError as error:
        raise UserFault(
            f"logging.prometheus: {config.host}:{config.port} cannot be listened on: {error.strerror or error}; "
            "set another port, or 0 for a free one"
        ) from error
    server.RequestHandlerClass = _limited(server.RequestHandlerClass)
    target = f"{_reachable(config.host)}:{server.server_port}"
    named = f"{_NOT_IN_NAMES.sub('_', run.name)}-{run.id or server.server_port}.json"
    files = {"": TARGETS} | ({config.targets: named} if config.targets else {})
    try:
        targets = [{"targets": [target], "labels": {"job": "genevolve", "run": run.name}}]
        data = json.dumps(targets, indent=2).encode() + b"\n"
        for uri, name in files.items():
            with _noted(say):
                (Folder(uri) if uri else folder).put(name, data, "address of the metrics")
        url = f"http://{target}/metrics"
        say(f"metrics for Prometheus at {url}")
        yield url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        for uri, name in files.items():
            with _noted(say):
                (Folder(uri) if uri else folder).delete(name)


@contextmanager
def _noted(say: Callable[[str], None]) -> Iterator[None]:
    """Turn a file that cannot be written or removed into a note: the run goes on, and its metrics are served."""
    try:
        yield
    except StoreError as error:
        say(f"logging.prometheus: {error}. The run continues; Prometheus may not find its address, or an old one")


def _limited(handler: Any) -> Any:
    """Return a handler of requests that closes a connection which says nothing for `_REQUEST_SECONDS`.

    Each connection has a thread, which would otherwise stay until the end of the run.
    """

    class Limited(handler):  # type: ignore[misc]
        timeout = _REQUEST_SECONDS

        def handle(self) -> None:
            with suppress(TimeoutError):
                super().handle()

    return Limited


def _reachable(host: str) -> str:
    """Return the name at which others reach an address; that of this machine for one that stands for all addresses."""
    if host in ("0.0.0.0", "::"):  # noqa: S104
        return socket.gethostname()  # `getfqdn` may wait for a name server.
    return f"[{host}]" if ":" in host else host
