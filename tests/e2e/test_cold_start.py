"""The cold start from nothing: within half an hour, as good as the one that ships, and with something left to learn.

A cold start from the rows of a data build is as good, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SHIPPED = Path(str(resources.files("genevolve_ray.atlas") / "cold_start"))
ROWS_TRAINING = (
    *("dtype=float32", "profile=atlas", "optimizer=muon", "lr=3e-3", "final_lr_fraction=0.02", "global_batch=12"),
    *("epochs=1000", "heldout_fraction=0.02", "token_budget=4096"),
)
"""The settings of docs/data_build.md."""
SECONDS = 1800.0
REQUESTS = 200


def genevolve(*arguments: str) -> None:
    """Run a command with all cores (`make test-slow` holds the tests themselves to one thread)."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", "from genevolve_ray.cli import main; main()", *arguments]
    subprocess.run(command, env=environment, check=True, timeout=2 * SECONDS)


def measure(policy: Path, folder: Path, experience: str = "none") -> dict[str, Any]:
    out = folder / f"{policy.name}-{experience}.json"
    world = ("--world-seed", "1", "--requests", str(REQUESTS), "--experience", experience)
    genevolve("bench", "atlas", "--policy", str(policy), *world, "--json", str(out))
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cold-start")


@pytest.fixture(scope="module")
def rebuilt(folder: Path) -> tuple[Path, float]:
    """A cold start trained by the shipped recipe, and the seconds that it took."""
    started = time.perf_counter()
    genevolve("sft", "atlas", "--out", str(folder / "rebuilt"))
    return folder / "rebuilt", time.perf_counter() - started


@pytest.fixture(scope="module")
def alone(rebuilt: tuple[Path, float], folder: Path) -> dict[str, Any]:
    """What the rebuilt policy earns with no experience in its context."""
    return measure(rebuilt[0], folder)


def test_it_is_rebuilt_by_the_shipped_recipe_within_half_an_hour(rebuilt: tuple[Path, float]) -> None:
    policy, seconds = rebuilt
    recipes = [json.loads((p / "provenance.json").read_text(encoding="utf-8"))["recipe"] for p in (policy, SHIPPED)]
    assert recipes[0] == recipes[1]
    assert seconds < SECONDS


def test_it_writes_valid_programs_and_has_something_to_learn(alone: dict[str, Any]) -> None:
    assert alone["valid_fraction"] >= 0.95
    assert 0.35 <= alone["reward_mean"] <= 0.70


def test_it_is_as_good_as_the_shipped_one(alone: dict[str, Any], folder: Path) -> None:
    """Threads and processors round differently, so two trainings differ; the standard error of a mean here is 0.02."""
    assert alone["reward_mean"] == pytest.approx(measure(SHIPPED, folder)["reward_mean"], abs=0.06)


def test_it_reads_experience(alone: dict[str, Any], rebuilt: tuple[Path, float], folder: Path) -> None:
    ideal, misled = (measure(rebuilt[0], folder, kind)["reward_mean"] for kind in ("ideal", "misleading"))
    assert ideal >= alone["reward_mean"] + 0.05
    assert misled <= ideal - 0.08


@pytest.fixture(scope="module")
def from_rows(folder: Path) -> Path:
    """A policy from the rows of a data build alone, which starts from the base model."""
    build, base, policy = folder / "build", folder / "base", folder / "from-rows"
    genevolve("data", "build", "atlas", "--recipes", "12000", "--set", "seed=23", "--in-process", "--out", str(build))
    genevolve("sft", "atlas-base", "--out", str(base))
    settings = [part for setting in ROWS_TRAINING for part in ("--set", setting)]
    rows = str(build / "dataset/sft/train.jsonl")
    genevolve("sft", rows, "--model", str(base), "--out", str(policy), "--steps", "500", *settings)
    return policy


def test_a_policy_from_built_rows_is_as_good_as_the_shipped_one(from_rows: Path, folder: Path) -> None:
    made, shipped = measure(from_rows, folder), measure(SHIPPED, folder)
    assert made["valid_fraction"] >= 0.9
    assert made["reward_mean"] >= shipped["reward_mean"] - 0.03
