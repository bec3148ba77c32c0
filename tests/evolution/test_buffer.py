"""The buffer of judged groups: which lag too far, and in which order a step takes them."""

from __future__ import annotations

import pytest
from loop_fakes import make_trajectory

from genevolve_ray.evolution.buffer import GroupBuffer
from genevolve_ray.records.trajectory import Group, Outcome, SampleKey


def group(name: str, version: int, outcome: Outcome = Outcome.SCORED) -> Group:
    keys = [SampleKey(step=1, request_id=name, sample=sample) for sample in (0, 1)]
    return Group(name, 1, [make_trajectory(key, outcome, 0.5, version) for key in keys])


@pytest.fixture
def buffer() -> GroupBuffer:
    """Leases 3, 1, 2 and 4; 2 is of the request of 1, and the version that learns next is 5."""
    found = GroupBuffer(5)
    for number, name, version in ((3, "c", 5), (1, "a", 4), (2, "a", 3), (4, "d", 5)):
        found.put(number, group(name, version))
    return found


def test_the_age_of_a_group_grows_with_the_version_that_learns(buffer: GroupBuffer) -> None:
    assert [buffer.age(n) for n in (1, 2, 3)] == [1, 2, 0]
    assert (buffer.stale(1), buffer.stale(2)) == ([2], [])
    buffer.next = 6
    assert (buffer.stale(1), buffer.lag(None)) == ([1, 2], 0)


def test_a_step_takes_one_group_of_a_request_and_the_oldest_first(buffer: GroupBuffer) -> None:
    assert buffer.in_turn(set(), all_of_them=False) == [2, 3, 4]


def test_those_set_aside_come_last_once_nothing_else_can_come(buffer: GroupBuffer) -> None:
    assert buffer.in_turn({2, 3}, all_of_them=False) == [1, 4]
    assert buffer.in_turn({2, 3}, all_of_them=True) == [1, 4, 3]


def test_a_group_that_is_taken_is_gone(buffer: GroupBuffer) -> None:
    assert buffer.pop(3).request_id == "c" and list(buffer) == [1, 2, 4] and len(buffer) == 3
    assert {n: g.request_id for n, g in buffer.of([4, 1]).items()} == {4: "d", 1: "a"}
    with pytest.raises(KeyError):
        buffer.pop(3)


def test_a_group_that_lacks_a_score_has_failed_and_one_without_tokens_is_not_stale(buffer: GroupBuffer) -> None:
    buffer.put(7, group("g", 0, Outcome.INFRA_FAILURE))
    assert buffer.failed() == [7] and 7 not in buffer.stale(0) and buffer[7].request_id == "g"
