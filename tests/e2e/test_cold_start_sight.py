"""The cold start with sight from nothing: within an hour, it looks, and it is as good as the one that ships."""

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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

SHIPPED = Path(str(resources.files("genevolve_ray.atlas") / "cold_start_sight"))
SECONDS = 3600.0
REQUESTS = 200
STANDARD_ERROR = (1 / 3 * 2 / 3 / REQUESTS) ** 0.5
"""Of the share of right pictures, for a policy that chooses among three at random."""


def genevolve(*arguments: str) -> None:
    """Run a command with all cores (`make test-slow` holds the tests themselves to one thread)."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", "from genevolve_ray.cli import main; main()", *arguments]
    subprocess.run(command, env=environment, check=True, timeout=2 * SECONDS)


def measure(policy: str, folder: Path, images: str = "shown") -> dict[str, Any]:
    out = folder / f"{Path(policy).name}-{images}.json"
    world = ("--world-seed", "3", "--requests", str(REQUESTS), "--images", images)
    genevolve("bench", "atlas-sight", "--policy", policy, *world, "--json", str(out))
    result: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cold-start-sight")


@pytest.fixture(scope="module")
def rebuilt(folder: Path) -> tuple[str, float]:
    """A cold start trained by the shipped recipe, and the seconds that it took."""
    started = time.perf_counter()
    genevolve("sft", "atlas-sight", "--out", str(folder / "rebuilt"))
    return str(folder / "rebuilt"), time.perf_counter() - started


@pytest.fixture(scope="module")
def seen(rebuilt: tuple[str, float], folder: Path) -> dict[str, Any]:
    return measure(rebuilt[0], folder)


def test_it_is_rebuilt_by_the_shipped_recipe_within_an_hour(rebuilt: tuple[str, float]) -> None:
    policy, seconds = rebuilt
    read = [json.loads((Path(p) / "provenance.json").read_text(encoding="utf-8")) for p in (policy, SHIPPED)]
    assert read[0]["recipe"] == read[1]["recipe"]
    assert seconds < SECONDS


def test_it_chooses_pictures_above_chance_and_writes_valid_programs(seen: dict[str, Any]) -> None:
    assert seen["valid_fraction"] >= 0.9
    assert seen["right_reference_interval"][0] > seen["chance"]


@pytest.mark.parametrize("images", ["blank", "shuffled"])
def test_without_the_right_pixels_it_is_at_chance(rebuilt: tuple[str, float], folder: Path, images: str) -> None:
    blind = measure(rebuilt[0], folder, images)
    assert blind["right_reference_fraction"] == pytest.approx(blind["chance"], abs=3 * STANDARD_ERROR)


def test_it_is_as_good_as_the_shipped_one(seen: dict[str, Any], folder: Path) -> None:
    """Threads and processors round differently, so two trainings differ."""
    shipped = measure("cold-start", folder)
    assert seen["reward_mean"] == pytest.approx(shipped["reward_mean"], abs=0.1)
