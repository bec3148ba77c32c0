"""Questions to tools and their answers as a corpus keeps them: canonical JSON, from which the same observation returns.

A question is a tool with canonical arguments. A call of `search` with several queries is one question for each query, where
its tool answers them one by one, so that another grouping of the same queries finds the same answers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from genevolve_ray.errors import ToolArgumentError, UserFault
from genevolve_ray.records.base import Record
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import (
    ImageHit,
    ImageObservation,
    ImageSearchObservation,
    Observation,
    Pictured,
    SearchObservation,
    SkillObservation,
    TextHit,
    TextObservation,
)
from genevolve_ray.tools.image_search import ImageSearchArguments, ImageSearchTool
from genevolve_ray.tools.knowledge import KnowledgeTool
from genevolve_ray.tools.protocol import Tool, ToolCard, read_arguments
from genevolve_ray.tools.search import SearchArguments, SearchTool

KINDS: Mapping[str, type[Observation]] = {
    "search": SearchObservation,
    "image_search": ImageSearchObservation,
    "skill": SkillObservation,
    "text": TextObservation,
    "images": ImageObservation,
}
"""Names of the kinds of observations."""
REFUSAL = "refusal"
"""Kind of an answer that is no observation: the message with which the tool refused the arguments."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
MEDIA_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/tiff"})
"""Types of the pictures of a corpus; the name of a file ends in the part after the slash."""


class FrozenCorpusFault(UserFault, ValueError):
    """Signal a corpus that cannot be made or used; the message names the file and what is wrong with it."""


class AnswerForm(StrEnum):
    """Name the way in which the calls of a tool become questions."""

    SEARCH = "search"
    """Text search: one question for each query, with its number of results."""
    IMAGE_SEARCH = "image_search"
    """Image search: one question, with its number of results."""
    SKILLS = "skills"
    """Skills: their texts, whatever the request."""
    EXACT = "exact"
    """Any other tool: one question, with the arguments as they are."""


_FORMS: Mapping[AnswerForm, type[Observation]] = {
    AnswerForm.SEARCH: SearchObservation,
    AnswerForm.IMAGE_SEARCH: ImageSearchObservation,
    AnswerForm.SKILLS: SkillObservation,
}


class AnsweringTool(Record):
    """Describe a tool whose answers are recorded: its card, and how its calls become questions."""

    card: ToolCard
    form: AnswerForm
    default_top_k: int | None = None
    """Results of a search for which the policy names no number; None for other tools."""

    @classmethod
    def of(cls, tool: Tool) -> AnsweringTool:
        """Return the description of a tool."""
        top_k = getattr(tool, "default_top_k", None)
        form = AnswerForm.EXACT
        if isinstance(tool, KnowledgeTool):
            form = AnswerForm.SKILLS
        elif isinstance(top_k, int) and tool.name in (SearchTool.name, ImageSearchTool.name):
            form = AnswerForm(tool.name)
        return cls(card=ToolCard.of(tool), form=form, default_top_k=None if form is AnswerForm.EXACT else top_k)

    @property
    def name(self) -> str:
        """The name by which the policy calls it."""
        return self.card.name

    def questions(self, arguments: Mapping[str, Any]) -> list[Question]:
        """Return the questions of a call. Raises ToolArgumentError for arguments that a search does not accept."""
        if self.form is AnswerForm.EXACT or self.form is AnswerForm.SKILLS:
            return [Question.of(self.name, arguments)]
        given = {"top_k": self.default_top_k} | dict(arguments)
        if self.form is AnswerForm.IMAGE_SEARCH:
            wanted = read_arguments(ImageSearchArguments, given)
            return [self.asked(wanted.query, wanted.top_k)]
        several = read_arguments(SearchArguments, given)
        return [self.asked(query, several.top_k) for query in several.queries]

    def observation(self, answer: RecordedAnswer) -> Observation:
        """Return an answer of this tool as an observation of the form that its calls have.

        Raises:
            ToolArgumentError: where the tool refused the arguments.
            FrozenCorpusFault: for an answer that cannot be read, or of another form.
        """
        observation = answer.observation()
        expected = _FORMS.get(self.form)
        several = isinstance(observation, SearchObservation) and len(observation.results) != 1
        if expected is not None and (not isinstance(observation, expected) or several):
            raise FrozenCorpusFault(f"{answer.kind} is no answer to one question of {self.name}")
        return observation

    def asked(self, query: str, top_k: int) -> Question:
        """Return the question of a search for one query."""
        named = {"queries": [query]} if self.form is AnswerForm.SEARCH else {"query": query}
        return Question.of(self.name, {**named, "top_k": top_k})


@dataclass(frozen=True)
class Question:
    """Hold a tool's name and canonical arguments: JSON in ASCII with sorted keys and without spaces."""

    tool: str
    arguments: str

    @classmethod
    def of(cls, tool: str, arguments: Mapping[str, Any]) -> Question:
        """Return the question of a call."""
        return cls(tool, canonical(arguments))

    @property
    def sha256(self) -> str:
        """The hash of the question, as hexadecimal text."""
        return hashlib.sha256(canonical({"tool": self.tool, "arguments": self.arguments}).encode()).hexdigest()

    @property
    def call(self) -> dict[str, Any]:
        """The arguments of a call that asks it. Raises ValueError where they are no JSON object."""
        found = json.loads(self.arguments)
        if not isinstance(found, dict):
            raise ValueError(f"arguments are no JSON object: {self.arguments[:60]}")
        return found

    @property
    def words(self) -> str:
        """The texts among the arguments, for a search of similar questions."""
        return " ".join(_texts(self.call))


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in _texts(one)]


def canonical(value: Any) -> str:
    """Return JSON in one spelling: ASCII, sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class RecordedAnswer:
    """Hold what a tool answered: the kind, and the observation as canonical JSON."""

    kind: str
    body: str

    @classmethod
    def of(cls, observation: Observation) -> RecordedAnswer:
        """Return the answer that an observation is, without what a profile shows of its pictures."""
        if isinstance(observation, Pictured):
            observation = observation.model_copy(update={"hits": tuple(hit.unshown() for hit in observation.hits)})
        # A subclass is recorded as the kind that the policy reads: what a class of a plug-in adds cannot be read back.
        kind, known = next((name, known) for name, known in KINDS.items() if isinstance(observation, known))
        return cls(kind, canonical(observation.model_dump(include=set(known.model_fields))))

    @classmethod
    def refusal(cls, message: str) -> RecordedAnswer:
        """Return the answer to arguments that the tool refuses."""
        return cls(REFUSAL, canonical({"message": message}))

    def observation(self) -> Observation:
        """Return the observation.

        Raises:
            ToolArgumentError: where the tool refused the arguments.
            FrozenCorpusFault: for an answer that is no observation, or names a picture in a way that no store does.
        """
        try:
            found = json.loads(self.body)
            if self.kind == REFUSAL:
                raise ToolArgumentError(str(found["message"]))
            # Tuples are lists in JSON, so the types of what is inside are checked less strictly.
            observation: Observation = KINDS[self.kind].model_validate(found)
        except ToolArgumentError:
            raise
        except ValidationError as error:
            first = error.errors()[0]
            raise FrozenCorpusFault(f"{'.'.join(map(str, first['loc'])) or self.kind}: {first['msg']}") from error
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise FrozenCorpusFault(f"no answer of the kind {self.kind!r}: {type(error).__name__}") from error
        for ref in pictures_of(observation):
            check_reference(ref)
        return observation

    @property
    def hits(self) -> tuple[TextHit | ImageHit, ...]:
        """The hits of a search, or the pictures of another tool; none of a refusal. Raises FrozenCorpusFault."""
        match self._observation_or_none():
            case SearchObservation(results=results):
                return tuple(hit for result in results for hit in result.hits)
            case ImageSearchObservation(hits=hits) | ImageObservation(hits=hits):
                return hits
        return ()

    @property
    def failed(self) -> bool:
        """True if the tool answered with an error that the policy reads. Raises FrozenCorpusFault."""
        match self._observation_or_none():
            case None:
                return True
            case SearchObservation(results=results):
                return any(result.error for result in results)
            case SkillObservation():
                return False
            case other:
                return bool(other.error)

    @property
    def pictures(self) -> list[ImageRef]:
        """The pictures, in order. Raises FrozenCorpusFault."""
        observation = self._observation_or_none()
        return [] if observation is None else pictures_of(observation)

    def _observation_or_none(self) -> Observation | None:
        try:
            return self.observation()
        except ToolArgumentError:
            return None


def pictures_of(observation: Observation) -> list[ImageRef]:
    """Return the pictures of an observation, in order."""
    return [hit.image for hit in observation.hits] if isinstance(observation, Pictured) else []


def check_reference(ref: ImageRef) -> None:
    """Check that a reference names a file of an image store and nothing else. Raises FrozenCorpusFault."""
    if not _SHA256.fullmatch(ref.sha256) or ref.media_type not in MEDIA_TYPES:
        raise FrozenCorpusFault(f"{ref.sha256[:80]!r} of type {ref.media_type[:40]!r} names no picture of a corpus")


def answers_of(
    tool: AnsweringTool, arguments: Mapping[str, Any], observation: Observation
) -> dict[Question, RecordedAnswer]:
    """Return the answers in the observation of a call, by question, without those that an outage replaced.

    There are none where the observation does not fit the call.
    """
    try:
        questions = tool.questions(arguments)
    except ToolArgumentError:
        return {}
    if tool.form is not AnswerForm.SEARCH:
        return {} if observation.outages else {questions[0]: RecordedAnswer.of(observation)}
    if not isinstance(observation, SearchObservation) or len(observation.results) != len(questions):
        return {}
    return {
        question: RecordedAnswer.of(SearchObservation(results=(result,)))
        for question, result in zip(questions, observation.results, strict=True)
        if not result.outage
    }
