"""What the audit of a data build is worth: one training on audited rows, the same on rows that were not audited.

    python -m benchmarks.audit_effect --out runs/audit_effect

Every seed builds a data set of the embedded world, once with the thresholds of the audit and once without. It draws the
same number of rows from both and trains the same base model on each. Both policies answer the same held-out requests. A
command whose result is there is not run again. On two quiet cores a seed takes about half an hour.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from genevolve_ray.data.build.audit import SCALES
from genevolve_ray.data.build.grading import HIGHEST
from genevolve_ray.records.intervals import nested_interval

AUDITED, UNAUDITED = "audited", "unaudited"
KINDS = {AUDITED: (), UNAUDITED: ("--set", "data.audit_thresholds.mean=1")}
"""The data sets with their settings. A grade is at least 1, so the second keeps every trajectory."""
TRAINING = (
    *("dtype=float32", "profile=atlas", "optimizer=muon", "lr=3e-3", "final_lr_fraction=0.02", "global_batch=12"),
    *("epochs=1000", "heldout_fraction=0.02", "token_budget=4096"),
)
SAMPLING = {"sampled": "rewards", "greedy": "rewards_greedy"}
_INTERVAL_SEED = 1


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, print the differences and write them; returns 1 when a command failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit_effect", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of everything")
    parser.add_argument("--seeds", type=int, nargs="+", default=[23, 24, 25], help="seeds of builds and trainings")
    parser.add_argument("--recipes", type=int, default=12000, help="recipes of a build")
    parser.add_argument("--rows", type=int, default=3200, help="rows of a training")
    parser.add_argument("--steps", type=int, default=500, help="steps of a training, and of the base model")
    parser.add_argument("--requests", type=int, default=200, help="held-out requests of a test world")
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 3], help="seeds of the test worlds")
    parser.add_argument("--engine", default="vllm", help="vllm or transformers")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    options = parser.parse_args(arguments)
    try:
        for seed in options.seeds:
            run_seed(options, seed)
    except subprocess.CalledProcessError as error:
        print(f"error: exit code {error.returncode} of {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    made = report(options)
    (options.out / "audit_effect.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(made, indent=2))
    return 0


def run_seed(options: argparse.Namespace, seed: int) -> None:
    """Build both data sets of a seed, train on each, and score both policies."""
    base, place = options.out / "base", options.out / f"seed-{seed}"
    steps = ("--steps", options.steps, "--threads", options.threads)
    _command(base / "provenance.json", "sft", "atlas-base", "--out", base, *steps)
    for kind, settings in KINDS.items():
        rows = place / kind / "sft/train.jsonl"
        if not rows.is_file():
            build = place / "build"
            size = ("--recipes", options.recipes, "--set", f"seed={seed}")
            # Both are built in one folder: the trajectories and their grades are made once.
            _command(None, "data", "build", "atlas", *size, *settings, "--in-process", "--out", build)
            shutil.move(build / "dataset", place / kind)
        policy = place / f"policy-{kind}"
        sets = [part for key in (*TRAINING, f"max_rows={options.rows}") for part in ("--set", key)]
        training = ("sft", rows, "--model", base, "--out", policy, "--seed", seed, *steps, *sets)
        _command(policy / "sft.json", *training)
        for world in options.worlds:
            scores = _scores(place, kind, world)
            asked = ("--requests", options.requests, "--world-seed", world, "--engine", options.engine)
            _command(scores, "bench", "atlas", "--policy", policy, *asked, "--json", scores)


def _command(result: Path | None, *arguments: Any) -> None:
    """Run a command, unless its result is there."""
    if result is None or not result.is_file():
        subprocess.run([sys.executable, "-m", "genevolve_ray", *map(str, arguments)], check=True)


def _scores(place: Path, kind: str, world: int) -> Path:
    return place / f"{kind}-world-{world}.json"


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Return the rewards of both kinds, and their differences with intervals that resample seeds and requests."""
    made: dict[str, Any] = {"seeds": options.seeds, "rows": options.rows, "steps": options.steps}
    for sampling, key in SAMPLING.items():
        rewards = {kind: np.array([_rewards(options, seed, kind, key) for seed in options.seeds]) for kind in KINDS}
        gains_S_M = rewards[AUDITED] - rewards[UNAUDITED]
        means = {kind: np.nanmean(values, axis=1).round(4).tolist() for kind, values in rewards.items()}
        alone = [nested_interval(gains_S_M[[i]], seed=_INTERVAL_SEED).model_dump() for i in range(len(gains_S_M))]
        pooled = nested_interval(gains_S_M, seed=_INTERVAL_SEED).model_dump()
        made[sampling] = means | {"difference_of_seeds": alone, "difference": pooled}
    for kind in KINDS:
        made[f"faults_{kind}"] = [_faults(options.out / f"seed-{seed}", kind) for seed in options.seeds]
    return made


def _rewards(options: argparse.Namespace, seed: int, kind: str, key: str) -> list[float]:
    """Return the rewards of one policy on the requests of all worlds, NaN for a failed service."""
    found = []
    for world in options.worlds:
        file = _scores(options.out / f"seed-{seed}", kind, world)
        rewards = json.loads(file.read_text(encoding="utf-8"))[key]
        found += [float("nan") if rewards[name] is None else rewards[name] for name in sorted(rewards)]
    return found


def _faults(place: Path, kind: str) -> dict[str, float]:
    """Return the share of the rows to train on that the auditor grades below the best, by scale and in any."""
    grades = _grades(place / "build")
    with (place / kind / "sft/train.jsonl").open(encoding="utf-8") as lines:
        rows = [grades[json.loads(line)["id"]] for line in lines]
    shares = {scale: fmean(row[scale] < HIGHEST for row in rows) for scale in SCALES}
    shares["any"] = fmean(min(row.values()) < HIGHEST for row in rows)
    return {name: round(share, 4) for name, share in shares.items()}


def _grades(build: Path) -> dict[str, Mapping[str, int]]:
    """Return the grades of all trajectories of a build, which it keeps for rejected rows too."""
    found: dict[str, Mapping[str, int]] = {}
    for file in build.glob("stages/audit-*/*.jsonl"):
        with file.open(encoding="utf-8") as lines:
            rows = [json.loads(line)["row"] for line in lines]
        found.update({row["id"]: json.loads(row["audit"]) for row in rows if row["rejected"] is None})
    return found


if __name__ == "__main__":
    sys.exit(main())
