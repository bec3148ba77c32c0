"""Calls of Serve from a loop: none of them outlives its caller."""

from __future__ import annotations

import asyncio
import threading

import pytest

from genevolve_ray.cluster.applications import in_thread


async def test_a_cancelled_caller_waits_for_its_call() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        go_on.wait()
        ended.set()

    caller = asyncio.create_task(in_thread(call))
    await asyncio.to_thread(begun.wait)
    caller.cancel()
    await asyncio.wait([caller], timeout=0)
    assert not caller.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()


async def test_a_call_returns_and_raises_as_it_does_by_itself() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 7, 0)
