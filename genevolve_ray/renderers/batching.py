"""Batching of concurrent calls: one worker thread, batches of equal keys, first come first served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job")
Done = TypeVar("Done")


@dataclass
class _Waiting(Generic[Job, Done]):
    key: Hashable
    job: Job
    future: asyncio.Future[Done]


class Batcher(Generic[Job, Done]):
    """Run jobs in one thread, up to `max_batch` of equal key at a time, so that the event loop is never blocked.

    A job waits at most `wait_s` for others of its key, and not at all with `max_batch=1`. Jobs whose callers were
    canceled before their turn are dropped; a batch that has begun runs to its end.
    """

    def __init__(
        self,
        run: Callable[[list[Job]], Sequence[Done | BaseException]],
        *,
        max_batch: int = 1,
        wait_s: float = 0.0,
        name: str = "batcher",
        initializer: Callable[[], None] | None = None,
    ) -> None:
        """Keep `run`, which returns one result or exception per job, in order; `initializer` runs first in the thread."""
        self._run, self._max_batch, self._wait_s = run, max_batch, wait_s
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=initializer)
        self._waiting: list[_Waiting[Job, Done]] = []
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._arrived = asyncio.Event()

    async def submit(self, key: Hashable, job: Job) -> Done:
        """Return the result of a job.

        Raises:
            RuntimeError: when the batcher is closed before the job's turn; otherwise what `run` raised, or returned, for it.
        """
        if self._closed:
            raise RuntimeError("the batcher is closed")
        entry: _Waiting[Job, Done] = _Waiting(key, job, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        if self._task is None or self._task.done():  # None yet, or one of a loop that has ended.
            self._arrived = asyncio.Event()
            self._task = asyncio.get_running_loop().create_task(self._drain())
        self._arrived.set()
        return await entry.future

    def alone(self, job: Job) -> Done | BaseException:
        """Run one job in the thread and wait for it, without an event loop: for use in constructors."""
        [result] = self._executor.submit(self._run, [job]).result()
        return result

    def close(self) -> None:
        """Let the thread end after its current batch; waiting jobs fail."""
        self._closed = True
        self._arrived.set()
        self._executor.shutdown(wait=False)

    async def _drain(self) -> None:
        while self._alive():
            batch = await self._gather()
            if not batch:
                continue
            if self._closed:
                for entry in batch:
                    entry.future.set_exception(RuntimeError("the batcher is closed"))
                continue
            jobs = [entry.job for entry in batch]
            running = asyncio.get_running_loop().run_in_executor(self._executor, self._run, jobs)
            await asyncio.wait([running])
            failure = running.exception()
            results = [failure] * len(batch) if failure is not None else running.result()
            for entry, result in zip(batch, results, strict=True):
                if entry.future.done():
                    continue
                if isinstance(result, BaseException):
                    entry.future.set_exception(result)
                else:
                    entry.future.set_result(result)

    def _alive(self) -> list[_Waiting[Job, Done]]:
        """Drop jobs without a waiting caller, and return the rest."""
        self._waiting = [entry for entry in self._waiting if not entry.future.done()]
        return self._waiting

    def _short_of(self, key: Hashable) -> bool:
        return sum(entry.key == key for entry in self._alive()) < self._max_batch

    async def _gather(self) -> list[_Waiting[Job, Done]]:
        """Take the next batch off the queue: the oldest job and those of its key, after a short wait for more."""
        key = self._waiting[0].key
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_s
        while self._short_of(key) and not self._closed and loop.time() < deadline:
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._arrived.wait()
            except TimeoutError:
                break
        batch = [entry for entry in self._alive() if entry.key == key][: self._max_batch]
        taken = {id(entry) for entry in batch}
        self._waiting = [entry for entry in self._waiting if id(entry) not in taken]
        return batch
