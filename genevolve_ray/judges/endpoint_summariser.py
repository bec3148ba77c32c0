"""The summarizer over any OpenAI-style chat endpoint.

It uses a JSON schema, temperature 0, and bounded repair of bad answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import Field, ValidationError, create_model, model_validator

from genevolve_ray.engines.chat_endpoint import EndpointChat, EndpointChatConfig, complaint, text_message
from genevolve_ray.engines.protocol import ChatMessage, CutAnswer
from genevolve_ray.judges.reading import salvage_object
from genevolve_ray.judges.summariser import bundle_head, format_suffix
from genevolve_ray.judges.transcript import pair_text
from genevolve_ray.records.base import Record
from genevolve_ray.records.experience import BUNDLE_FORMATS, BundleFormat, BundleFormatName, Experience
from genevolve_ray.records.leaks import Secrets, find_leak, secrets_of, without_leaks
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Pair
from genevolve_ray.remote.client import UnusableAnswer

INSTRUCTIONS = """\
You compare two attempts of an image-generation agent at the same request. The agent may search texts, search images and \
read skill guides, then writes a prompt and picks reference images for a generator. One attempt earned a higher reward.

Say what an agent that meets ANOTHER request of this sort should do. Write guidance in {count} slots:
{slots}

Rules for every bullet:
- One short imperative sentence of {low} to {high} words.
- Behaviour only. Nothing of this request may appear: no proper name, no count, no quoted text, no image id, no link.
- Where the two attempts do not differ, keep what the better one did and begin the bullet with "Standard: ".
- One to three bullets in each slot; a slot may stay empty where there is nothing to say.

"trigger" says in a few words which sort of request this is; "{summary}" says what the request asks for. Both follow the \
same rule: no names, counts or texts of the request.

Reply with one JSON object and nothing else:
{example}
"""

_MEANINGS = {
    "search_strategy": "what to search for, when, and what not to.",
    "knowledge_activation": "which skill guides to read or leave unread, by the name of the guide.",
    "reference_selection": "how to tell a right reference image from a wrong one, and how to bind it.",
    "prompt_construction": "how to build the prompt: clauses, places, quoted text, ordinal phrases for references.",
    "failure_avoidance": "what the weaker attempt did that must not be repeated.",
    "focus": "what decides whether an attempt at such a request succeeds.",
    "recommended_tool_plan": "which tools to call, in which order, and when to stop calling them.",
    "search_query_guidance": "how to word the queries of text and image searches, and what to leave out of them.",
    "skill_routing_guidance": "which skill guides to read or leave unread, by the name of the guide.",
    "reference_selection_guidance": "how to tell a right reference image from a wrong one, and what to take from it.",
    "prompt_program_guidance": "how to build prompt and references: clauses, places, quoted text, ordinal phrases.",
    "failure_guards": "what the weaker attempt did that must not be repeated, and how to notice it in time.",
}
_COUNTS = {5: "five", 7: "seven"}
_TEXT = {"type": "string"}
_LIST = {"type": "array", "items": _TEXT}


def instructions(name: BundleFormatName, low: int, high: int) -> str:
    """Return what the model is asked for in one format, with bullets of `low` to `high` words."""
    layout = BUNDLE_FORMATS[name]
    key, slots = dict.fromkeys(("trigger", layout.summary), "..."), {slot: ["..."] for slot in layout.slots}
    return INSTRUCTIONS.format(
        count=_COUNTS[len(slots)],
        slots="\n".join(f"- {slot}: {_MEANINGS[slot]}" for slot in slots),
        low=low,
        high=high,
        summary=layout.summary,
        example=json.dumps(_grouped(layout, key, slots)),
    )


def answer_schema(name: BundleFormatName) -> dict[str, Any]:
    """Return the JSON schema of an answer in one format, in the subset that servers accept as strict."""
    layout = BUNDLE_FORMATS[name]
    key, slots = dict.fromkeys(("trigger", layout.summary), _TEXT), dict.fromkeys(layout.slots, _LIST)
    if not layout.groups:
        return _object({**key, **slots})
    return _object(dict(zip(layout.groups, (_object(key), _object(slots)), strict=True)))


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _grouped(layout: BundleFormat, key: Mapping[str, Any], slots: Mapping[str, Any]) -> dict[str, Any]:
    return dict(zip(layout.groups, (key, slots), strict=True)) if layout.groups else {**key, **slots}


class EndpointSummariserConfig(EndpointChatConfig):
    """Configure the model that compares, and the limits of its answers."""

    format: BundleFormatName = BundleFormatName.FIVE_SLOTS
    """Slots of the bundles: `five-slots` or `decision-guide`."""
    max_tokens: int = Field(default=2048, ge=64)
    """Tokens of one answer."""
    repairs: int = Field(default=2, ge=0)
    """Retries after a malformed answer; each sends the error to the model."""
    min_words: int = Field(default=12, ge=1)
    """Least words of a bullet."""
    max_words: int = Field(default=22, ge=1)
    """Words of a bullet."""
    max_bullets: int = Field(default=4, ge=1)
    """Bullets of a slot; further ones are left out."""
    turn_chars: int = Field(default=1200, ge=80)
    """Most characters of one turn, and of one observation, that the model reads."""
    attempt_chars: int = Field(default=12_000, ge=400)
    """How much of each attempt the model reads."""

    @model_validator(mode="after")
    def _lengths(self) -> EndpointSummariserConfig:
        if self.min_words > self.max_words:
            raise ValueError(f"no bullet can satisfy min_words={self.min_words} and max_words={self.max_words}")
        return self


@cache
def _answer_record(name: BundleFormatName) -> type[Record]:
    """Return the valid form of an answer, without its groups; a missing slot is an empty one."""
    layout = BUNDLE_FORMATS[name]
    fields: dict[str, Any] = dict.fromkeys(("trigger", layout.summary), (str, ""))
    fields |= dict.fromkeys(layout.slots, (tuple[str, ...], ()))
    return create_model("Answer", __base__=Record, **fields)


def _ungrouped(answer: Mapping[str, Any], layout: BundleFormat) -> dict[str, Any]:
    """Return an answer as one flat object. Raises ValueError for a group that is no object."""
    flat = {name: value for name, value in answer.items() if name not in layout.groups}
    for group in layout.groups:
        if not isinstance(inside := answer.get(group, {}), Mapping):
            raise ValueError(f"{group} must be an object")
        flat |= inside
    return flat


@dataclass(frozen=True)
class _Checked:
    """Hold the usable part of an answer, and the faults of the rest."""

    usable: Experience | None
    faults: tuple[str, ...]


class EndpointSummariser:
    """Compare pairs with `POST {url}/chat/completions`, one conversation a pair.

    The model must repair an answer that is not JSON, breaks the schema, or has a bullet that is too long or reveals an
    answer. It receives the faults, at most `repairs` times. The good bullets of the last answer are kept, if there are
    any.
    """

    Config = EndpointSummariserConfig

    def __init__(self, config: EndpointSummariserConfig) -> None:
        """Keep the config; nothing is called yet."""
        self.config = config
        self.identity = f"endpoint-summariser/1:{config.model}{format_suffix(config.format)}"
        self._chat = EndpointChat(config, "summariser")

    async def compare(self, request: Request, pair: Pair) -> Experience:
        """Return the bundle of a pair.

        Raises:
            InfraFailure: when the endpoint gave up, or no answer had a single usable bullet.
        """
        config = self.config
        secrets = secrets_of(request, (pair.best, pair.worst))
        text = pair_text(request, pair, turn_chars=config.turn_chars, attempt_chars=config.attempt_chars)
        messages: list[ChatMessage] = [
            text_message("system", instructions(config.format, config.min_words, config.max_words)),
            text_message("user", text),
        ]
        usable: Experience | None = None
        faults: tuple[str, ...] = ()
        for _ in range(1 + config.repairs):
            reply = await self._chat.chat(messages, max_tokens=config.max_tokens, schema=answer_schema(config.format))
            checked = self._check(reply, secrets)
            usable, faults = checked.usable or usable, checked.faults
            if not faults:
                break
            messages = [*messages[:2], text_message("assistant", reply), complaint(faults)]
        if usable is None:
            raise UnusableAnswer(
                f"{self.identity} returned no usable answer in {1 + config.repairs}: {'; '.join(faults[:3])}"
            )
        return self._bundle(usable, request, pair)

    def _bundle(self, usable: Experience, request: Request, pair: Pair) -> Experience:
        """Return a bundle with its provenance; the rules fill empty parts of the key."""
        head = bundle_head(request, pair)
        written = {k: v for k in ("trigger", "summary") if (v := getattr(usable, k))}
        attempts = (pair.best, pair.worst)
        clean = without_leaks(usable.model_copy(update={**head, **written}), request, attempts)
        if clean.trigger:
            return clean
        return without_leaks(clean.model_copy(update={"trigger": head["trigger"]}), request, attempts)

    def _check(self, reply: str, secrets: Secrets) -> _Checked:
        if isinstance(reply, CutAnswer):
            return _Checked(None, (f"cut off before its end (at most {self.config.max_tokens} tokens)",))
        layout = BUNDLE_FORMATS[self.config.format]
        try:
            answer = dict(_answer_record(self.config.format).model_validate(_ungrouped(salvage_object(reply), layout)))
        except ValidationError as error:
            listed = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
            return _Checked(None, tuple(listed))
        except ValueError as error:
            return _Checked(None, (f"not JSON: {error}",))
        slots: dict[str, tuple[str, ...]] = {}
        faults: list[str] = []
        for slot in layout.slots:
            good = []
            for bullet in answer[slot]:
                line = " ".join(bullet.split())
                fault = self._fault(line, secrets)
                faults += [f"{slot}: {fault}: {line!r}"] if fault else []
                good += [] if fault else [line]
            slots[slot] = tuple(dict.fromkeys(good))[: self.config.max_bullets]
        if not any(slots.values()):
            return _Checked(None, tuple(faults) or ("every slot is empty",))
        key = {"trigger": " ".join(answer["trigger"].split()), "summary": " ".join(answer[layout.summary].split())}
        return _Checked(Experience(format=self.config.format, guidance=slots, **key), tuple(faults))

    def _fault(self, bullet: str, secrets: Secrets) -> str:
        """Return the fault of a bullet, "" for a good one."""
        words = len(bullet.removeprefix("Standard:").split())
        if not self.config.min_words <= words <= self.config.max_words:
            return f"{words} words instead of {self.config.min_words} to {self.config.max_words}"
        leak = find_leak(bullet, secrets)
        return f"holds the {leak.kind.value} {leak.value!r}" if leak else ""
