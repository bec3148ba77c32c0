"""`python -m benchmarks` (`make bench`): every benchmark in a process of its own, one table, one JSON file."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Options, prepare_process, say

NAMES = (
    "trl_baseline",
    "episodes",
    "learner",
    "packing",
    "fine_tuning",
    "pictures",
    "transport",
    "step",
    "scoring",
    "memory",
    "weights",
    "services",
    "tool_calls",
    "mcp_calls",
    "open_reward",
    "asynchronous",
    "controller",
    "ask",
    "telemetry",
    "view",
)
SECONDS_EACH = 900
"""A benchmark that takes longer has hung; its process is ended and the others go on."""
SECONDS_OF = {"trl_baseline": 3600}
"""Other limits: that one measures five sides at three sizes of the policy."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this machine: each figure beside its limit, measured in the same run. "
        "docs/performance.md tells how to read it.",
    )
    parser.add_argument("--only", action="append", choices=NAMES, help="this benchmark alone; repeatable")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows here as well")
    parser.add_argument("--repeats", type=int, metavar="N", help="measured repetitions (default 5, with --quick 2)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="torch threads (default 2)")
    parser.add_argument("--policy", type=Path, metavar="DIR", help="model folder (default: the shipped cold start)")
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="`step` and `scoring` read this finished run and make none"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.repeats is None:
        parsed.repeats = 2 if parsed.quick else 5
    if parsed.repeats < 1 or parsed.threads < 1:
        parser.error(f"--repeats and --threads must be at least 1, got {parsed.repeats} and {parsed.threads}")
    return parsed


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for; returns 1 when a benchmark failed. A goal that is missed is a finding, not a failure."""
    parsed = parse(arguments)
    prepare_process(parsed.threads)
    from benchmarks.report import busy, environment, print_table, write_json

    policy = parsed.policy or _default_policy()
    for folder, marker in ((policy, "config.json"), *(((parsed.run, "run.json"),) if parsed.run else ())):
        if not (folder / marker).is_file():
            print(f"error: {folder} has no {marker}", file=sys.stderr)
            return 2
    options = Options(policy, parsed.repeats, parsed.quick, parsed.threads, parsed.run)
    names = [name for name in NAMES if parsed.only is None or name in parsed.only]
    state = environment()
    # A child would take the load of the benchmark before it for somebody else's.
    if not parsed.child and (warning := busy(state["cores"], state["load_average"][0])):
        say(warning)
    results = {name: _in_child(name, parsed) for name in names} if len(names) > 1 else _here(names[0], options)
    done = {name: rows for name, rows in results.items() if rows is not None}
    print_table(done)
    if parsed.json:
        write_json(done, _settings(parsed) | {"policy": str(policy)}, state, parsed.json)
    return 0 if len(done) == len(names) else 1


def _settings(parsed: argparse.Namespace) -> dict[str, Any]:
    kept = {key: value for key, value in vars(parsed).items() if key not in ("json", "child")}
    return {key: str(value) if isinstance(value, Path) else value for key, value in kept.items()}


def _default_policy() -> Path:
    from benchmarks.world import default_policy

    return default_policy()


def _here(name: str, options: Options) -> dict[str, Any]:
    module = importlib.import_module(f"benchmarks.{name}")
    return {name: [row.as_json() for row in module.run(options)]}


def _in_child(name: str, parsed: argparse.Namespace) -> list[dict[str, Any]] | None:
    """Run one benchmark in a fresh process, so that no thread pool or memory of another one is in its way."""
    say(f"--- {name}")
    command = [sys.executable, "-m", "benchmarks", "--child", "--only", name]
    command += ["--repeats", str(parsed.repeats), "--threads", str(parsed.threads)]
    command += ["--quick"] if parsed.quick else []
    command += ["--policy", str(parsed.policy)] if parsed.policy else []
    command += ["--run", str(parsed.run)] if parsed.run else []
    limit = SECONDS_OF.get(name, SECONDS_EACH)
    with TemporaryDirectory(prefix="genevolve-bench-") as folder:
        out = Path(folder) / "rows.json"
        try:
            child = subprocess.run(
                [*command, "--json", str(out)], stdout=subprocess.DEVNULL, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            say(f"{name} did not end within {limit} s")
            return None
        if child.returncode or not out.is_file():
            say(f"{name} failed (exit code {child.returncode})")
            return None
        rows: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))["benchmarks"][name]
        return rows


if __name__ == "__main__":
    sys.exit(main())
