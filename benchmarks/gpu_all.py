"""All that one GPU can show within 9 minutes: `python benchmarks/gpu_all.py`.

Every stage runs in a process of its own, with a limit of time. A stage that fails is reported, and the next one runs.
Prints a table, and writes JSON with `--json`. `--rehearse` runs every stage on a tiny model on a CPU: it shows that the
script works, and measures nothing. Exit code 0 when no stage failed, 1 when one did, 2 where the device is not there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# As a script, this folder is on the path and the tree is not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import LeftOut, Options, Row, prepare_process, say

Stage = Callable[[Options], list[Row]]
MODULES = ("benchmarks.gpu_learning", "benchmarks.gpu_engine")
"""Modules with a list `STAGES` of (name, stage), and `SECONDS` for stages with another limit than the usual one."""
SECONDS_ALL = 540
SECONDS_EACH = 90


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="gpu_all", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda (default) or cuda:N")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on a CPU: shows that every stage runs")
    parser.add_argument("--only", action="append", metavar="TEXT", help="stages whose name contains this; repeatable")
    parser.add_argument("--seconds", type=int, default=SECONDS_ALL, help=f"time for all stages (default {SECONDS_ALL})")
    parser.add_argument("--policy", type=Path, metavar="DIR", help="model folder of a trained policy, for the engine")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write rows and states of the stages here as well")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.rehearse:
        parsed.device = "cpu"
    return parsed


def stages() -> dict[str, tuple[Stage, int]]:
    """Return every stage with its limit in seconds, by name."""
    found: dict[str, tuple[Stage, int]] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        limits = getattr(module, "SECONDS", {})
        found |= {title: (stage, limits.get(title, SECONDS_EACH)) for title, stage in module.STAGES}
    return found


def run_all(parsed: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Run the stages that were asked for, and return what is known of each: `state`, `seconds`, and rows."""
    ends = time.monotonic() + parsed.seconds
    results: dict[str, dict[str, Any]] = {}
    for name, (_, limit) in stages().items():
        if parsed.only and not any(text in name for text in parsed.only):
            continue
        say(f"--- {name}")
        started = time.monotonic()
        left = min(limit, ends - started)
        found = in_child(name, parsed, left) if left > 0 else {"state": "left out: no time was left", "rows": []}
        results[name] = found | {"seconds": round(time.monotonic() - started, 1)}
        say(f"{results[name]['state']}, {results[name]['seconds']:g} s")
    return results


def in_child(name: str, parsed: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run one stage in a fresh process: its memory of the device, its compiled code and its end are its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", name, "--device", parsed.device]
    command += ["--rehearse"] if parsed.rehearse else []
    command += ["--policy", str(parsed.policy)] if parsed.policy else []
    with TemporaryDirectory(prefix="genevolve-gpu-") as folder:
        out = Path(folder) / "stage.json"
        child = subprocess.Popen(
            [*command, "--json", str(out)], stdout=subprocess.DEVNULL, start_new_session=True, env=os.environ.copy()
        )
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            return {"state": f"failed: it did not end within {seconds:.0f} s", "rows": []}
        finally:
            _end(child)
        if not out.is_file():
            return {"state": f"failed: exit code {code}", "rows": []}
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found


def _end(child: subprocess.Popen[bytes]) -> None:
    """End what is left of a stage: its process, and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run_here(name: str, options: Options) -> dict[str, Any]:
    """Run one stage in this process."""
    try:
        rows = stages()[name][0](options)
    except LeftOut as reason:
        return {"state": f"left out: {reason}", "rows": []}
    except Exception as error:  # noqa: BLE001 # whatever a stage raises is its result
        import traceback

        traceback.print_exc()
        return {"state": f"failed: {type(error).__name__}: {error}"[:500], "rows": []}
    return {"state": "done", "rows": [row.as_json() for row in rows]}


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns its exit code."""
    parsed = parse(arguments)
    prepare_process(1 if parsed.rehearse else os.cpu_count() or 1)
    from benchmarks.gpu_smoke import gpu_is_missing
    from benchmarks.report import environment, print_table, write_json
    from benchmarks.world import default_policy

    if gpu_is_missing(parsed.device):
        return 2
    if parsed.child:
        policy = parsed.policy or default_policy()
        options = Options(policy, 2 if parsed.rehearse else 5, parsed.rehearse, device=parsed.device)
        parsed.json.write_text(json.dumps(run_here(parsed.child, options)), encoding="utf-8")
        return 0
    state = environment()
    results = run_all(parsed)
    print_table({name: found["rows"] for name, found in results.items() if found["rows"]})
    for name, found in results.items():
        print(f"{name}: {found['state']} ({found['seconds']:g} s)")
    if parsed.json:
        write_json(results, {"device": parsed.device, "rehearse": parsed.rehearse}, state, parsed.json)
    return 1 if any(found["state"].startswith("failed") for found in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
