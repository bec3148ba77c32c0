"""Seconds from a request to its answer by `genevolve ask` on the atlas: warm, and from the command's start, by engine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from benchmarks.measure import Goal, Options, Row, Spread, say

ENGINES = ("transformers", "vllm")
WARM_GOAL, COLD_GOAL = Goal(3, "at most"), Goal(30, "at most")


def run(options: Options) -> list[Row]:
    """Measure each engine: a chat that answers requests one after another, and commands that answer one each."""
    warm_requests, cold_starts = (2, 1) if options.quick else (max(10, 2 * options.repeats), 3)
    rows = []
    for kind in ENGINES:
        with TemporaryDirectory(prefix="genevolve-bench-") as folder:
            say(f"{kind}: {warm_requests} requests of a warm engine")
            warm = list(warm_seconds(options.policy, kind, warm_requests, Path(folder) / "chat"))
            say(f"{kind}: {cold_starts} cold starts")
            cold = [cold_seconds(options.policy, kind, Path(folder) / str(place)) for place in range(cold_starts)]
        # The median and the worst of all requests; the first one of a chat, which loads libraries, is a row of its own.
        rows += [
            Row(f"ask, {kind}: a request of a warm engine", Spread.of(warm[1:]), "s", goal=WARM_GOAL),
            Row(f"ask, {kind}: the first request of a chat", Spread.of(warm[:1]), "s", goal=WARM_GOAL),
            Row(f"ask, {kind}: a command from start to end", Spread.of(cold), "s", goal=COLD_GOAL),
        ]
    return rows


def command(policy: Path, kind: str, *arguments: str) -> list[str]:
    """Return the command line, whose output is events."""
    settings = ("--policy", str(policy), "--set", f"engine.kind={kind}", "--json")
    return [sys.executable, "-m", "genevolve_ray", "ask", *settings, *arguments]


def warm_seconds(policy: Path, kind: str, requests: int, out: Path) -> Iterator[float]:
    """Yield the seconds from the line of a request to the event of its answer, for the first and `requests` more."""
    with chat(command(policy, kind, "--chat", "--out", str(out))) as (lines, events):
        tell(lines, f":suggest {requests + 1}")
        prompts = next_event(events, "suggestions")["requests"]
        for prompt in prompts:
            started = time.perf_counter()
            tell(lines, prompt)
            answer = next_event(events, "answer")
            yield time.perf_counter() - started
            assert answer["exit_code"] in (0, 1), answer["reason"]


def cold_seconds(policy: Path, kind: str, out: Path) -> float:
    """Return the seconds of a command that starts everything, answers one request and ends."""
    started = time.perf_counter()
    subprocess.run(
        command(policy, kind, "Show two red lanterns of glass", "--out", str(out)),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - started


@contextmanager
def chat(arguments: list[str]) -> Iterator[tuple[IO[str], Iterator[dict[str, Any]]]]:
    """Start a chat and lend its input and its events, once it is ready."""
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        events = map(json.loads, process.stdout)
        next_event(events, "opened")
        yield process.stdin, events
        process.stdin.close()


def tell(lines: IO[str], line: str) -> None:
    """Send a line."""
    lines.write(line + "\n")
    lines.flush()


def next_event(events: Iterator[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Return the next event of a kind. Raises RuntimeError when the events end first."""
    for event in events:
        if event["event"] == kind:
            return event
    raise RuntimeError(f"genevolve ask ended without the event {kind!r}")
