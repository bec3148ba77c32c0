"""Calls from another process: carried out one by one, and neither side is left waiting when the other ends."""

from __future__ import annotations

import asyncio

import pytest

from genevolve_ray.engines.mail import Mail, TransferCall, TransferInterrupted


async def test_a_call_returns_when_the_engine_has_carried_it_out() -> None:
    mail = Mail()
    calls = mail.calls()
    first = asyncio.create_task(mail.deliver(TransferCall.START))
    assert await anext(calls) == (TransferCall.START, {})
    assert not first.done()
    second = asyncio.create_task(mail.deliver(TransferCall.PART, {"names": ["a"]}))
    assert await anext(calls) == (TransferCall.PART, {"names": ["a"]})
    assert first.done()
    assert not second.done()


async def test_the_last_call_ends_the_calls() -> None:
    mail = Mail()

    async def engine() -> list[TransferCall]:
        return [call async for call, _ in mail.calls()]

    taking = asyncio.create_task(engine())
    for call in (TransferCall.START, TransferCall.PART, TransferCall.FINISH):
        await mail.deliver(call)
    assert await taking == [TransferCall.START, TransferCall.PART, TransferCall.FINISH]


async def test_closing_tells_the_engine_and_whoever_waits_for_it() -> None:
    mail = Mail()
    calls = mail.calls()
    waiting = asyncio.create_task(mail.deliver(TransferCall.START))
    await anext(calls)
    mail.close("the learner died")
    for end in (waiting, anext(calls), mail.deliver(TransferCall.PART)):
        with pytest.raises(TransferInterrupted, match="^the learner died$"):
            await end
