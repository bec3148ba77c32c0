"""Every sample is somewhere: the admission rule and its invariant under any order of events."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from genevolve_ray.evolution.flow import Flow, FlowConfig, FlowError, FlowState


def flow(staleness: int = 1, batch: int = 2, size: int = 3, steps: int = 5, **state: object) -> Flow:
    config = FlowConfig(batch=batch, group_size=size, max_staleness=staleness, steps=steps)
    return Flow(config, FlowState.model_validate(state))


def test_without_staleness_one_batch_is_leased_at_a_time() -> None:
    one = flow(staleness=0)
    assert one.room(0) == 2
    leases = [one.lease() for _ in range(2)]
    assert one.room(0) == 0
    for number in leases:
        one.hold(number, 3)
        one.consume(number)
    assert (one.room(0), one.room(1)) == (0, 2)


def test_staleness_admits_that_many_batches_more() -> None:
    assert [flow(staleness=s).room(0) for s in range(4)] == [2, 4, 6, 8]


def test_nothing_is_leased_that_no_step_will_take() -> None:
    assert flow(staleness=9, steps=3).room(0) == 6


def test_a_discarded_group_makes_room_and_a_lost_sample_does_not() -> None:
    one = flow(staleness=0)
    one.lease()
    number = one.lease()
    one.drop(number)
    assert one.room(0) == 0
    one.discard(number)
    assert one.room(0) == 1
    assert one.counts() == {"leased": 6, "consumed": 0, "discarded": 3, "buffered": 0, "running": 3}


def test_a_group_that_lost_a_sample_on_the_way_is_a_fault() -> None:
    one = flow()
    with pytest.raises(FlowError, match="lease 0 has 3 samples, but its group accounts for 2"):
        one.hold(one.lease(), 2)


def test_open_leases_are_begun_again_first() -> None:
    one = flow(next_lease=4, open=[1, 3], consumed=6)
    assert [one.lease() for _ in range(3)] == [1, 3, 4]


def test_a_group_found_after_a_restart_closes_its_lease_only_once() -> None:
    one = flow(next_lease=2, open=[1], consumed=3)
    assert not one.found(0, 3)
    assert one.found(1, 2)
    assert not one.found(1, 2)
    assert one.counts() == {"leased": 6, "consumed": 3, "discarded": 1, "buffered": 2, "running": 0}


def test_groups_tell_of_leases_that_were_begun_after_the_last_commit() -> None:
    one = flow(next_lease=1, consumed=3)
    assert one.found(3, 3)
    assert (one.next_lease, one.idle) == (4, [1, 2])
    one.check()


@settings(max_examples=60, stateful_step_count=40, deadline=None)
class FlowMachine(RuleBasedStateMachine):
    """Any order of leases, late samples, judgements, discards, steps and restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.flow, self.version, self.batch = flow(staleness=2, steps=1000), 0, 2

    @precondition(lambda self: self.flow.room(self.version))
    @rule()
    def lease(self) -> None:
        self.flow.lease()

    @precondition(lambda self: self.flow.running)
    @rule(data=st.data())
    def judge(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.flow.running)))
        self.flow.hold(number, self.flow.running[number])

    @precondition(lambda self: any(n > 1 for n in self.flow.running.values()))
    @rule(data=st.data())
    def late(self, data: st.DataObject) -> None:
        self.flow.drop(data.draw(st.sampled_from([k for k, n in self.flow.running.items() if n > 1])))

    @precondition(lambda self: self.flow.running or self.flow.buffered)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        self.flow.discard(data.draw(st.sampled_from([*self.flow.running, *self.flow.buffered])))

    @precondition(lambda self: len(self.flow.buffered) >= self.batch)
    @rule()
    def step(self) -> None:
        for number in sorted(self.flow.buffered)[: self.batch]:
            self.flow.consume(number)
        self.version += 1

    @rule()
    def restart(self) -> None:
        """The groups that were judged are on disk, what ran is gone."""
        judged, before = dict(self.flow.buffered), self.flow.counts()
        self.flow = Flow(self.flow.config, FlowState.model_validate_json(self.flow.state().model_dump_json()))
        for number, samples in judged.items():
            assert self.flow.found(number, samples)
        after = self.flow.counts()
        assert (after["consumed"], after["buffered"]) == (before["consumed"], before["buffered"])

    @invariant()
    def samples_add_up(self) -> None:
        self.flow.check()

    @invariant()
    def admission_holds(self) -> None:
        under_way = self.flow.taken + len(self.flow.buffered) + len(self.flow.running)
        assert under_way <= (self.version + 3) * self.batch


TestFlow = FlowMachine.TestCase
