"""`python -m benchmarks.chaos`: SIGKILL at random moments, to any part of a run, until it has had so many.

The run is a real one on Ray, without its model (`--engine null`, fast restarts) or with vLLM and the atlas policy (`--engine
vllm`). A killed driver is started again with the same command, as docs/reliability.md tells. At the end the run's own
files must show that nothing judged was lost or used twice.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from benchmarks.measure import say

TITLES: dict[str, str] = {
    "rollout worker": "ray::RolloutWorker",
    "engine": "VLLM::EngineCore",
    "tools": "-tools:",
    "renderer": "-renderer:",
    "judge": "-judge:",
    "memory": "ray::ExperienceWorker",
    "learner": "ray::LearnerWorker",
    "controller": "ray::ServeController",
}
"""How each kind of process is known among the driver's descendants."""
DRIVER, NODE = "driver", "node"
TRIES = 5
"""How often a run may end with an error of its own before that is the result."""
LONGEST_START = 180.0
"""Seconds that a life is spared before its first commit."""
ROOT = Path(__file__).parents[1]


@dataclass
class Record:
    """What has happened so far."""

    kills: list[tuple[float, str]] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)
    starts: int = 0
    endings: list[str] = field(default_factory=list)


def settings(engine: str, steps: int, workers: int) -> list[str]:
    """Return the overrides of the atlas preset: small asynchronous steps, and restarts without a bound that matters."""
    environment = f"{{env_vars: {{PYTHONPATH: '{ROOT}'}}}}"
    common = [
        f"loop.steps={steps}",
        "loop.mode=async",
        "loop.max_staleness=2",
        "loop.validate_every=0",
        "loop.checkpoint_every=5",
        "loop.max_attempts=10",
        "heldout.requests=0",
        f"cluster.rollout_workers={workers}",
        "cluster.max_restarts=100000",
        "cluster.rollout_attempts=100",
        "cluster.experience_attempts=100",
    ]
    if engine == "vllm":
        return [*common, "loop.requests_per_step=4", "loop.group_size=3"]
    return [
        *common,
        "rehearsal={turn_seconds: 0.02, step_seconds: 0.5}",
        "profile=release",
        "loop.requests_per_step=4",
        "loop.group_size=4",
        "requests={type: 'benchmarks.null_parts:Requests'}",
        "tools={type: 'benchmarks.null_parts:Tools'}",
        "renderer={type: 'benchmarks.null_parts:Renderer', config: {median: 0.3}}",
        "judge={type: 'benchmarks.null_parts:Judge', config: {median: 0.1}}",
        "summariser={type: 'genevolve_ray.judges.summariser:RuleSummariser'}",
        *(f"{role}.runtime_env={environment}" for role in ("tools", "renderer", "judge")),
    ]


@contextmanager
def driver(run: Path, overrides: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the run, or go on with it."""
    command = [sys.executable, "-c", "from genevolve_ray.cli import main; main()", "evolve", "atlas", "--run", str(run)]
    for override in overrides:
        command += ["--set", override]
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=60)


def targets() -> dict[str, list[psutil.Process]]:
    """Return the living parts of a run by kind: all of them descend from this process."""
    found: dict[str, list[psutil.Process]] = defaultdict(list)
    for member in psutil.Process().children(recursive=True):
        try:
            title = " ".join(member.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        for kind, mark in TITLES.items():
            if mark in title and (
                kind in ("engine", "rollout worker", "memory", "learner", "controller") or "ServeReplica" in title
            ):
                found[kind].append(member)
    return found


class Nodes:
    """Simulated nodes beside the head, each of which may be lost; another one joins in its place."""

    def __init__(self, cluster: Any, count: int) -> None:
        """Add `count` nodes to a cluster that has its head."""
        self._cluster = cluster
        self._nodes = [self._add() for _ in range(count)]

    def lose(self, dice: random.Random) -> int:
        """Kill a node's raylet, and with it all that runs there; returns its process id."""
        node = self._nodes.pop(dice.randrange(len(self._nodes)))
        [raylet] = node.all_processes["raylet"]
        raylet.process.kill()
        raylet.process.wait()
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._add())
        return int(raylet.process.pid)

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=96 << 20)


@contextmanager
def nodes(count: int) -> Iterator[tuple[list[str], Nodes | None]]:
    """Start a cluster of several simulated nodes for the run to join; with one node the run has a private one."""
    if count < 2:
        yield [], None
        return
    from ray.cluster_utils import Cluster

    # Ray's default takes 15 s to notice that a node is gone.
    system = {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 3,
    }
    head = {"num_cpus": 1, "object_store_memory": 96 << 20, "include_dashboard": False, "_system_config": system}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield [f"cluster.address={cluster.address}"], Nodes(cluster, count - 1)
    finally:
        cluster.shutdown()


def storm(
    run: Path,
    overrides: list[str],
    kills: int,
    pause: Callable[[], float],
    dice: random.Random,
    record: Record,
    log: Path,
    others: Nodes | None = None,
) -> None:
    """Kill until there were so many kills or the run has ended; then let it end."""
    while True:
        with driver(run, overrides, log) as process:
            record.starts += 1
            if not _storm_one_life(process, run, kills, pause, dice, record, others):
                continue
            code = process.wait()
            record.endings.append(f"exit code {code}")
            # What dies while a run starts ends it with a message; it is started again like one whose driver died.
            if code == 0 or len(record.endings) - record.endings.count("killed") > TRIES:
                return


def _storm_one_life(
    process: subprocess.Popen[bytes],
    run: Path,
    kills: int,
    pause: Callable[[], float],
    dice: random.Random,
    record: Record,
    others: Nodes | None,
) -> bool:
    """Watch a driver to its end, killing what is still to be killed; False when that end was such a kill."""
    started, seen = time.monotonic(), _committed(run)
    next_kill = None
    while process.poll() is None:
        time.sleep(0.05)
        now = time.monotonic()
        if (there := _committed(run)) > seen:
            record.commits += [now] * (there - seen)
            seen = there
            next_kill = next_kill or now + pause()
        # A life begins when it commits; one that never does is not spared either.
        if len(record.kills) >= kills or (next_kill or started + LONGEST_START) > now:
            continue
        alive = targets()
        counts = Counter(kind for _, kind in record.kills)
        kinds = [*alive, DRIVER, *([NODE] if others else [])]
        least = min(counts[kind] for kind in kinds)
        kind = dice.choice(sorted(k for k in kinds if counts[k] == least))
        pid = _kill(kind, alive, process, dice, others)
        if pid is None:
            continue
        record.kills.append((time.monotonic(), kind))
        say(f"{len(record.kills):4d} killed {kind} ({pid}) after step {seen}")
        if kind == DRIVER:
            process.wait()
            record.endings.append("killed")
            return False
        next_kill = time.monotonic() + pause()
    return True


def _kill(
    kind: str,
    alive: dict[str, list[psutil.Process]],
    process: subprocess.Popen[bytes],
    dice: random.Random,
    others: Nodes | None,
) -> int | None:
    """Kill one of a kind and return its process id, None where it was gone already."""
    if kind == NODE and others is not None:
        return others.lose(dice)
    victim = psutil.Process(process.pid) if kind == DRIVER else dice.choice(alive[kind])
    try:
        victim.kill()
    except psutil.NoSuchProcess:
        return None
    return victim.pid


def _committed(run: Path) -> int:
    return sum(1 for _ in (run / "steps").glob("*/manifest.json"))


def verdict(run: Path, steps: int) -> dict[str, Any]:
    """Return what the run's files show. Raises AssertionError naming what is wrong."""
    from genevolve_ray.evolution.store.run import RunStore

    store = RunStore.read(str(run))
    manifests = store.manifests()
    assert [m.step for m in manifests] == list(range(1, steps + 1)), f"committed {[m.step for m in manifests]}"
    used = [group.path for m in manifests for group in m.groups]
    assert len(used) == len(set(used)), "a judged group was used twice"
    rows = store.metrics()
    for row in rows:
        parts = ("samples_consumed", "samples_discarded", "samples_buffered", "samples_running")
        assert row["samples_leased"] == sum(row[p] for p in parts), f"step {row['step']}: samples do not add up"
        assert row["staleness_max"] <= 2, f"step {row['step']}: staleness {row['staleness_max']}"
        assert row.get("parity", 0.0) <= 1e-4, f"step {row['step']}: parity {row['parity']}"
    # Judged and persisted, but in no manifest: discarded, or judged after the last step's batch was complete.
    unused = [
        g for g in store.pending_groups() if g.request_id not in {f.request_id for m in manifests for f in m.groups}
    ]
    discarded = rows[-1]["samples_discarded"]
    assert sum(g.samples for g in unused) <= discarded + 1e-9, f"{len(unused)} judged groups are unaccounted for"
    return {
        "steps": steps,
        "groups": len(used),
        "samples_discarded": discarded,
        "discarded_fraction": rows[-1]["discarded_fraction"],
        "parity_max": max((row["parity"] for row in rows if "parity" in row), default=None),
        "infra_failures": sum(row["infra_failures"] for row in rows),
    }


def recoveries(record: Record) -> dict[str, dict[str, float]]:
    """Return the seconds from each kind of kill to the next committed step, where no other kill fell in between.

    A step is under way as a rule, so that they hold half a step's time even where nothing had to recover.
    """
    waits: dict[str, list[float]] = {kind: [] for _, kind in record.kills}
    times = [at for at, _ in record.kills]
    for at, kind in record.kills:
        committed = min((c for c in record.commits if c > at), default=None)
        if committed is not None and not any(at < other < committed for other in times):
            waits[kind].append(committed - at)
    return {
        k: {"kills": len(w), "median_s": round(median(w), 2), "longest_s": round(max(w), 2)}
        for k, w in sorted(waits.items())
        if w
    }


def main(arguments: list[str] | None = None) -> int:
    """Storm and judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="how many processes to kill (default 100)")
    parser.add_argument("--engine", choices=("null", "vllm"), default="null")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="rollout workers (default 2)")
    parser.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="simulated nodes; above 1 they are killed too"
    )
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="steps of the run (default 400)")
    parser.add_argument("--longest", type=float, default=4.0, metavar="S", help="longest pause between kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parsed = parser.parse_args(arguments)
    dice, record = random.Random(parsed.seed), Record()
    with TemporaryDirectory(prefix="genevolve-chaos-") as folder, nodes(parsed.nodes) as (joined, others):
        run, log = Path(folder) / "run", Path(folder) / "driver.log"
        began = time.monotonic()
        overrides = [*settings(parsed.engine, parsed.steps, parsed.workers), *joined]
        storm(run, overrides, parsed.kills, lambda: dice.uniform(0.2, parsed.longest), dice, record, log, others)
        try:
            result = verdict(run, parsed.steps)
        except AssertionError:
            say(log.read_text(encoding="utf-8", errors="replace")[-4000:])
            raise
    result |= {
        "engine": parsed.engine,
        "kills": dict(Counter(kind for _, kind in record.kills)),
        "driver_starts": record.starts,
        "gave_up": sum(ending not in ("killed", "exit code 0") for ending in record.endings),
        "seconds": round(time.monotonic() - began, 1),
        "to_the_next_commit_undisturbed": recoveries(record),
    }
    print(json.dumps(result, indent=2))
    if parsed.json:
        parsed.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
