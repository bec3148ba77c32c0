"""The queue before the rendering thread."""

from __future__ import annotations

import asyncio
import threading

import pytest

from genevolve_ray.renderers.batching import Batcher


class Noted:
    """Doubles numbers and notes the batches; `hold` stops it in the first."""

    def __init__(self, hold: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.started, self.go_on = threading.Event(), threading.Event()
        if not hold:
            self.go_on.set()

    def __call__(self, jobs: list[int]) -> list[int | BaseException]:
        self.batches.append(jobs)
        self.started.set()
        assert self.go_on.wait(60)
        if 13 in jobs:
            raise RuntimeError("unlucky")
        return [ValueError(f"no {job}") if job < 0 else job * 2 for job in jobs]


async def test_jobs_of_one_key_go_together_up_to_the_limit() -> None:
    run = Noted()
    batcher: Batcher[int, int] = Batcher(run, max_batch=3, wait_s=0.01)
    assert await asyncio.gather(*(batcher.submit("a", i) for i in range(7))) == [0, 2, 4, 6, 8, 10, 12]
    assert run.batches == [[0, 1, 2], [3, 4, 5], [6]]


async def test_other_keys_wait_their_turn_in_order() -> None:
    run = Noted()
    batcher: Batcher[int, int] = Batcher(run, max_batch=4)
    assert await asyncio.gather(*(batcher.submit(i % 2, i) for i in range(5))) == [0, 2, 4, 6, 8]
    assert run.batches == [[0, 2, 4], [1, 3]]


async def test_a_full_batch_does_not_wait() -> None:
    batcher: Batcher[int, int] = Batcher(Noted(), max_batch=2, wait_s=3600)
    async with asyncio.timeout(60):
        assert await asyncio.gather(batcher.submit("a", 1), batcher.submit("a", 2)) == [2, 4]


async def test_without_batches_nothing_waits() -> None:
    batcher: Batcher[int, int] = Batcher(Noted(), max_batch=1, wait_s=3600)
    async with asyncio.timeout(60):
        assert await batcher.submit("a", 1) == 2


async def test_a_failure_is_that_of_its_job_alone() -> None:
    batcher: Batcher[int, int] = Batcher(Noted(), max_batch=2, wait_s=3600)
    good, bad = await asyncio.gather(batcher.submit("a", 1), batcher.submit("a", -1), return_exceptions=True)
    assert good == 2
    assert isinstance(bad, ValueError)


async def test_what_the_thread_raises_reaches_every_caller_and_ends_nothing() -> None:
    batcher: Batcher[int, int] = Batcher(Noted(), max_batch=2, wait_s=0)
    failed = await asyncio.gather(batcher.submit("a", 13), batcher.submit("a", 1), return_exceptions=True)
    assert [str(error) for error in failed] == ["unlucky", "unlucky"]
    assert await batcher.submit("a", 4) == 8


async def test_a_job_whose_caller_has_gone_is_not_run() -> None:
    run = Noted(hold=True)
    batcher: Batcher[int, int] = Batcher(run)
    first, gone, last = (asyncio.create_task(batcher.submit("a", i)) for i in (1, 2, 3))
    assert await asyncio.to_thread(run.started.wait, 60)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    run.go_on.set()
    assert (await first, await last) == (2, 6)
    assert run.batches == [[1], [3]]


async def test_the_thread_is_set_up_once() -> None:
    names: list[str] = []
    batcher: Batcher[int, int] = Batcher(
        Noted(), name="painter", initializer=lambda: names.append(threading.current_thread().name)
    )
    await asyncio.gather(*(batcher.submit("a", i) for i in range(3)))
    assert names == ["painter_0"]
    batcher.close()


async def test_what_waits_when_the_batcher_closes_fails_and_nothing_more_is_taken() -> None:
    run = Noted(hold=True)
    batcher: Batcher[int, int] = Batcher(run)
    first, waiting = (asyncio.create_task(batcher.submit("a", i)) for i in (1, 2))
    assert await asyncio.to_thread(run.started.wait, 60)
    batcher.close()
    run.go_on.set()
    assert await first == 2
    with pytest.raises(RuntimeError, match="closed"):
        await waiting
    with pytest.raises(RuntimeError, match="closed"):
        await batcher.submit("a", 3)
    assert run.batches == [[1]]


async def test_a_job_that_waits_for_company_does_not_outlast_the_batcher() -> None:
    batcher: Batcher[int, int] = Batcher(Noted(), max_batch=2, wait_s=3600)
    waiting = asyncio.create_task(batcher.submit("a", 1))
    await asyncio.sleep(0)
    batcher.close()
    async with asyncio.timeout(60):
        with pytest.raises(RuntimeError, match="closed"):
            await waiting


def test_a_job_can_run_alone_without_an_event_loop() -> None:
    batcher: Batcher[int, int] = Batcher(Noted(), max_batch=4, wait_s=3600)
    assert batcher.alone(4) == 8
    assert isinstance(batcher.alone(-1), ValueError)
