"""Renderer and judge in a process beside the run's, for runs in one process.

The driver's thread answers the engine. While it drew or judged a picture itself, finished turns would wait, and the
engine would have nothing to do. A plug-in can move where it declares `blocking`: it computes, and never waits.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from genevolve_ray.engines.parent_watch import die_with_parent
from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.plugins import PluginSpec, build_here

_CORES = 2
"""On one core another process would only add the cost of its calls."""
_HERE: dict[str, Any] = {}
"""The plug-ins of this process by role, where it is the one beside a run."""


class PluginProcess:
    """Run plug-ins in a process of their own, one call at a time. It starts at once, and ends with `close`."""

    def __init__(self, specs: Mapping[str, PluginSpec]) -> None:
        """Build the plug-in of each role there."""
        self._specs = dict(specs)
        self._pool = self._start()

    def stand_in(self, role: str, plugin: Any) -> Any:
        """Return a plug-in that is called there, for one of those roles; any other is returned as it is."""
        return _StandIn(self, role, plugin) if role in self._specs else plugin

    async def call(self, role: str, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method of a plug-in.

        Raises:
            InfraFailure: when the process died; the next call has a new one.
            Exception: what the plug-in raised.
        """
        pool = self._pool
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, _call, role, method, arguments)
        except BrokenExecutor as error:
            if self._pool is pool:
                pool.shutdown(wait=False)
                self._pool = self._start()
            raise InfraFailure(f"the process of the {role} died: {error}") from error

    async def close(self) -> None:
        """End the process after the call that it works on."""
        await asyncio.to_thread(self._pool.shutdown, wait=True, cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(self._specs,))
        pool.submit(os.getpid)  # The process starts with the first work.
        return pool


class _StandIn:
    """Stand in for a plug-in whose calls are made elsewhere; everything else is its own."""

    def __init__(self, process: PluginProcess, role: str, plugin: Any) -> None:
        self._process, self._role, self._plugin = process, role, plugin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plugin, name)

    async def render(self, *arguments: Any) -> Any:
        return await self._process.call(self._role, "render", arguments)

    async def judge(self, *arguments: Any) -> Any:
        return await self._process.call(self._role, "judge", arguments)


@asynccontextmanager
async def plugins_beside(config: EvolutionConfig) -> AsyncIterator[PluginProcess | None]:
    """Start a process for the renderer and the judge of a run that may move there, and end it; None without one.

    A deterministic run keeps them, because its waves depend on the order of events. So does a run whose engine computes
    in the same process, and a machine of one core.
    """
    roles = {"renderer": config.renderer, "judge": config.judge}
    moved = {role: spec for role, spec in roles.items() if not spec.isolated and _blocks(spec)}
    if config.deterministic or config.engine.kind != "vllm" or config.rehearsal or not moved or _cores() < _CORES:
        yield None
        return
    process = PluginProcess(moved)
    try:
        yield process
    finally:
        await process.close()


def _blocks(spec: PluginSpec) -> bool:
    return bool(getattr(spec.resolve(), "blocking", False))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(specs: Mapping[str, PluginSpec]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The run ends this process when it is interrupted itself.
    die_with_parent(("",))
    _HERE.update({role: build_here(spec) for role, spec in specs.items()})


def _call(role: str, method: str, arguments: tuple[Any, ...]) -> Any:
    """Run a coroutine that never waits, without an event loop. Raises TypeError for one that waits."""
    coroutine = getattr(_HERE[role], method)(*arguments)
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise TypeError(f"{type(_HERE[role]).__name__}.{method} waits, but a `blocking` plug-in must not")
