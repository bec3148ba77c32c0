"""Renderer swaps in a running evolution: requested by a file in the run, executed between groups, and recorded.

One group has one renderer (DESIGN section 2). A swap starts the new renderer in addition to the old one. Once it
serves, new groups take it, running groups finish on the old one, and then the old one is removed. A renderer that fails
to start changes nothing. A resumed run uses the renderer of the last swap.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from typing import Protocol

from genevolve_ray.evolution.generations import RendererGenerations
from genevolve_ray.evolution.monitor import Monitor
from genevolve_ray.evolution.plugins import RendererSpec
from genevolve_ray.evolution.store.files import Folder, StoreError
from genevolve_ray.evolution.store.manifest import Document, now, step_name
from genevolve_ray.records.secrets import redacted

POLL_SECONDS = 2.0
"""Interval at which the run's folder is searched for swaps."""


class SwapState(StrEnum):
    """Name the states of a swap."""

    ASKED = "asked"
    """The run has not started it, or is starting the renderer."""
    DONE = "done"
    """Groups that began later use it."""
    REFUSED = "refused"
    """It could not be started; the previous renderer stays."""


class Swap(Document):
    """Store a requested renderer and the result in `swaps/NNNNNN.json`. Swaps count from 1.

    `identity` is the renderer's own identity, `message` the reason of a refusal.
    """

    number: int
    renderer: RendererSpec
    state: SwapState = SwapState.ASKED
    asked: str = ""
    ended: str = ""
    identity: str = ""
    message: str = ""


class Swaps:
    """Keep the swaps of a run as files in its folder; a request needs no lock of the run."""

    def __init__(self, folder: Folder) -> None:
        """Open a run's folder."""
        self._folder = folder

    def all(self) -> list[Swap]:
        """Return the swaps in order. Raises StoreError for a file that is corrupt."""
        names = [n for n in self._folder.entries("swaps") if re.fullmatch(r"\d{6,}\.json", n)]
        return [self._read(f"swaps/{name}") for name in names]

    def get(self, number: int) -> Swap:
        """Return one swap. Raises StoreError when it is missing or corrupt."""
        return self._read(_path(number))

    def ask(self, renderer: RendererSpec) -> Swap:
        """Request a renderer."""
        swap = Swap(number=max((s.number for s in self.all()), default=0) + 1, renderer=renderer, asked=now())
        self.put(swap)
        return swap

    def put(self, swap: Swap) -> None:
        """Write the result of a swap."""
        self._folder.put(_path(swap.number), swap.encode(), f"swap {swap.number}")

    def in_force(self) -> Swap | None:
        """Return the swap of the renderer of a resumed run, None for the renderer of its configuration."""
        return next((swap for swap in reversed(self.all()) if swap.state is SwapState.DONE), None)

    def _read(self, name: str) -> Swap:
        return Swap.decode(self._folder.get(name, "swap"), self._folder.path(name))


class RendererHost(Protocol):
    """Start and remove renderers: in this process, or as Serve applications."""

    async def add_renderer(self, generation: int, spec: RendererSpec) -> str:
        """Start a renderer so that tasks of its generation can be played, and return its identity.

        Raises any error that keeps it from serving; no part of the renderer remains then.
        """
        ...

    async def remove_renderer(self, generation: int) -> None:
        """Remove a renderer that no task needs any more."""
        ...


@asynccontextmanager
async def swapping(
    swaps: Swaps,
    host: RendererHost | None,
    generations: RendererGenerations,
    monitor: Monitor,
    poll_seconds: float = POLL_SECONDS,
) -> AsyncIterator[None]:
    """Execute swaps while the body runs; one that is not done by its end is executed when the run resumes.

    Args:
        swaps: the requested swaps.
        host: starts renderers; None for a run whose renderer may not change.
        generations: the renderers of new groups.
        monitor: receives a note on every swap.
        poll_seconds: interval of the search for swaps.
    """
    task = asyncio.create_task(_watch(swaps, host, generations, monitor, poll_seconds), name="swaps")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _watch(
    swaps: Swaps, host: RendererHost | None, generations: RendererGenerations, monitor: Monitor, poll_seconds: float
) -> None:
    told = ""
    while True:
        try:
            for swap in await asyncio.to_thread(swaps.all):
                if swap.state is SwapState.ASKED:
                    await _carry_out(swap, swaps, host, generations, monitor)
        except StoreError as error:  # a damaged request must not end a run
            if told != str(error):
                told = str(error)
                monitor.note(f"swaps: {error}")
        await asyncio.sleep(poll_seconds)


async def _carry_out(
    swap: Swap, swaps: Swaps, host: RendererHost | None, generations: RendererGenerations, monitor: Monitor
) -> None:
    before = generations.current
    monitor.note(f"swap {swap.number}: starting {swap.renderer.type}")
    try:
        if host is None:
            raise ValueError("deterministic=true does not permit swaps")
        identity = await host.add_renderer(swap.number, swap.renderer)
    except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on with the renderer that it has
        reason = redacted(" ".join(str(error).split())) or type(error).__name__
        ended = swap.model_copy(update={"state": SwapState.REFUSED, "message": reason, "ended": now()})
        await asyncio.to_thread(swaps.put, ended)
        monitor.note(f"swap {swap.number} rejected; the renderer is unchanged: {reason}")
        return
    ended = swap.model_copy(update={"state": SwapState.DONE, "identity": identity, "ended": now()})
    await asyncio.to_thread(swaps.put, ended)
    generations.switch(swap.number)
    monitor.note(f"swap {swap.number}: new groups use {identity}")
    await generations.drained(before)
    try:
        await host.remove_renderer(before)
    except Exception as error:  # noqa: BLE001 - it serves nobody any more, and goes with the run at the latest
        monitor.note(f"swap {swap.number}: the previous renderer could not be removed: {error}")
    else:
        monitor.note(f"swap {swap.number}: the previous renderer is removed")


def _path(number: int) -> str:
    return f"swaps/{step_name(number)}.json"
