"""The summarizer over any OpenAI-style chat endpoint.

It uses a JSON schema, temperature 0, and bounded repair of bad answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError, model_validator

from genevolve_ray.engines.chat_endpoint import EndpointChat, EndpointChatConfig, complaint, text_message
from genevolve_ray.engines.protocol import ChatMessage, CutAnswer
from genevolve_ray.judges.reading import salvage_object
from genevolve_ray.judges.summariser import bundle_head
from genevolve_ray.judges.transcript import pair_text
from genevolve_ray.records.base import Record
from genevolve_ray.records.experience import SLOTS, Experience
from genevolve_ray.records.leaks import Secrets, find_leak, secrets_of, without_leaks
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Pair
from genevolve_ray.remote.client import UnusableAnswer

INSTRUCTIONS = """\
You compare two attempts of an image-generation agent at the same request. The agent may search texts, search images and \
read skill guides, then writes a prompt and picks reference images for a generator. One attempt earned a higher reward.

Say what an agent that meets ANOTHER request of this sort should do. Write guidance in five slots:
- search_strategy: what to search for, when, and what not to.
- knowledge_activation: which skill guides to read or leave unread, by the name of the guide.
- reference_selection: how to tell a right reference image from a wrong one, and how to bind it.
- prompt_construction: how to build the prompt: clauses, places, quoted text, ordinal phrases for references.
- failure_avoidance: what the weaker attempt did that must not be repeated.

Rules for every bullet:
- One short imperative sentence of {low} to {high} words.
- Behaviour only. Nothing of this request may appear: no proper name, no count, no quoted text, no image id, no link.
- Where the two attempts do not differ, keep what the better one did and begin the bullet with "Standard: ".
- One to three bullets in each slot; a slot may stay empty where there is nothing to say.

"trigger" says in a few words which sort of request this is; "summary" says what the request asks for. Both follow the \
same rule: no names, counts or texts of the request.

Reply with one JSON object and nothing else:
{{"trigger": "...", "summary": "...", "search_strategy": ["..."], "knowledge_activation": ["..."], \
"reference_selection": ["..."], "prompt_construction": ["..."], "failure_avoidance": ["..."]}}
"""

_TEXT = {"type": "string"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"trigger": _TEXT, "summary": _TEXT, **{s: {"type": "array", "items": _TEXT} for s in SLOTS}},
    "required": ["trigger", "summary", *SLOTS],
    "additionalProperties": False,
}
"""The answer's JSON schema, in the subset that servers accept as strict."""


class EndpointSummariserConfig(EndpointChatConfig):
    """Configure the model that compares, and the limits of its answers."""

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


class _Answer(Record):
    """Define the valid form of an answer; a missing slot is an empty one."""

    trigger: str = ""
    summary: str = ""
    search_strategy: tuple[str, ...] = ()
    knowledge_activation: tuple[str, ...] = ()
    reference_selection: tuple[str, ...] = ()
    prompt_construction: tuple[str, ...] = ()
    failure_avoidance: tuple[str, ...] = ()


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
        self.identity = f"endpoint-summariser/1:{config.model}"
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
            text_message("system", INSTRUCTIONS.format(low=config.min_words, high=config.max_words)),
            text_message("user", text),
        ]
        usable: Experience | None = None
        faults: tuple[str, ...] = ()
        for _ in range(1 + config.repairs):
            reply = await self._chat.chat(messages, max_tokens=config.max_tokens, schema=SCHEMA)
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
        try:
            answer = _Answer.model_validate(salvage_object(reply))
        except ValidationError as error:
            listed = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
            return _Checked(None, tuple(listed))
        except ValueError as error:
            return _Checked(None, (f"not JSON: {error}",))
        slots: dict[str, tuple[str, ...]] = {}
        faults: list[str] = []
        for slot in SLOTS:
            good = []
            for bullet in getattr(answer, slot):
                line = " ".join(bullet.split())
                fault = self._fault(line, secrets)
                faults += [f"{slot}: {fault}: {line!r}"] if fault else []
                good += [] if fault else [line]
            slots[slot] = tuple(dict.fromkeys(good))[: self.config.max_bullets]
        if not any(slots.values()):
            return _Checked(None, tuple(faults) or ("every slot is empty",))
        key = {"trigger": " ".join(answer.trigger.split()), "summary": " ".join(answer.summary.split())}
        return _Checked(Experience(**key).model_copy(update=slots), tuple(faults))

    def _fault(self, bullet: str, secrets: Secrets) -> str:
        """Return the fault of a bullet, "" for a good one."""
        words = len(bullet.removeprefix("Standard:").split())
        if not self.config.min_words <= words <= self.config.max_words:
            return f"{words} words instead of {self.config.min_words} to {self.config.max_words}"
        leak = find_leak(bullet, secrets)
        return f"holds the {leak.kind.value} {leak.value!r}" if leak else ""
