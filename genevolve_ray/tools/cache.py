"""Answers of a search that are kept: the same question gets the same answer, from every replica and after a restart.

Answers are small JSON files named by the hash of what was asked, below a local folder or a pyarrow URI. Files rather
than SQLite: replicas on several machines share them over whatever the run store lies on (SQLite's WAL needs shared
memory, so one machine), object stores hold them too, an answer never changes once it is written, so nothing needs a
transaction, and a person can read or delete them one by one.

Of two replicas that ask at the same moment, the first to write wins on a local disk and the second takes its answer; on
an object store a window of one write remains. Failures are never kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import pyarrow.fs as pafs
from pydantic import Field

from genevolve_ray.records.base import Config

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What file systems without hard links say."""
Json = Any
"""A JSON value."""


class CacheConfig(Config):
    """Where answers are kept, and how long."""

    folder: str = ""
    """A path or pyarrow URI; runs that name the same folder share it. Empty: beside the run's pictures."""
    expire_s: float | None = Field(default=None, gt=0)
    """Seconds after which an answer is asked for anew; None: never. Short times let one group see two answers."""
    memory: int = Field(default=4096, ge=1)
    """Answers that a process keeps at hand."""


class AnswerCache:
    """Keeps JSON answers by question; questions asked side by side become one call."""

    def __init__(self, config: CacheConfig, folder: str = "", now: Callable[[], float] = time.time) -> None:
        """Keep answers below `folder`, a path or URI; an empty one keeps them in this process alone."""
        self._config, self._now = config, now
        self._files = _Files(folder) if folder else None
        self._recent: OrderedDict[str, dict[str, Json]] = OrderedDict()
        self._running: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Task[tuple[Json, bool]]]] = (
            WeakKeyDictionary()
        )

    def check(self) -> None:
        """Write and remove a file. Raises OSError when the folder cannot be used."""
        if self._files is not None:
            self._files.check()

    async def get(self, question: Mapping[str, Json]) -> Json | None:
        """Return the kept answer, None when there is none or it has expired."""
        name = _name(question)
        entry = self._recent.get(name)
        if entry is None and self._files is not None:
            entry = await asyncio.to_thread(self._files.read, name, question)
        if entry is None or self._expired(entry):
            return None
        self._remember(name, entry)
        return entry["answer"]

    async def put(self, question: Mapping[str, Json], answer: Json, *, replace: bool = False) -> Json:
        """Keep an answer and return the one that counts: an earlier one of another replica, unless it is to be replaced."""
        name = _name(question)
        entry = {"question": dict(question), "at": self._now(), "answer": answer}
        if self._files is not None:
            kept = await asyncio.to_thread(self._files.write, name, entry, None if replace else self._expired)
            entry = kept or entry
        self._remember(name, entry)
        return entry["answer"]

    async def ask(
        self, question: Mapping[str, Json], call: Callable[[], Awaitable[tuple[Json, bool]]]
    ) -> tuple[Json, bool]:
        """Return (answer, whether it came without a call of one's own).

        Callers that ask the same at the same time share one call, and its failure. The call goes on when a caller is
        cancelled: others may wait for it, and the answer is kept.

        Args:
            question: a JSON object, all that decides the answer.
            call: brings (answer, whether to keep it).

        Raises:
            Exception: what `call` raised.
        """
        running = self._running.setdefault(asyncio.get_running_loop(), {})
        name = _name(question)
        if (task := running.get(name)) is not None:
            return (await asyncio.shield(task))[0], True
        # Looking is part of the task: between a look and a call nobody else can slip in.
        task = running[name] = asyncio.create_task(self._look_or_call(question, call))
        task.add_done_callback(lambda done: (running.pop(name, None), done.cancelled() or done.exception()))
        return await asyncio.shield(task)

    async def _look_or_call(
        self, question: Mapping[str, Json], call: Callable[[], Awaitable[tuple[Json, bool]]]
    ) -> tuple[Json, bool]:
        if (kept := await self.get(question)) is not None:
            return kept, True
        answer, keep = await call()
        return (await self.put(question, answer) if keep else answer), False

    def _remember(self, name: str, entry: dict[str, Json]) -> None:
        self._recent[name] = entry
        self._recent.move_to_end(name)
        while len(self._recent) > self._config.memory:
            self._recent.popitem(last=False)

    def _expired(self, entry: Mapping[str, Json]) -> bool:
        limit = self._config.expire_s
        return limit is not None and self._now() - entry["at"] > limit


class _Files:
    """Whole JSON files; they appear completely or not at all."""

    def __init__(self, folder: str) -> None:
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

    def read(self, name: str, question: Mapping[str, Json]) -> dict[str, Json] | None:
        """Return an entry, None when there is none; a file that is not one (cut off, edited) counts as none."""
        try:
            with self._fs.open_input_stream(self._path(name)) as stream:
                entry = json.loads(stream.read())
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        if not isinstance(entry, dict) or entry.keys() != {"question", "at", "answer"}:
            return None
        if entry["question"] != dict(question) or not isinstance(entry["at"], int | float):
            return None
        return entry

    def write(
        self, name: str, entry: dict[str, Json], stale: Callable[[Mapping[str, Json]], bool] | None
    ) -> dict[str, Json] | None:
        """Write an entry unless a good one is there that is not `stale`, which is then returned."""
        path, data = self._path(name), json.dumps(entry).encode()
        self._fs.create_dir(path.rpartition("/")[0], recursive=True)
        earlier = self.read(name, entry["question"]) if stale is not None else None
        if earlier is not None and stale is not None and not stale(earlier):
            return earlier
        if not self._local:
            # Object stores show a file when its stream is closed.
            with self._fs.open_output_stream(path) as stream:
                stream.write(data)
            return None
        aside = f"{path.rpartition('/')[0]}/.tmp-{uuid.uuid4().hex}"
        try:
            with open(aside, "xb") as file:
                file.write(data)
            if stale is not None and earlier is None and not os.path.exists(path) and not _linked(aside, path):
                # Somebody was faster between our look and our link.
                return self.read(name, entry["question"])
            os.replace(aside, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
        return None


def _linked(source: str, target: str) -> bool:
    """Give a finished file its name, unless a file has it already: then return False."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    return True


def _name(question: Mapping[str, Json]) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
