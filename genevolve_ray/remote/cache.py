"""A cache of answers of services: each question is asked once, by all replicas and after a restart.

Searches, pictures and verdicts are kept here. Answers are small JSON files named by the hash of the question, below a
local folder or a pyarrow URI. The package `diskcache` is no substitute: its SQLite files belong to one machine, while
replicas on several machines share these files on any storage of the run store, object stores included. An answer never
changes once it is written, so nothing needs a transaction. A person can read or delete answers one by one, and loading
one runs no code (diskcache unpickles).

If two replicas ask at the same moment, on a local disk the first to write wins and the second takes its answer. On an
object store a window of one write remains. Failures are never kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import logging
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import pyarrow.fs as pafs
from pydantic import Field

from genevolve_ray.records.base import Config

_LOG = logging.getLogger(__name__)
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""Error codes of file systems without hard links."""
Json = Any
"""A JSON value."""
Entry = dict[str, Json]
"""A stored answer: `question`, `at` (seconds since the epoch) and `answer`."""


class CacheConfig(Config):
    """Configure the location of cached answers and their lifetime."""

    folder: str = ""
    """A path or pyarrow URI; runs that name the same folder share it. Empty: beside the run's pictures."""
    expire_s: float | None = Field(default=None, gt=0)
    """Seconds after which an answer is asked for anew; None: never. Short times let one group see two answers."""
    memory: int = Field(default=4096, ge=1)
    """Answers that a process keeps at hand."""


def entry_name(question: Mapping[str, Json]) -> str:
    """Return the name of a question's file: the sha256 of its JSON, as hexadecimal text."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()


def read_entry(found: Json, question: Mapping[str, Json]) -> Entry | None:
    """Return a file's JSON value as the entry of a question, None when it is not one (cut off, edited)."""
    whole = isinstance(found, dict) and found.keys() == {"question", "at", "answer"}
    if not whole or found["question"] != dict(question) or not isinstance(found["at"], int | float):
        return None
    entry: Entry = found
    return entry


class AnswerCache:
    """Keep JSON answers by question; concurrent equal questions become one call."""

    def __init__(
        self,
        config: CacheConfig,
        folder: str = "",
        now: Callable[[], float] = time.time,
        *,
        finish: bool = True,
        read: Callable[[Json, Mapping[str, Json]], Entry | None] = read_entry,
    ) -> None:
        """Keep answers below a folder.

        Args:
            config: how long answers are kept.
            folder: a path or URI; an empty one keeps answers in this process alone.
            now: seconds since the epoch.
            finish: whether a call continues after every caller was canceled, so that its answer is kept.
            read: turns a file's JSON value into the entry of a question, None when it is not one.
        """
        self._config, self._now, self._finish = config, now, finish
        self._files = _Files(folder, read) if folder else None
        self._recent: OrderedDict[str, Entry] = OrderedDict()
        self._flights: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Flight]] = WeakKeyDictionary()

    def check(self) -> None:
        """Write and remove a file. Raises OSError when the folder cannot be used."""
        if self._files is not None:
            self._files.check()

    async def get(self, question: Mapping[str, Json]) -> Json | None:
        """Return the kept answer, None when there is none or it has expired."""
        name = entry_name(question)
        entry = self._recent.get(name)
        if entry is None and self._files is not None:
            entry = await asyncio.to_thread(self._files.read, name, question)
        if entry is None or self._expired(entry):
            return None
        self._remember(name, entry)
        return entry["answer"]

    async def put(self, question: Mapping[str, Json], answer: Json, *, replace: bool = False) -> Json:
        """Keep an answer and return the valid one.

        The valid one is an earlier answer of another replica, unless that is to be replaced.
        """
        name = entry_name(question)
        entry = {"question": dict(question), "at": self._now(), "answer": answer}
        if self._files is not None:
            kept = await asyncio.to_thread(self._files.write, name, entry, None if replace else self._expired)
            entry = kept or entry
        self._remember(name, entry)
        return entry["answer"]

    async def ask(
        self, question: Mapping[str, Json], call: Callable[[], Awaitable[tuple[Json, bool]]]
    ) -> tuple[Json, bool]:
        """Return (answer, whether it was obtained without a call by this caller).

        Callers that ask the same at the same time share one call, and its failure; the cancellation of one caller does
        not affect the others. A folder that cannot be read or written costs a call and a warning, never the answer.

        Args:
            question: a JSON object with everything that determines the answer.
            call: returns (answer, whether to keep it).

        Raises:
            Exception: what `call` raised.
        """
        flights = self._flights.setdefault(asyncio.get_running_loop(), {})
        name = entry_name(question)
        flight = flights.get(name)
        shared = flight is not None
        if flight is None:
            # The look-up is part of the task, so that no other caller can run between look-up and call.
            flight = flights[name] = _Flight(asyncio.create_task(self._look_or_call(question, call)))
            flight.task.add_done_callback(partial(_land, flights, name, flight))
        flight.waiting += 1
        try:
            answer, cached = await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not self._finish:
                flight.task.cancel()
                _land(flights, name, flight, None)
        return answer, shared or cached

    async def _look_or_call(
        self, question: Mapping[str, Json], call: Callable[[], Awaitable[tuple[Json, bool]]]
    ) -> tuple[Json, bool]:
        kept = None
        try:
            kept = await self.get(question)
        except OSError as error:
            _LOG.warning("an answer could not be looked up: %s", error)
        if kept is not None:
            return kept, True
        answer, keep = await call()
        if not keep:
            return answer, False
        try:
            return await self.put(question, answer), False
        except OSError as error:  # A full disk must not lose an answer that was paid for.
            _LOG.warning("an answer could not be kept: %s", error)
            return answer, False

    def _remember(self, name: str, entry: Entry) -> None:
        self._recent[name] = entry
        self._recent.move_to_end(name)
        while len(self._recent) > self._config.memory:
            self._recent.popitem(last=False)

    def _expired(self, entry: Mapping[str, Json]) -> bool:
        limit = self._config.expire_s
        return limit is not None and self._now() - entry["at"] > limit


class _Flight:
    """Hold a call in progress and the number of its waiters."""

    def __init__(self, task: asyncio.Task[tuple[Json, bool]]) -> None:
        self.task, self.waiting = task, 0


def _land(
    flights: dict[str, _Flight], name: str, flight: _Flight, done: asyncio.Task[tuple[Json, bool]] | None
) -> None:
    """Forget a finished flight; another one of that name may have begun since."""
    if flights.get(name) is flight:
        del flights[name]
    if done is not None and not done.cancelled():
        done.exception()  # Read, so that asyncio does not report a failure without a waiter.


class _Files:
    """Store whole JSON files; writes are atomic."""

    def __init__(self, folder: str, read: Callable[[Json, Mapping[str, Json]], Entry | None]) -> None:
        self._entry = read
        self._fs, self._root = pafs.LocalFileSystem(), os.path.abspath(folder)
        if "://" in folder:
            self._fs, self._root = pafs.FileSystem.from_uri(folder)
        self._local = isinstance(self._fs, pafs.LocalFileSystem)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name[:2]}/{name}.json"

    def check(self) -> None:
        """Write and remove a file. Raises OSError."""
        path = f"{self._root}/.tmp-{uuid.uuid4().hex}"
        self._fs.create_dir(self._root, recursive=True)
        with self._fs.open_output_stream(path) as stream:
            stream.write(b"")
        self._fs.delete_file(path)

    def read(self, name: str, question: Mapping[str, Json]) -> Entry | None:
        """Return an entry, None when there is none; an invalid file counts as none."""
        try:
            with self._fs.open_input_stream(self._path(name)) as stream:
                return self._entry(json.loads(stream.read()), question)
        except (FileNotFoundError, ValueError, RecursionError):
            return None

    def write(self, name: str, entry: Entry, stale: Callable[[Mapping[str, Json]], bool] | None) -> Entry | None:
        """Write an entry, unless there is a valid one that is not `stale`, which is then returned."""
        path, data = self._path(name), json.dumps(entry).encode()
        self._fs.create_dir(path.rpartition("/")[0], recursive=True)
        earlier = self.read(name, entry["question"]) if stale is not None else None
        if earlier is not None and stale is not None and not stale(earlier):
            return earlier
        if not self._local:
            # Object stores make a file visible when its stream is closed.
            with self._fs.open_output_stream(path) as stream:
                stream.write(data)
            return None
        aside = f"{path.rpartition('/')[0]}/.tmp-{uuid.uuid4().hex}"
        try:
            with open(aside, "xb") as file:
                file.write(data)
            if stale is not None and earlier is None and not os.path.exists(path) and not _linked(aside, path):
                # Another writer was faster between the check and the link.
                return self.read(name, entry["question"])
            os.replace(aside, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
        return None


def _linked(source: str, target: str) -> bool:
    """Give a finished file its name; return False if a file has the name already."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    return True
