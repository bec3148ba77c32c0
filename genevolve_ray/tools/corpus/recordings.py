"""Reading of recorded answers: the files that `tools.corpus.recording` wrote, checked against their names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from genevolve_ray.remote.cache import entry_name, read_entry
from genevolve_ray.tools.corpus.cards import check_card
from genevolve_ray.tools.corpus.questions import AnsweringTool, FrozenCorpusFault, Question, RecordedAnswer
from genevolve_ray.tools.corpus.recording import digest
from genevolve_ray.tools.corpus.snapshot import CorpusRow, references

STATEFUL = "has state for each episode, so an answer depends on more than its question"


@dataclass
class Recordings:
    """Hold the recorded answers of one run, in the order in which they were given."""

    tools: dict[str, AnsweringTool] = field(default_factory=dict)
    rows: list[CorpusRow] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Tools that cannot be frozen, with the reason."""
    damaged: list[str] = field(default_factory=list)
    """Files that are cut off or changed; their answers are left out."""


def read_recordings(files: Iterable[tuple[str, bytes]]) -> Recordings:
    """Return what files hold, given as (name without its folder, content)."""
    found, entries = Recordings(), []
    for name, data in files:
        try:
            entries.append(_entry(name, data))
        except (KeyError, TypeError, ValueError, RecursionError):  # Pydantic's errors and ours are ValueErrors.
            found.damaged.append(name)
    for _, _, made in sorted(entries, key=lambda entry: entry[:2]):
        if isinstance(made, CorpusRow):
            found.rows.append(made)
        elif made.card.stateful:
            found.left_out[made.name] = STATEFUL
        else:
            _take(found, made)
    found.rows = [row for row in found.rows if row.question.tool not in found.left_out]
    return found


def _take(found: Recordings, tool: AnsweringTool) -> None:
    try:
        check_card(tool.name, tool)
    except FrozenCorpusFault as fault:  # A corpus with it could not be opened.
        found.left_out[tool.name] = f"cannot be shown again: {fault}"
    else:
        found.tools.setdefault(tool.name, tool)


def _entry(name: str, data: bytes) -> tuple[float, str, CorpusRow | AnsweringTool]:
    """Return time, name and content of a file. Raises an error of any of the kinds that `read_recordings` expects."""
    loaded: Any = json.loads(data)
    question = loaded["question"]
    entry = read_entry(loaded, question)
    if entry is None or f"{entry_name(question)}.json" != name:
        raise ValueError(name)
    at, answer = float(entry["at"]), entry["answer"]
    if "card" in question:
        if digest(answer) != question["card"]:
            raise ValueError(name)
        return at, name, AnsweringTool.model_validate(answer)
    made = RecordedAnswer(str(answer["kind"]), str(answer["body"]))
    asked = Question(question["tool"], question["arguments"])
    if digest([made.kind, made.body]) != question["answer"] or Question.of(asked.tool, asked.call) != asked:
        raise ValueError(name)
    references(made, name)
    return at, name, CorpusRow(asked, made, request=str(question["request"]), at=at)
