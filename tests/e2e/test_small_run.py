"""The road of docs/small.md on the real parts: setup with the weights that ship, then one step of GRPO + VED on vLLM and Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve_ray.commands.evolve import evolve_run
from genevolve_ray.commands.small import setup_run
from genevolve_ray.config import load_config
from genevolve_ray.doctor.machine import exit_status
from genevolve_ray.doctor.run import examine
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.trajectory import Outcome
from genevolve_ray.small.parts import part_states
from genevolve_ray.small.stages import SetupFault, read_manifest
from genevolve_ray.small.weights import prebuilt

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]

TINY = (
    "loop.steps=1",
    "loop.requests_per_step=1",
    "loop.group_size=2",
    "loop.validation_requests=1",
    "heldout.requests=2",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a whole setup; skip where parts or weights are missing."""
    if faults := [state.fault for state in part_states() if state.fault]:
        pytest.skip(faults[0])
    try:
        for name in ("renderer", "image_text", "cold_start"):
            prebuilt(name)
    except SetupFault as fault:
        pytest.skip(str(fault))
    folder = tmp_path_factory.mktemp("small")
    setup_run(folder, [], from_nothing=False, check=False)
    return folder


def test_a_second_setup_makes_nothing(made: Path) -> None:
    before = read_manifest(made)
    setup_run(made, [], from_nothing=None, check=True)
    assert read_manifest(made) == before


def test_a_run_starts_from_the_setup_and_ends_with_its_comparison(made: Path, tmp_path: Path) -> None:
    config = load_config(str(made / "small.yaml"), TINY)
    assert exit_status(examine(config, tmp_path / "run")) == 0
    summary = evolve_run(config, tmp_path / "run", in_process=False)
    assert summary["steps"] == 1 and summary["infra_failures_final"] == 0
    assert summary["parity_max"] < config.loop.parity_limit
    [group] = RunStore.read(str(tmp_path / "run")).groups(1)
    outcomes = {trajectory.outcome for trajectory in group.trajectories}
    assert outcomes <= {Outcome.SCORED, Outcome.POLICY_FAILURE}
    assert Path(summary["report"]).is_file()
