"""Stage `prompts`: write a request from a recipe and its entities.

A writer is anything that keeps the protocol `PromptWriter`. `ChatPromptWriter` asks a chat model, checks its answer by
rules and sends faults back, within bounds. `genevolve_ray.atlas.recipe_prompts` writes without a model.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field, ValidationError

from genevolve_ray.data.build.rows import OUTAGE, PromptDraft, PromptRow, is_open
from genevolve_ray.data.build.rules import PromptRules, RuleFault, RulesConfig
from genevolve_ray.data.build.taxonomy import AxisValue, Taxonomy, named
from genevolve_ray.engines.chat_endpoint import text_message
from genevolve_ray.engines.protocol import ChatModel
from genevolve_ray.errors import InfraFailure
from genevolve_ray.judges.asking import ask
from genevolve_ray.judges.reading import BadAnswer, salvage_object
from genevolve_ray.judges.rubrics import digest, fenced
from genevolve_ray.records.base import Config
from genevolve_ray.records.secrets import redacted
from genevolve_ray.records.texts import load_text
from genevolve_ray.remote.client import UnusableAnswer

STAGE = "prompts"
FOLDER = Path(__file__).parent / "prompts"
UNREADABLE = "unreadable_answer"
"""Reason of a row for which no answer of the model could be read."""
_RECIPE_CHARS = 8000
_LISTED = 5
"""Faults of an answer that are no broken rules, at most so many are stated."""
_TEXT, _TEXTS = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
_FIELDS = {"prompt": _TEXT, "image_query": _TEXT, "text_query": _TEXT, "visible": _TEXTS, "people": _TEXTS}
DRAFT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": _FIELDS,
    "required": list(_FIELDS),
    "additionalProperties": False,
}
"""JSON schema of an answer, in the subset that servers accept as strict."""


class PromptWriter(Protocol):
    """Define a writer of prompts. `identity` names it and every setting that alters what it writes."""

    identity: str

    async def write(self, row: PromptRow) -> PromptRow:
        """Return the row with a prompt, or rejected by the stage `prompts` with a typed reason.

        Raises InfraFailure when a service gave up after bounded retries.
        """
        ...


class PromptWriterConfig(Config):
    """Configure the writing of prompts by a chat model."""

    rubric: str = "write_request"
    """The system prompt: a name in `data/build/prompts`, a file, or `module:attribute`."""
    max_tokens: int = Field(default=1024, ge=64)
    """Tokens of one answer."""
    repairs: int = Field(default=2, ge=0)
    """Retries after an answer that breaks a rule or cannot be read; each sends the faults to the model."""
    rules: RulesConfig = Field(default_factory=RulesConfig)
    """The rules that a prompt must keep."""


class BrokenRules(BadAnswer):
    """Signal an answer whose prompt breaks rules."""

    def __init__(self, broken: Sequence[RuleFault]) -> None:
        """Keep the broken rules."""
        super().__init__(*map(str, broken))
        self.broken = tuple(broken)


class ChatPromptWriter:
    """Write prompts with a chat model, one conversation a row."""

    Config: type[PromptWriterConfig] = PromptWriterConfig

    def __init__(self, config: PromptWriterConfig, taxonomy: Taxonomy, chat: ChatModel) -> None:
        """Load the rubric; nothing is called yet. Raises ValueError for a rubric that cannot be found."""
        self.config, self.taxonomy = config, taxonomy
        self._chat = chat
        self._rubric = load_text(config.rubric, FOLDER, "rubric")
        self._rules = PromptRules(config.rules, taxonomy)
        settings = json.dumps([self._rubric, taxonomy.model_dump_json(), config.model_dump_json(exclude={"rubric"})])
        self.identity = f"chat-writer/1:{chat.identity}:{digest(settings)[:8]}"

    async def write(self, row: PromptRow) -> PromptRow:
        """Return the row with a prompt that keeps all rules, or rejected.

        The reason is the first broken rule of the last answer, or `unreadable_answer`.

        Raises:
            InfraFailure: when the model gave up.
        """
        messages = [
            text_message("system", self._rubric),
            text_message("user", fenced({"recipe": recipe_text(row, self.taxonomy, self.config.rules)}, _RECIPE_CHARS)),
        ]

        def read(answer: str) -> PromptDraft:
            draft = read_draft(answer)
            if broken := self._rules.faults(draft, row):
                raise BrokenRules(broken)
            return draft

        bounds = {"max_tokens": self.config.max_tokens, "repairs": self.config.repairs}
        try:
            draft, repairs = await ask(self._chat, messages, read, what="request", schema=DRAFT_SCHEMA, **bounds)
        except UnusableAnswer as error:
            cause = error.__cause__
            if not isinstance(cause, BadAnswer):
                raise  # The service's answer was no completion at all.
            reason = cause.broken[0].rule.value if isinstance(cause, BrokenRules) else UNREADABLE
            return row.model_copy(update={"writer": self.identity}).reject(STAGE, reason, *cause.faults)
        return row.model_copy(update={**dict(draft), "writer": self.identity, "repairs": repairs, "rejected": None})


async def write_prompts(rows: Sequence[PromptRow], writer: PromptWriter, *, concurrency: int = 8) -> list[PromptRow]:
    """Return the rows in order, each with a prompt or with the reason of its rejection.

    Rows that are rejected already pass unchanged. A row whose service failed is rejected with `outage`: that is no
    verdict, and a repeated call takes it again. Rows that have a prompt are not written again.

    Args:
        rows: of the stage before, or of this one.
        writer: for example a `ChatPromptWriter`.
        concurrency: rows that are written at one time.
    """
    gate = asyncio.Semaphore(concurrency)

    async def one(row: PromptRow) -> PromptRow:
        if row.prompt or not is_open(row, STAGE):
            return row
        async with gate:
            try:
                return await writer.write(row)
            except InfraFailure as error:
                return row.reject(STAGE, OUTAGE, redacted(str(error)))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(row)) for row in rows]
    return [task.result() for task in tasks]


def read_draft(answer: str) -> PromptDraft:
    """Return the draft in an answer. Raises BadAnswer, with the faults in words that a model can act on."""
    try:
        found = salvage_object(answer)
        missing = [name for name in _FIELDS if name not in found]
        if missing:
            raise BadAnswer(*(f"{name} is missing" for name in missing))
        draft = PromptDraft.model_validate(found)
    except ValidationError as error:
        listed = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:_LISTED])
        raise BadAnswer(*listed) from error
    except BadAnswer:
        raise
    except ValueError as error:
        raise BadAnswer(f"the answer is not JSON: {error}") from error
    return draft.model_copy(update={"prompt": draft.prompt.strip()})


def recipe_text(row: PromptRow, taxonomy: Taxonomy, rules: RulesConfig) -> str:
    """Return a recipe as a writer reads it: values with their descriptions, entities and bounds, as JSON.

    Raises:
        ValueError: naming a value of the row that the taxonomy does not have.
    """
    families, requirements = named(taxonomy.family.values), named(taxonomy.requirement.values)
    family = _value(families, "family", row.family)
    told = {
        "kind of request": row.eval_type.value,
        "task family": _described(family),
        "factual gap": _described(_value(named(taxonomy.gap.values), "gap", row.gap)),
        "visual anchor": _described(_value(named(taxonomy.anchor.values), "anchor", row.anchor)),
        "dominant requirement": _described(_value(requirements, "requirement", row.requirement)),
        "secondary requirements": [_described(_value(requirements, "requirement", name)) for name in row.secondary],
        "difficulty": _described(_value(named(taxonomy.difficulty.values), "difficulty", row.difficulty)),
        "entities": list(row.entities),
        "text search": "needed" if row.text_search else "not needed",
        "persons": "only the named entities" if families[row.family].people else "none",
        "words": f"{rules.min_words} to {rules.max_words}",
    }
    return json.dumps(told, ensure_ascii=False, indent=1)


def _value(values: dict[str, Any], axis: str, name: str) -> AxisValue:
    if name not in values:
        raise ValueError(f"the taxonomy has no {axis} {name!r}: {', '.join(values)}")
    found: AxisValue = values[name]
    return found


def _described(value: AxisValue) -> str:
    return f"{value.words}: {value.description}" if value.description else value.words
