"""`python -m benchmarks.async_learning`: what staleness costs the policy, on atlas with the real engine and learner on Ray.

Synchronous and asynchronous runs of the full method, the same requests, rollouts and steps, several seeds; held-out reward of
the last policy. Runs that are finished are read again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import say

MODES = ("sync", "async")
ROOT = Path(__file__).parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, and compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.async_learning", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/async-learning"), help="where the runs are kept")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--steps", type=int, default=20, metavar="N")
    parser.add_argument("--staleness", type=int, default=1, metavar="N")
    parser.add_argument("--requests", type=int, default=200, metavar="N", help="held-out requests")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="K=V", help="for both modes")
    parsed = parser.parse_args(arguments)
    for seed in range(1, parsed.seeds + 1):
        for mode in MODES:
            _evolve(parsed, mode, seed)
    print(json.dumps(compare(parsed.folder, parsed.seeds), indent=2))
    return 0


def _evolve(parsed: argparse.Namespace, mode: str, seed: int) -> None:
    run = _run(parsed.folder, mode, seed)
    if (run / "summary.json").is_file():
        return
    say(f"{mode}, seed {seed}")
    overrides = [f"seed={seed}", f"loop.steps={parsed.steps}", f"loop.mode={mode}", "loop.validate_every=0"]
    overrides += [f"heldout.requests={parsed.requests}", *parsed.settings]
    if mode == "async":
        overrides.append(f"loop.max_staleness={parsed.staleness}")
    command = [sys.executable, "-c", "from genevolve_ray.cli import main; main()", "evolve", "atlas", "--run", str(run)]
    for override in overrides:
        command += ["--set", override]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _run(folder: Path, mode: str, seed: int) -> Path:
    return (folder / f"{mode}-{seed}").absolute()


def compare(folder: Path, seeds: int) -> dict[str, Any]:
    """Return held-out rewards by seed, their paired difference with its interval, and how stale and fast the runs were."""
    import numpy as np

    from genevolve_ray.evolution.store.run import RunStore
    from genevolve_ray.records.intervals import nested_interval
    from genevolve_ray.records.trajectory import Outcome

    scores: dict[str, list[list[float]]] = {mode: [] for mode in MODES}
    rows: dict[str, list[list[dict[str, Any]]]] = {mode: [] for mode in MODES}
    for mode in MODES:
        for seed in range(1, seeds + 1):
            store = RunStore.read(str(_run(folder, mode, seed)))
            tested = {t.key.request_id: t for t in store.get_trajectories("heldout-final")}
            judged = (Outcome.SCORED, Outcome.POLICY_FAILURE)
            scores[mode].append([t.score if t.outcome in judged else math.nan for _, t in sorted(tested.items())])
            rows[mode].append(store.metrics())
    tables = {mode: np.array(values) for mode, values in scores.items()}
    return {
        "per_seed": {mode: np.nanmean(table, axis=1).round(4).tolist() for mode, table in tables.items()},
        "async_minus_sync": nested_interval(tables["async"] - tables["sync"], seed=0).model_dump(),
        **{
            name: {mode: float(np.mean([m[key] for run in runs for m in run])) for mode, runs in rows.items()}
            for name, key in (
                ("seconds_step", "seconds_step"),
                ("staleness_mean", "staleness_mean"),
                ("discarded_fraction", "discarded_fraction"),
            )
        },
        "parity_max": max(m["parity"] for runs in rows.values() for run in runs for m in run if "parity" in m),
    }


if __name__ == "__main__":
    sys.exit(main())
