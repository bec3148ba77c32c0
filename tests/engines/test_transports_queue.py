"""Calls from another process: carried out one by one, and neither side is left waiting when the other ends."""

from __future__ import annotations

import asyncio

import pytest

from genevolve_ray.engines.transports.queue import TransferCall, TransferInterrupted, TransferQueue


async def test_a_call_returns_when_the_engine_has_carried_it_out() -> None:
    transfer_queue = TransferQueue()
    calls = transfer_queue.calls()
    first = asyncio.create_task(transfer_queue.deliver(TransferCall.START))
    assert await anext(calls) == (TransferCall.START, {})
    assert not first.done()
    second = asyncio.create_task(transfer_queue.deliver(TransferCall.PART, {"names": ["a"]}))
    assert await anext(calls) == (TransferCall.PART, {"names": ["a"]})
    assert first.done()
    assert not second.done()


async def test_the_last_call_ends_the_calls() -> None:
    transfer_queue = TransferQueue()

    async def engine() -> list[TransferCall]:
        return [call async for call, _ in transfer_queue.calls()]

    taking = asyncio.create_task(engine())
    for call in (TransferCall.START, TransferCall.PART, TransferCall.FINISH):
        await transfer_queue.deliver(call)
    assert await taking == [TransferCall.START, TransferCall.PART, TransferCall.FINISH]


async def test_closing_tells_the_engine_and_whoever_waits_for_it() -> None:
    transfer_queue = TransferQueue()
    calls = transfer_queue.calls()
    waiting = asyncio.create_task(transfer_queue.deliver(TransferCall.START))
    await anext(calls)
    transfer_queue.close("the learner died")
    for end in (waiting, anext(calls), transfer_queue.deliver(TransferCall.PART)):
        with pytest.raises(TransferInterrupted, match="^the learner died$"):
            await end
