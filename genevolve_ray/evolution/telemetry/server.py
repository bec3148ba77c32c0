"""The HTTP endpoint of a run's live metrics, by prometheus_client's own server: a thread, so that no scrape waits."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.metric_writers import PrometheusConfig
from genevolve_ray.evolution.store.files import Folder

TARGETS = "prometheus_targets.json"
"""File of a run's folder with the address, in the form that Prometheus reads (`file_sd_configs`)."""

_NOT_IN_NAMES = re.compile(r"[^\w.-]")


@contextmanager
def serving(
    registry: CollectorRegistry, config: PrometheusConfig, folder: Folder, run: str, say: Callable[[str], None]
) -> Iterator[str]:
    """Serve the metrics of a registry until the end of the block; yield the address, as a URL.

    The address is written to `TARGETS` of the run's folder and to the folder of `targets`; both files are removed at the
    end.

    Args:
        registry: the metrics.
        config: where to listen.
        folder: the run's.
        run: its name, a label of all its metrics.
        say: receives a line with the address.

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
    files = [(folder, TARGETS)]
    if config.targets:
        files.append((Folder(config.targets), f"{_NOT_IN_NAMES.sub('_', run)}-{server.server_port}.json"))
    try:
        target = f"{_reachable(config.host)}:{server.server_port}"
        targets = [{"targets": [target], "labels": {"job": "genevolve", "run": run}}]
        for place, name in files:
            place.put(name, json.dumps(targets, indent=2).encode() + b"\n", "address of the metrics")
        url = f"http://{target}/metrics"
        say(f"metrics for Prometheus at {url}")
        yield url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        for place, name in files:
            place.delete(name)


def _reachable(host: str) -> str:
    """Return the name at which others reach an address; that of this machine for one that stands for all addresses."""
    if host in ("0.0.0.0", "::"):  # noqa: S104
        return socket.getfqdn()
    return f"[{host}]" if ":" in host else host
