"""The training requests of a run are found again by their ids, wherever its loop leased them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from loop_fakes import FakeRequests, make_config
from store_helpers import take_step

from genevolve_ray.evolution.loop_config import LoopConfig
from genevolve_ray.evolution.sources import posed_requests, trained_ids
from genevolve_ray.evolution.store.run import RunStore


def loop(**changes: Any) -> LoopConfig:
    return LoopConfig.model_validate({"steps": 2, "requests_per_step": 1, **changes})


@pytest.mark.parametrize(
    ("changes", "furthest"),
    [({}, 11), ({"dynamic_sampling": {"rounds": 2}}, 35), ({"curriculum": {"pool": 200}}, 199)],
    ids=["in order", "rounds", "pool"],
)
def test_requests_are_found_as_far_as_the_loop_leases(changes: dict[str, Any], furthest: int) -> None:
    names = [FakeRequests().train(index).id for index in (furthest, 0, furthest + 1)]
    found = posed_requests(FakeRequests(), loop(**changes), names[:2], steps=2)
    assert list(found) == names[:2], "in the order in which they are asked for"
    assert list(posed_requests(FakeRequests(), loop(**changes), [names[2], names[1]], steps=2)) == [names[1]]


def test_the_learner_saw_each_request_of_the_stored_groups_once(tmp_path: Path) -> None:
    with RunStore.open(str(tmp_path / "run"), make_config()) as store:
        assert trained_ids(store, 2) == []
        first = [group.request_id for step in (1, 2) for group in take_step(store, step)][:2]
        assert trained_ids(store, 1) == trained_ids(store, 2) == first
