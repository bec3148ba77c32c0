"""Visual experience: the lesson of a best-worst pair, as guidance without the answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

from genevolve_ray.records.base import Record


class BundleFormatName(StrEnum):
    """Name the slots into which a bundle divides its guidance."""

    FIVE_SLOTS = "five-slots"
    """The five slots of the project page (PAPER section 4)."""
    DECISION_GUIDE = "decision-guide"
    """The seven fields of reading notes of the paper (PAPER section 9)."""


@dataclass(frozen=True)
class BundleFormat:
    """Define a bundle's slots, and the names that a model writes it under.

    Attributes:
        slots: in order, the name of each slot and a short label for pages.
        title: title of the guide that a teacher reads; "" for that of the protocol profile.
        summary: name of the summary of the request in a model's answer.
        groups: names of the objects around key and guidance in a model's answer; () for one flat object.
    """

    slots: Mapping[str, str]
    title: str = ""
    summary: str = "summary"
    groups: tuple[str, str] | tuple[()] = ()


BUNDLE_FORMATS = {
    BundleFormatName.FIVE_SLOTS: BundleFormat(
        {
            "search_strategy": "Search",
            "knowledge_activation": "Knowledge",
            "reference_selection": "References",
            "prompt_construction": "Prompt",
            "failure_avoidance": "Avoid",
        }
    ),
    BundleFormatName.DECISION_GUIDE: BundleFormat(
        {
            "focus": "Focus",
            "recommended_tool_plan": "Tool plan",
            "search_query_guidance": "Queries",
            "skill_routing_guidance": "Skills",
            "reference_selection_guidance": "References",
            "prompt_program_guidance": "Prompt",
            "failure_guards": "Avoid",
        },
        title="Current-Task Decision Guide",
        summary="source_prompt_summary",
        groups=("retrieval_key", "decision_guidance"),
    ),
}
"""The formats by name."""


class Experience(Record):
    """Hold one bundle: short imperative bullets in the slots of its format, and its provenance.

    `trigger` and `summary` are the retrieval key; only the guidance is ever shown to a teacher. In JSON and YAML the
    slots may stand beside the other fields, and they are written there; the format is written where it is not
    `five-slots`. So bundles from before there were formats are read and written unchanged.
    """

    format: BundleFormatName = BundleFormatName.FIVE_SLOTS
    """Slots of the guidance: `five-slots` or `decision-guide`."""
    trigger: str = ""
    """When the guidance applies; with `summary` the text that describes the pair."""
    summary: str = ""
    """The difference of the pair in one sentence."""
    guidance: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Bullets by the name of their slot; empty slots are left out."""
    step: int = -1
    """Step whose rollouts were compared; -1: none."""
    request_id: str = ""
    """Request of the pair."""
    best: str = ""
    """Trajectory id of the better attempt."""
    worst: str = ""
    """Trajectory id of the worse attempt."""
    gap: float = 0.0
    """Difference of their rewards."""

    @property
    def layout(self) -> BundleFormat:
        """The definition of the bundle's format."""
        return BUNDLE_FORMATS[self.format]

    def guided(self, guidance: Mapping[str, Iterable[str]]) -> Experience:
        """Return the bundle with other guidance. Raises ValueError for a slot that its format does not have."""
        return Experience.model_validate({**dict(self), "guidance": {k: tuple(v) for k, v in guidance.items()}})

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: Any) -> Any:
        """Move slots that stand beside the other fields into the guidance."""
        if not isinstance(values, Mapping):
            return values
        name = values.get("format", BundleFormatName.FIVE_SLOTS)
        known = BUNDLE_FORMATS.get(BundleFormatName(name)) if name in list(BundleFormatName) else None
        beside = {name: values[name] for name in (known.slots if known else ()) if name in values}
        if not beside or not isinstance(inside := values.get("guidance", {}), Mapping):
            return values
        return {k: v for k, v in values.items() if k not in beside} | {"guidance": {**inside, **beside}}

    @model_validator(mode="after")
    def _in_the_order_of_the_format(self) -> Experience:
        slots = self.layout.slots
        if unknown := [name for name in self.guidance if name not in slots]:
            raise ValueError(
                f"guidance has slot {unknown[0]!r}, but a bundle of format {self.format.value!r} has {', '.join(slots)}"
            )
        # Frozen from the end of construction.
        object.__setattr__(self, "guidance", {name: b for name in slots if (b := self.guidance.get(name))})
        return self

    @model_serializer(mode="wrap")
    def _beside_the_other_fields(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        guidance = values.pop("guidance", {})
        if not info.exclude_defaults:
            guidance = {name: guidance.get(name, () if info.mode == "python" else []) for name in self.layout.slots}
        if self.format is BundleFormatName.FIVE_SLOTS:
            values.pop("format", None)
        head = {name: values.pop(name) for name in ("format", "trigger", "summary") if name in values}
        return {**head, **guidance, **values}


class Use(Record):
    """Record one retrieval of a bundle.

    Names the request and the step, the similarity, and whether the bundle was the request's own.
    """

    step: int
    request_id: str
    similarity: float
    own: bool


class LessonKind(StrEnum):
    """Name where the bundle of a lesson comes from."""

    OWN = "own"
    """From the rollouts of this very request in this very step."""
    REMEMBERED = "remembered"
    """From another request, or from an earlier step."""
    MERGED = "merged"
    """The majority of several near bundles."""


class Lesson(Record):
    """Represent a bundle that a request recalled in a step.

    `own`: the bundle was written from the rollouts of this request in this very step. `bundle` is its number in the
    memory, `similarity` the cosine between the key of its request and the key of this request, and `embedder` the
    identity of the embedder that measured it. `merged`: the bundle is the majority of those with these numbers, the
    nearest first; `bundle` and `similarity` are then those of the nearest.
    """

    request_id: str
    bundle: int
    experience: Experience
    similarity: float
    own: bool
    embedder: str = Field(default="", exclude_if=lambda embedder: not embedder)
    merged: tuple[int, ...] = Field(default=(), exclude_if=lambda merged: not merged)

    @property
    def kind(self) -> LessonKind:
        """The origin of the bundle."""
        if self.merged:
            return LessonKind.MERGED
        return LessonKind.OWN if self.own else LessonKind.REMEMBERED


class MovedToken(Record):
    """Represent a token on which the teacher of a step disagreed.

    Holds the token's position in the trajectory's ledger, and log pi - log q. Above 0 the teacher finds the token less
    likely than the student does, below 0 more likely.
    """

    trajectory: str
    position: int
    gap: float
