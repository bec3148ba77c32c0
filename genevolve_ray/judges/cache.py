"""A cache of verdicts by content: each combination of picture, program and judge is paid for once."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from genevolve_ray.records.observation import ImageHit
from genevolve_ray.records.program import Program
from genevolve_ray.records.usage import Usage, record_usage
from genevolve_ray.records.verdict import EXAMINATION_FAILED, Verdict
from genevolve_ray.remote.cache import AnswerCache, CacheConfig, Entry, Json, entry_name, read_entry

VERSION = "judgement/1"


def judgement_question(
    prompt: str, image: bytes, truth: bytes, program: Program, references: Sequence[ImageHit], identity: str
) -> dict[str, Json]:
    """Return everything that a verdict depends on, as a JSON object.

    `identity` must name all settings that alter a verdict. Of references their titles and pixels count, not their
    sources.
    """
    return {
        "version": VERSION,
        "identity": identity,
        "prompt": prompt,
        "image": hashlib.sha256(image).hexdigest(),
        "truth": hashlib.sha256(truth).hexdigest(),
        "program": program.model_dump(mode="json"),
        "references": [[hit.title, hit.image.sha256] for hit in references],
    }


class VerdictCache:
    """Keep verdicts in an `AnswerCache`; any number of processes may share its folder.

    Only verdicts are kept, never failures. A judgment without a waiter is canceled: a caller that gave up asks again,
    and must not join the call that was too slow.
    """

    def __init__(self, folder: str | Path, service: str = "judge") -> None:
        """Use (and create) a folder; `service` is the name on the meter under which hits are counted.

        Raises:
            OSError: when the folder cannot be used.
        """
        self._service = service
        self._answers = AnswerCache(CacheConfig(), str(folder), finish=False, read=_read)
        self._answers.check()

    async def verdict(self, question: Mapping[str, Json], judge: Callable[[], Awaitable[Verdict]]) -> Verdict:
        """Return the verdict on a question, from `judge()` when it is not cached. Raises what `judge` raises."""

        async def call() -> tuple[Any, bool]:
            verdict = await judge()
            return verdict.model_dump(mode="json"), EXAMINATION_FAILED not in verdict.flags

        answer, cached = await self._answers.ask(question, call)
        if cached:
            record_usage(self._service, Usage(cached=1))
        return Verdict.model_validate(answer)


def _read(found: Json, question: Mapping[str, Json]) -> Entry | None:
    """Return a file's JSON value as an entry whose answer is a verdict, None when it is not one."""
    if isinstance(found, dict) and found.keys() == {"version", "key", "verdict"}:  # Verdicts of version 0.1.
        if (found["version"], found["key"]) != (VERSION, entry_name(question)):
            return None
        found = {"question": dict(question), "at": 0, "answer": found["verdict"]}
    entry = read_entry(found, question)
    try:
        return entry if entry is not None and Verdict.model_validate(entry["answer"]) else None
    except ValidationError:
        return None
