"""Verdicts kept by content: the same picture, program and judge are paid for once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

from pydantic import ValidationError

from genevolve_ray.records.base import Record
from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.usage import Usage, record_usage
from genevolve_ray.records.verdict import Verdict

logger = logging.getLogger(__name__)

VERSION = "judgement/1"


class _Entry(Record):
    """One file of the cache."""

    version: str
    key: str
    verdict: Verdict


def judgement_key(
    prompt: str, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit], identity: str
) -> str:
    """Return the sha256 of everything that a verdict depends on, as hexadecimal text.

    `identity` must name whatever settings alter a verdict. Of references their titles and pixels count, not where they
    were found.
    """
    parts = {
        "version": VERSION,
        "identity": identity,
        "prompt": prompt,
        "image": hashlib.sha256(image).hexdigest(),
        "truth": hashlib.sha256(truth).hexdigest(),
        "program": program.model_dump(),
        "references": [[hit.title, hit.image.sha256] for hit in references],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class VerdictCache:
    """A folder of verdicts, one JSON file each, named by its key; any number of processes may share it.

    Only verdicts are kept, never failures. Within a process (and event loop) callers that ask for the same key at once
    share one call. A file that cannot be read as a verdict is a miss, and is written anew.
    """

    def __init__(self, folder: str | Path, service: str = "judge") -> None:
        """Use (and create) a folder; `service` is the name on the meter under which hits are counted."""
        self._folder, self._service = Path(folder), service
        self._folder.mkdir(parents=True, exist_ok=True)
        self._flights: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Flight]] = WeakKeyDictionary()

    async def verdict(self, key: str, judge: Callable[[], Awaitable[Verdict]]) -> Verdict:
        """Return the verdict under a key, from `judge()` when it is not there. Raises what `judge` raises."""
        flights = self._flights.setdefault(asyncio.get_running_loop(), {})
        flight = flights.get(key)
        shared = flight is not None
        if flight is None:
            flight = flights[key] = _Flight(asyncio.ensure_future(self._find(key, judge)))
        flight.waiting += 1
        try:
            verdict, cached = await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting:  # Nobody else wants it: what is still under way stops.
                flight.task.cancel()
                if flights.get(key) is flight:
                    del flights[key]
        if shared or cached:
            record_usage(self._service, Usage(cached=1))
        return verdict

    async def _find(self, key: str, judge: Callable[[], Awaitable[Verdict]]) -> tuple[Verdict, bool]:
        kept = await asyncio.to_thread(self.get, key)
        if kept is not None:
            return kept, True
        verdict = await judge()
        try:
            await asyncio.to_thread(self.put, key, verdict)
        except OSError as error:  # A full disk is no reason to lose what was paid for.
            logger.warning("a verdict could not be cached in %s: %s", self._folder, error)
        return verdict, False

    def path(self, key: str) -> Path:
        """Return the file of a key."""
        return self._folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Verdict | None:
        """Return the verdict under a key, None when there is none that can be read."""
        try:
            entry = _Entry.model_validate_json(self.path(key).read_bytes())
        except (OSError, ValidationError):
            return None
        return entry.verdict if (entry.version, entry.key) == (VERSION, key) else None

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict; a complete file appears at once, under its name."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(_Entry(version=VERSION, key=key, verdict=verdict).model_dump_json())
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)  # gone already where the replacement was made


class _Flight:
    """A judgement under way and how many wait for it."""

    def __init__(self, task: asyncio.Future[tuple[Verdict, bool]]) -> None:
        self.task, self.waiting = task, 0
