"""Visual experience: the lesson of a best-worst pair, as guidance without the answers."""

from __future__ import annotations

from genevolve_ray.records.base import Record

SLOTS = ("search_strategy", "knowledge_activation", "reference_selection", "prompt_construction", "failure_avoidance")
"""The five guidance slots (PAPER section 4)."""


class Experience(Record):
    """Hold one bundle: five slots of short imperative bullets, and its provenance.

    `trigger` and `summary` are the retrieval key; only the slots are ever shown to a teacher.
    """

    trigger: str = ""
    """When the guidance applies; with `summary` the text that describes the pair."""
    summary: str = ""
    """The difference of the pair in one sentence."""
    search_strategy: tuple[str, ...] = ()
    """Bullets on what to search for, and when."""
    knowledge_activation: tuple[str, ...] = ()
    """Bullets on which skills to read."""
    reference_selection: tuple[str, ...] = ()
    """Bullets on which pictures to choose as references."""
    prompt_construction: tuple[str, ...] = ()
    """Bullets on how to write the prompt."""
    failure_avoidance: tuple[str, ...] = ()
    """Bullets on what failed."""
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

    def slots(self) -> dict[str, tuple[str, ...]]:
        """Return the non-empty guidance slots in order."""
        return {name: bullets for name in SLOTS if (bullets := getattr(self, name))}


class Use(Record):
    """Record one retrieval of a bundle.

    Names the request and the step, the similarity, and whether the bundle was the request's own.
    """

    step: int
    request_id: str
    similarity: float
    own: bool


class Lesson(Record):
    """Represent a bundle that a request recalled in a step.

    `own`: the bundle was written from the rollouts of this request in this very step. `bundle` is its number in the
    memory, `similarity` the cosine between the key of its request and the key of this request.
    """

    request_id: str
    bundle: int
    experience: Experience
    similarity: float
    own: bool


class MovedToken(Record):
    """Represent a token on which the teacher of a step disagreed.

    Holds the token's position in the trajectory's ledger, and log pi - log q. Above 0 the teacher finds the token less
    likely than the student does, below 0 more likely.
    """

    trajectory: str
    position: int
    gap: float
