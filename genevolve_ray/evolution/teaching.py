"""Context of the teacher: a student's trajectory with retrieved experience in its system prompt, token for token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.profile import ProtocolProfile, guide_heads, guide_place, guide_text
from genevolve_ray.errors import GenevolveError
from genevolve_ray.learning.batch import ImageInputs, TeacherContext
from genevolve_ray.records.experience import Experience
from genevolve_ray.records.ledger import SpanKind, TokenLedger
from genevolve_ray.records.trajectory import Trajectory


class ExperienceLeakError(GenevolveError, RuntimeError):
    """Signal that a student's context holds experience.

    The student's own learning could then not be separated from the guidance.
    """


class TeacherPatch:
    """Build teacher contexts under one chat template and one protocol profile.

    The guide is inserted before the tool definitions, at a token boundary; everything after it is the student's own.
    """

    def __init__(
        self, chat: ChatFormat, profile: ProtocolProfile, max_tokens: int, gate_kinds: Collection[str] = ()
    ) -> None:
        """Find the insertion point of the guide.

        Args:
            chat: the policy's template.
            profile: the profile that trajectories were played under.
            max_tokens: longest context that the teacher can score.
            gate_kinds: kinds of span that may be taught; empty means all.
        """
        self._chat, self._profile, self._limit = chat, profile, max_tokens
        self._kinds = frozenset(SpanKind(kind) for kind in gate_kinds)
        self._start = guide_place(profile)
        self._before = chat.system_ids(self._start)
        self._heads = [chat.text_ids(head) for head in guide_heads(profile)]

    def check_student(self, trajectory: Trajectory) -> None:
        """Check that the student's context holds no experience. Raises ExperienceLeakError naming the trajectory."""
        place = len(self._before_guide(trajectory.ledger))
        tokens = trajectory.ledger.tokens
        if any(tokens[place : place + len(head)] == head for head in self._heads):
            raise ExperienceLeakError(f"trajectory {trajectory.key} was sampled with experience in its context")

    def context(
        self, trajectory: Trajectory, experience: Experience, images: ImageInputs | None = None
    ) -> TeacherContext | None:
        """Return the teacher's context of a trajectory, None when it is longer than the teacher can score.

        Its pictures are the student's own `images`. Their tokens come later by the length of the guide, and the policy
        counts positions from the tokens themselves.

        Raises:
            PatchError: when the insertion point is not at a boundary of the student's tokens.
        """
        self.check_student(trajectory)
        ledger, guide = trajectory.ledger, self._chat.text_ids(guide_text(self._profile, experience))
        if len(ledger) + len(guide) > self._limit:
            return None
        before = self._before_guide(ledger)
        place = len(before)
        mask = [*ledger.policy_mask[:place], *([False] * len(guide)), *ledger.policy_mask[place:]]
        return TeacherContext(insert_guide(ledger.tokens, before, guide), mask, self._gate(trajectory), images)

    def unguided(self, trajectory: Trajectory, experience: Experience) -> Trajectory:
        """Return a trajectory that was sampled with a guide, with a ledger without it: the student's own context.

        The log-probs stay those of the guided context.

        Raises:
            PatchError: when the context does not hold this guide at its place, token for token.
            ExperienceLeakError: when there is still experience in the context without it.
        """
        ledger, guide = trajectory.ledger, self._chat.text_ids(guide_text(self._profile, experience))
        before = self._before_guide(ledger)
        tokens = remove_guide(ledger.tokens, before, guide)
        student = replace(trajectory, ledger=ledger.without(len(before), len(before) + len(guide)))
        if student.ledger.tokens != tokens or insert_guide(tokens, before, guide) != ledger.tokens:
            raise PatchError(f"trajectory {trajectory.key} is not its context without the guide, token for token")
        self.check_student(student)
        return student

    def _before_guide(self, ledger: TokenLedger) -> list[int]:
        """Return the student's own tokens before the guide.

        A template may print text that changes, such as a date, so the place is found in the student's own prompt.
        Where it is not found, the result is the template's tokens, which then do not match.
        """
        if ledger.tokens[: len(self._before)] == self._before:
            return self._before
        prompt = ledger.tokens[: ledger.policy_mask.index(True)] if True in ledger.policy_mask else ledger.tokens
        place = self._chat.length_through(prompt, self._start.lstrip())
        return self._before if place is None else ledger.tokens[:place]

    def _gate(self, trajectory: Trajectory) -> list[bool]:
        if not self._kinds:
            return []
        ledger = trajectory.ledger
        kinds = [span.kind for span in ledger.spans for _ in range(span.start, span.end)]
        return [kind in self._kinds for kind, wanted in zip(kinds, ledger.policy_mask, strict=True) if wanted]


class PatchError(GenevolveError, ValueError):
    """Signal that guidance cannot be inserted; the message names the place where the tokens disagree."""


def insert_guide(tokens: Sequence[int], before: Sequence[int], guide: Sequence[int]) -> list[int]:
    """Return the tokens with `guide` inserted after `before`, with which they must begin.

    All ids after the insertion are the student's own, so the teacher scores exactly the tokens that the student wrote.

    Raises:
        PatchError: when the tokens do not begin with `before` (the place is not a token boundary), or when the guidance
            is already there.
    """
    place = len(before)
    if list(tokens[:place]) != list(before):
        pairs = zip(tokens, before, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), place))
        raise PatchError(
            f"the context differs from the system prompt's {place} tokens at token {at}: not a token boundary"
        )
    if guide and list(tokens[place : place + len(guide)]) == list(guide):
        raise PatchError("the guidance is already in the context: a student's context never holds experience")
    return [*before, *guide, *tokens[place:]]


def remove_guide(tokens: Sequence[int], before: Sequence[int], guide: Sequence[int]) -> list[int]:
    """Return the tokens without the `guide` that follows `before`: the inverse of `insert_guide`.

    Raises:
        PatchError: when the tokens do not begin with `before` and `guide`, naming the place; an empty guide is none.
    """
    known = [*before, *guide]
    if not guide or list(tokens[: len(known)]) != known:
        at = next(
            (i for i, (a, b) in enumerate(zip(tokens, known, strict=False)) if a != b), min(len(tokens), len(known))
        )
        raise PatchError(
            f"the context does not hold the guide of {len(guide)} tokens after {len(before)}: see token {at}"
        )
    return [*before, *tokens[len(known) :]]
