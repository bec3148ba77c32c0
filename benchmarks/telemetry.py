"""Seconds of a step's rollouts with live metrics and traces over the seconds without, and what telemetry computes itself.

The collector and the Prometheus that reads the metrics are one process beside this one, which takes what it is sent and
reads the metrics once a second. Both sides play the same requests with the same seeds, in turn.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.episodes import play
from benchmarks.measure import Goal, Options, Row, Spread, Stopwatch, paired_ratio, say
from benchmarks.world import atlas_config, concurrency
from genevolve_ray.evolution.inprocess import start_rollouts
from genevolve_ray.evolution.monitor import NullMonitor
from genevolve_ray.evolution.store.files import Folder
from genevolve_ray.evolution.telemetry.config import PrometheusConfig, TracesConfig
from genevolve_ray.evolution.telemetry.server import TARGETS
from genevolve_ray.evolution.telemetry.watching import WatchedRun, watched
from genevolve_ray.evolution.trackers.port import LoggingConfig
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.records.trajectory import Trajectory

_OTHER_SIDE = """
import json, sys, threading, time, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

class Collector(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"http://127.0.0.1:{server.server_port}", flush=True)
while True:
    time.sleep(1)
    try:
        target = json.loads(Path(sys.argv[1]).read_text())[0]["targets"][0]
        urllib.request.urlopen(f"http://{target}/metrics").read()
    except OSError:
        continue
"""
_AGAIN = 20
"""How often the trajectories of a step are counted and exported again, to measure what that computes."""

BENCH = partial(WatchedRun, "bench", steps=1)


def run(options: Options) -> list[Row]:
    """Measure, and return the rows of the table."""
    return asyncio.run(_run(options))


@contextmanager
def other_side(targets: Path) -> Iterator[str]:
    """Start the collector, which also reads the metrics at the address in a file; yield its address."""
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER_SIDE, str(targets)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def _run(options: Options) -> list[Row]:
    config, watch = atlas_config(options), Stopwatch()
    own: list[float] = []
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        images, home = FilesystemImages(folder), Folder(folder)
        source = config.requests.build(images)
        say("starting the engine")
        rollouts, engine = await start_rollouts(config, options.policy, images)
        with other_side(Path(folder) / TARGETS) as collector:
            logged = LoggingConfig(
                prometheus=PrometheusConfig(port=0), traces=TracesConfig(endpoint=collector, queue_spans=1 << 20)
            )
            try:
                for step in range(options.repeats + 1):
                    say(f"repetition {step} of {options.repeats} (0 is warm-up)")
                    size = config.loop.requests_per_step
                    requests = [source.train(step * size + index) for index in range(size)]
                    sides = ("off", "on") if step % 2 else ("on", "off")
                    for side in sides:
                        # A weight update comes before every step of a run, and it empties the prefix cache.
                        await engine.update(str(options.policy), engine.version + 1)
                        settings = logged if side == "on" else LoggingConfig()
                        with watched(NullMonitor(), settings, home, BENCH) as (monitor, _):
                            started = time.perf_counter()
                            played = await play(config, rollouts, requests, step, monitor.trajectory)
                            watch.add(side, time.perf_counter() - started)
                    own.append(computed(logged, home, played))
            finally:
                await engine.close()
    count = concurrency(config)
    return [
        Row(
            f"rollouts of a step with metrics and traces, {count} trajectories",
            Spread.of(watch.seconds("on")),
            "s",
            paired_ratio(watch.seconds("on"), watch.seconds("off")),
            "without",
            Goal(1.02, "at most"),
        ),
        Row("rollouts of a step without", Spread.of(watch.seconds("off")), "s"),
        Row(
            "processor time of metrics and traces over the seconds of the rollouts",
            paired_ratio(own[1:], watch.seconds("off")),
            "s/s",
            goal=Goal(0.02, "at most"),
        ),
    ]


def computed(settings: LoggingConfig, home: Folder, trajectories: Sequence[Trajectory]) -> float:
    """Return the seconds of processor time that the telemetry of these trajectories takes, up to the last byte sent."""
    with watched(NullMonitor(), settings, home, BENCH) as (monitor, _):
        started = time.process_time()
        for _ in range(_AGAIN):
            for trajectory in trajectories:
                monitor.trajectory(trajectory)
    return (time.process_time() - started) / _AGAIN
