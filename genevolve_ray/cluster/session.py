"""Ray session of a driver: started, checked and ended without leaving a process behind."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import psutil
from tenacity import Retrying, retry_if_exception, retry_never, stop_after_attempt

from genevolve_ray.cluster.errors import PlacementError
from genevolve_ray.cluster.sockets import check_temporary_folder
from genevolve_ray.cluster.watch import ClusterWatch, end_driver, reaper, vital

if TYPE_CHECKING:
    from genevolve_ray.cluster.config import ClusterConfig

LOOPBACK = "127.0.0.1"
_MIB = 1 << 20
_END_SECONDS = 10.0
_START_ATTEMPTS = 3
_SLOW_START = re.compile(r"timed out (?:during startup|waiting for file)|lines of \S+/dashboard\.log", re.IGNORECASE)
TASK_RECORDS = "RAY_task_events_report_interval_ms"
DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's default is 15: on a machine with other work, workers would hardly run.
    "RAY_worker_niceness": "0",
    # A call after the session must fail, and not start another Ray that is never ended.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Every call would stay in the control service as a record for the dashboard.
    TASK_RECORDS: "0",
}
"""Environment of the Ray processes that a private cluster starts; values set by the user have priority."""


def cluster_address(config: ClusterConfig) -> str | None:
    """Return the address of the cluster to join, None for a private one."""
    return config.address or os.environ.get("RAY_ADDRESS") or None


def cluster_nodes(address: str) -> list[dict[str, float]]:
    """Return the resources of each live node of the cluster at an address.

    Raises:
        PlacementError: when no cluster answers there.
    """
    import ray

    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PlacementError(f"no Ray cluster found at {address}: {error}") from error
    try:
        return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


@contextmanager
def ray_session(config: ClusterConfig, namespace: str) -> Iterator[str]:
    """Join a cluster, or start a private one on this machine; none of its processes remains at the end.

    Yields the address of Ray's dashboard where `cluster.dashboard` is set and there is one, else an empty text.

    Must be entered in the main thread: Linux ends Ray's processes together with the thread that started them. This also
    ends a private cluster whose driver was killed.
    """
    assert threading.current_thread() is threading.main_thread(), "ray_session must be entered in the main thread"
    address = cluster_address(config)
    private = address is None
    check_temporary_folder(ray=private, vllm=False)
    before = set(psutil.Process().children(recursive=True))
    handler = signal.getsignal(signal.SIGTERM)
    retrying = Retrying(
        # Ray gives its own processes 30 s to start, which a machine busy with other work may exceed.
        retry=retry_if_exception(_is_slow_start) if private else retry_never,
        stop=stop_after_attempt(_START_ATTEMPTS),
        before_sleep=lambda state: _end(set(psutil.Process().children(recursive=True)) - before, patience=0),
        reraise=True,
    )
    dashboard = retrying(_init, config, address, namespace)
    if handler is not signal.SIG_DFL:
        # Ray installs a SIGTERM handler that exits; a driver with its own cleanup keeps its handler.
        signal.signal(signal.SIGTERM, handler)
    try:
        with _watched(set(psutil.Process().children(recursive=True)) - before, config) if private else nullcontext():
            yield dashboard
    finally:
        import ray

        started = set(psutil.Process().children(recursive=True)) - before
        ray.shutdown()
        if private:
            _end(started)


@contextmanager
def _watched(processes: set[psutil.Process], config: ClusterConfig) -> Iterator[None]:
    """Watch the processes of a private cluster, and have them end with this process."""

    def say(line: str) -> None:
        print(f"note: {line}", file=sys.stderr, flush=True)

    watch = ClusterWatch(vital(processes), config.hang_timeout, say=say, end=end_driver)
    with reaper(processes, config.hang_timeout), watch:
        yield


def set_defaults(dashboard: bool = False) -> None:
    """Set the environment of the Ray processes that this process starts; values set by the user have priority.

    With a dashboard, calls leave the records that it shows.
    """
    for name, value in DEFAULTS.items():
        if not (dashboard and name == TASK_RECORDS):
            os.environ.setdefault(name, value)


def _is_slow_start(error: BaseException) -> bool:
    return _SLOW_START.search(str(error)) is not None


def _init(config: ClusterConfig, address: str | None, namespace: str) -> str:
    set_defaults(config.dashboard)
    import ray

    init = partial(ray.init, namespace=namespace, log_to_driver=config.log_to_driver, logging_level=logging.ERROR)
    if address is None:
        memory = config.object_store_mib * _MIB
        found = init("local", include_dashboard=config.dashboard, dashboard_host=LOOPBACK, object_store_memory=memory)
    else:
        found = init(address)
    url = found.dashboard_url if config.dashboard else None
    return f"http://{url}" if url else ""


def _end(processes: set[psutil.Process], patience: float = _END_SECONDS) -> None:
    """Wait until processes have ended; kill those that do not end."""
    _, alive = psutil.wait_procs(processes, timeout=patience)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=_END_SECONDS)
