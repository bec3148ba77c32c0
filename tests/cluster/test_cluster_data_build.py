"""Stages of a data build on Ray Data."""

from __future__ import annotations

from pathlib import Path

import pytest

from genevolve_ray.cluster.config import ClusterConfig
from genevolve_ray.cluster.data_build import run_on_ray_data
from genevolve_ray.cluster.errors import PlacementError
from genevolve_ray.cluster.session import ray_session, set_defaults
from genevolve_ray.data.build.journal import StageJournal
from genevolve_ray.data.build.running import BuildCounts, journal_folder
from genevolve_ray.data.build.stage import CapConfig
from genevolve_ray.errors import UserFault
from tests.build_stages import NumberRow, calls_of, number_plans, number_rows

ROWS = 300


def results(folder: Path) -> list[NumberRow]:
    plan = number_plans(folder / "calls")[-1]
    with StageJournal(journal_folder(folder, plan), plan.name, plan.kind) as journal:
        return list(journal.rows())


def test_rows_stream_through_the_stages_and_a_second_run_makes_no_call(tmp_path: Path) -> None:
    outage = frozenset({5})
    with ray_session(ClusterConfig(), namespace="data"):
        first = run_on_ray_data(number_rows(ROWS), number_plans(tmp_path / "calls", outages=outage), tmp_path)
        capped = number_plans(tmp_path / "calls", cap=CapConfig(calls=ROWS))
        held = run_on_ray_data(number_rows(ROWS), capped, tmp_path)
        second = run_on_ray_data(number_rows(ROWS), number_plans(tmp_path / "calls"), tmp_path)

    assert (first.ended, first.outages) == (ROWS, 1)
    assert held.held == {"doubled": 1}, "the failed call counts against the cap"
    assert (second.ended, second.outages) == (ROWS, 0)
    assert [row.tripled for row in results(tmp_path)] == [3 * n for n in range(ROWS)]
    assert len(calls_of(tmp_path / "calls")) == 2 * ROWS + 1


def test_a_fault_in_a_worker_arrives_as_what_it_is(tmp_path: Path) -> None:
    with ray_session(ClusterConfig(), namespace="data"), pytest.raises(UserFault, match="number 3 cannot be used"):
        run_on_ray_data(number_rows(10), number_plans(tmp_path / "calls", fault=3), tmp_path)


def test_a_cap_holds_over_all_workers(tmp_path: Path) -> None:
    plans = number_plans(tmp_path / "calls", cost=1.0, cap=CapConfig(money=50.0), workers=(2, 2), cpus=0.5)
    with ray_session(ClusterConfig(), namespace="data"):
        progress = run_on_ray_data(number_rows(ROWS), plans, tmp_path, block_rows=16)

    assert progress.ended == 50
    assert progress.held == {"doubled": ROWS - 50}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("cap", [None, CapConfig(money=1e9, calls=1_000_000)], ids=["free", "capped"])
def test_a_node_that_dies_in_the_middle_loses_nothing(tmp_path: Path, cap: CapConfig | None) -> None:
    set_defaults()
    from ray.cluster_utils import Cluster

    system = {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 3,
    }
    node = {"num_cpus": 3, "object_store_memory": 100 << 20}
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "include_dashboard": False, "_system_config": system}
    )
    rows = 2000
    try:
        others = [cluster.add_node(**node), cluster.add_node(**node)]
        plans = number_plans(tmp_path / "calls", workers=(2, 2), cap=cap, cost=0.0 if cap is None else 1.0)

        def watch(progress: BuildCounts) -> None:
            if len(others) == 2 and progress.ended > rows // 4:
                cluster.remove_node(others.pop(), allow_graceful=False)

        with ray_session(ClusterConfig(address=cluster.address), namespace="data"):
            progress = run_on_ray_data(number_rows(rows), plans, tmp_path, watch)
    finally:
        cluster.shutdown()

    assert len(others) == 1
    assert progress.ended == rows
    assert [row.tripled for row in results(tmp_path)] == [3 * n for n in range(rows)]


def test_workers_that_do_not_fit_are_named(tmp_path: Path) -> None:
    plans = number_plans(tmp_path / "calls", workers=(500, 500))
    with (
        ray_session(ClusterConfig(), namespace="data"),
        pytest.raises(PlacementError, match=r"data\.stages\.doubled, data\.stages\.tripled need 1000 CPU at once"),
    ):
        run_on_ray_data(number_rows(1), plans, tmp_path)
