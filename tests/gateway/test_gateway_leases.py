"""Leases: whatever workers do, every sample is answered once and none is lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.gateway.leases import LeaseTable, SampleLease
from genevolve_ray.gateway.limits import Bucket, read_bounded
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.gateway.shares import Shares
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Provenance, SampleKey, Trajectory


def _task(sample: int) -> RolloutTask:
    request = Request(id="r", prompt="draw", eval_type=EvalType.QUALITY)
    key = SampleKey(step=1, request_id="r", sample=sample)
    return RolloutTask(request=request, key=key, seed=1, render_seed=1, sampling=SamplingParams())


def _answer(lease: SampleLease) -> Trajectory:
    return Trajectory(lease.sample.task.key, "", TokenLedger(), Provenance(profile="p", engine="e"))


def _lease_table(seconds: float = 60.0, per_owner: int = 100) -> LeaseTable:
    return LeaseTable(seconds=seconds, limit=3600, per_owner=per_owner)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["pose", "lease", "accept", "refuse", "return", "expire", "cancel", "shut out"]),
        st.integers(0, 5),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(OPERATIONS)
def test_nothing_is_lost_and_nothing_answered_twice(operations: list[tuple[str, int]]) -> None:
    asyncio.run(_play(operations))


async def _play(operations: list[tuple[str, int]]) -> None:
    lease_table, posed, leases = _lease_table(), [], []
    answered: list[SampleKey] = []
    for number, (what, i) in enumerate(operations):
        live = leases[i % len(leases)] if leases else None
        if what == "pose":
            posed.append(asyncio.create_task(lease_table.answer(_task(number))))
        elif what == "lease":
            leases += await lease_table.grant(f"w{i % 2}", 1 + i % 2, 0.0, lambda: 0)
        elif what == "cancel" and posed:
            posed[i % len(posed)].cancel()
        elif what == "shut out":
            await lease_table.drop_owner(f"w{i % 2}")
        elif live is not None:
            await _try(lease_table, live, what, answered)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        counts = lease_table.counts()
        assert counts["posed"] == sum(counts[name] for name in ("answered", "given_up", "waiting", "leased"))
    assert len(answered) == len(set(answered)) == lease_table.counts()["answered"]
    while left := await lease_table.grant("last", 50, 0.0, lambda: 0):
        for lease in left:
            lease_table.accept(lease, _answer(lease))
    for lease in list(lease_table._open.values()):
        lease_table.accept(lease, _answer(lease))
    done = await asyncio.gather(*posed, return_exceptions=True)
    assert all(isinstance(found, Trajectory | asyncio.CancelledError) for found in done)
    await lease_table.close()


async def _try(lease_table: LeaseTable, lease: SampleLease, what: str, answered: list[SampleKey]) -> None:
    try:
        found = lease_table.find(lease.id, lease.owner)
    except GatewayRefusal as refusal:
        assert refusal.reason in (RefusalReason.REPLAYED, RefusalReason.WITHDRAWN, RefusalReason.LEASE_EXPIRED)
        return
    if what == "accept":
        lease_table.check(found)
        lease_table.accept(found, _answer(found))
        answered.append(found.sample.task.key)
    elif what == "refuse":
        lease_table.check(found)
        await lease_table.refuse(found)
    elif what == "return":
        await lease_table.give_back(found)
    else:
        found.expires = 0.0


async def test_a_lease_that_is_renewed_lives_on_but_not_forever() -> None:
    lease_table = LeaseTable(seconds=10, limit=15, per_owner=1)
    asking = asyncio.create_task(lease_table.answer(_task(0)))
    (lease,) = await lease_table.grant("w", 1, 1.0, lambda: 0)
    granted = lease.granted
    lease.granted -= 8  # eight seconds ago
    assert lease_table.renew(lease) <= 10
    assert lease.expires <= max(granted + 10, lease.granted + 15)
    asking.cancel()
    await lease_table.close()


async def test_an_owner_holds_so_many_leases_and_no_more() -> None:
    lease_table = _lease_table(per_owner=2)
    asking = [asyncio.create_task(lease_table.answer(_task(i))) for i in range(3)]
    await asyncio.sleep(0)
    assert len(await lease_table.grant("w", 5, 0.0, lambda: 0)) == 2
    with pytest.raises(GatewayRefusal) as refused:
        await lease_table.grant("w", 1, 0.0, lambda: 0)
    assert refused.value.reason is RefusalReason.RATE_LIMITED
    for task in asking:
        task.cancel()
    await lease_table.close()


async def test_a_sample_comes_back_before_those_that_wait() -> None:
    lease_table = _lease_table()
    asking = [asyncio.create_task(lease_table.answer(_task(i))) for i in range(3)]
    (first,) = await lease_table.grant("w", 1, 1.0, lambda: 0)
    await lease_table.give_back(first)
    (again,) = await lease_table.grant("w", 1, 1.0, lambda: 0)
    assert again.sample is first.sample and again.id != first.id
    for task in asking:
        task.cancel()
    await lease_table.close()


async def test_a_bucket_lets_a_burst_through_and_then_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock[0])
    bucket = Bucket(rate=2.0, burst=3)
    for _ in range(3):
        await bucket.take()
    clock[0] += 0.4
    with pytest.raises(GatewayRefusal) as refused:
        await bucket.take()
    assert refused.value.reason is RefusalReason.RATE_LIMITED
    clock[0] += 0.1
    await bucket.take()
    clock[0] += 60
    for _ in range(3):
        await bucket.take()
    with pytest.raises(GatewayRefusal):
        await bucket.take()


async def test_a_body_that_never_comes_is_given_up() -> None:
    async def nothing():  # type: ignore[no-untyped-def]
        await asyncio.Event().wait()
        yield b""

    with pytest.raises(GatewayRefusal) as refused:
        await read_bounded(nothing(), None, 100, seconds=0.01)
    assert refused.value.reason is RefusalReason.TOO_SLOW


async def test_of_a_body_that_never_ends_no_more_is_read_than_twice_the_limit() -> None:
    read = 0

    async def endless():  # type: ignore[no-untyped-def]
        nonlocal read
        while True:
            read += 10
            yield bytes(10)

    with pytest.raises(GatewayRefusal) as refused:
        await read_bounded(endless(), None, 100, seconds=10)
    assert (refused.value.reason, read) == (RefusalReason.OVERSIZED, 210)
    with pytest.raises(GatewayRefusal):
        await read_bounded(endless(), "201", 100, seconds=10)
    assert read == 210


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the event loop, which a test moves; sleeps end at once."""
    now, sleep = [1000.0], asyncio.sleep
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0])
    monkeypatch.setattr("genevolve_ray.gateway.leases.asyncio.sleep", lambda seconds: sleep(0))
    return now


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def _pose(lease_table: LeaseTable, count: int, start: int = 0) -> list[asyncio.Task[Trajectory]]:
    posed = [asyncio.create_task(lease_table.answer(_task(start + i))) for i in range(count)]
    await _settle()
    return posed


async def test_a_token_that_only_renews_gets_few_samples_and_does_not_hold_them_up(clock: list[float]) -> None:
    table = LeaseTable(seconds=60, limit=3600, per_owner=256, first=8, patience=60)
    posed = await _pose(table, 48)
    hoard = await table.grant("hoarder", 64, 0.0, lambda: 0)
    assert len(hoard) == 8, "before its first answer an owner holds few"
    while leases := await table.grant("anna", 64, 0.0, lambda: 0):
        clock[0] += 5
        for lease in leases:
            table.accept(lease, _answer(lease))
    assert table.counts()["answered"] == 40
    asking = asyncio.create_task(table.grant("anna", 8, 1e9, lambda: 0))
    for _ in range(20):  # the hoarder renews all the time
        clock[0] += 1
        for lease in hoard:
            table.renew(lease)
        await _settle()
    assert asking.done(), "episodes take 5 s: after 15 s without progress another owner plays the sample"
    while table.counts()["answered"] < 48:
        for lease in await asking:
            table.accept(lease, _answer(lease))
        asking = asyncio.create_task(table.grant("anna", 8, 1e9, lambda: 0))
        await _settle()
    assert all(task.done() for task in posed)
    with pytest.raises(GatewayRefusal) as refused:
        table.find(hoard[0].id, "hoarder")
    assert refused.value.reason is RefusalReason.WITHDRAWN
    more = await _pose(table, 8, 48)
    await asking
    assert len(await table.grant("hoarder", 64, 0.0, lambda: 0)) <= 1, "its share has shrunk"
    for task in more:
        task.cancel()
    await table.close()


async def test_the_first_answer_to_an_overdue_sample_counts(clock: list[float]) -> None:
    table = LeaseTable(seconds=60, limit=3600, per_owner=256, patience=30)
    (posed,) = await _pose(table, 1)
    (slow,) = await table.grant("slow", 1, 0.0, lambda: 0)
    asking = asyncio.create_task(table.grant("quick", 1, 1e9, lambda: 0))
    for _ in range(4):
        clock[0] += 10
        table.renew(slow)
        await _settle()
    (quick,) = await asking
    assert quick.sample is slow.sample and table.counts()["leased"] == 1
    table.accept(table.find(slow.id, "slow"), _answer(slow))  # it was alive after all
    assert (await posed) is not None
    with pytest.raises(GatewayRefusal):
        table.accept(quick, _answer(quick))
    await table.close()


async def test_an_episode_that_advances_is_not_overdue(clock: list[float]) -> None:
    table = LeaseTable(seconds=60, limit=3600, per_owner=256, patience=30)
    (posed,) = await _pose(table, 1)
    (lease,) = await table.grant("anna", 1, 0.0, lambda: 0)
    asking = asyncio.create_task(table.grant("ben", 1, 1e9, lambda: 0))
    for _ in range(10):
        clock[0] += 20
        table.progressed(lease)  # a tool call
        table.renew(lease)
        await _settle()
    assert not asking.done()
    asking.cancel()
    posed.cancel()
    await table.close()


async def test_samples_leased_to_workers_that_stall_are_played_inside(clock: list[float]) -> None:
    table = LeaseTable(seconds=60, limit=3600, per_owner=256, patience=30)
    posed = asyncio.create_task(table.answer(_task(0), patience=30))
    await _settle()
    (lease,) = await table.grant("hoarder", 1, 0.0, lambda: 0)
    for _ in range(8):
        clock[0] += 10
        if lease.id in table._open:
            table.renew(lease)
        await _settle()
    with pytest.raises(TimeoutError, match="no worker answered"):
        await posed
    assert table.counts()["leased"] == 0
    await table.close()


async def test_a_sample_goes_to_the_owner_that_holds_the_fewest(clock: list[float]) -> None:
    table = LeaseTable(seconds=60, limit=3600, per_owner=256, patience=60)
    greedy = [asyncio.create_task(table.grant("greedy", 4, 1e9, lambda: 0)) for _ in range(10)]
    await _settle()
    modest = asyncio.create_task(table.grant("modest", 1, 1e9, lambda: 0))
    await _settle()
    posed = await _pose(table, 2)
    assert modest.done() and len(await modest) == 1
    assert sum(task.done() for task in greedy) == 1
    for task in (*greedy, *posed):
        task.cancel()
    await table.close()


async def test_a_canceled_request_leaves_its_samples_to_others() -> None:
    table = _lease_table()
    asking = asyncio.create_task(table.grant("gone", 1, 30.0, lambda: 0))
    await _settle()
    posed = asyncio.create_task(table.answer(_task(0)))
    while not table.counts()["leased"]:
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert len(await table.grant("anna", 1, 0.0, lambda: 0)) == 1
    posed.cancel()
    await table.close()


def test_an_owner_that_fails_again_and_again_pauses_for_longer_each_time() -> None:
    shares = Shares(first=8, most=256, pause=60)
    for _ in range(8):
        shares.failed("spot", 0.0, 100.0)  # one machine died with all it held
    assert shares.allowed("spot", 100.0) == 1
    shares.answered("spot")
    assert shares.allowed("spot", 101.0) == 2
    for now, pause in ((200.0, 0.0), (300.0, 60.0), (400.0, 120.0), (600.0, 240.0)):
        shares.failed("spot", now - 1, now)
        assert shares.resumes("spot") <= now if not pause else shares.resumes("spot") == now + pause
    assert shares.allowed("spot", 700.0) == 0 and shares.allowed("spot", 900.0) == 1
    shares.answered("spot")
    shares.failed("spot", 901.0, 1000.0)
    assert shares.allowed("spot", 1000.0) == 1, "an answer begins the count again"
    for _ in range(500):
        shares.answered("anna")
    assert shares.allowed("anna", 0.0) == 256
