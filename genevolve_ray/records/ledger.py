"""The token ledger: the learner trains on exactly the tokens that the engine consumed and produced.

Shape legend: T tokens of one trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from genevolve_ray.errors import GenevolveError
from genevolve_ray.records.base import Record


class SpanKind(StrEnum):
    """Name the kind of a span of tokens."""

    PROMPT = "prompt"
    """The template's tokens before the first policy token."""
    THINK = "think"
    """Policy: reasoning, including its tags."""
    TOOL_CALL = "tool_call"
    """Policy: a tool call, including its tags."""
    ANSWER = "answer"
    """Policy: the final program, including its tags."""
    TEXT = "text"
    """Policy: anything else it wrote (malformed turns)."""
    OBSERVATION = "observation"
    """The template's tokens of a message returned to the policy."""


POLICY_KINDS = frozenset({SpanKind.THINK, SpanKind.TOOL_CALL, SpanKind.ANSWER, SpanKind.TEXT})
CONTEXT_VERSION = -1


class MediaMismatch(GenevolveError, ValueError):
    """Report a picture that does not fit its placeholder tokens, or that may not be taken; names the span."""


class Span(Record):
    """Mark tokens [start, end) of one kind; spans tile the ledger."""

    kind: SpanKind
    start: int
    end: int


class MediaSpan(Record):
    """Mark placeholder tokens [start, end) of one image observation: content hash and patch grid (t, h, w)."""

    start: int
    end: int
    sha256: str
    grid: tuple[int, int, int]

    def moved(self, tokens: int) -> MediaSpan:
        """Return the same picture `tokens` later."""
        return self.model_copy(update={"start": self.start + tokens, "end": self.end + tokens})


@dataclass
class TokenLedger:
    """Record the tokens of one trajectory; append-only.

    Attributes:
        tokens: token ids, length T.
        policy_mask: True where the policy sampled the token.
        logprobs: behavior log-probs (natural log, at the sampling temperature); 0.0 on context tokens.
        versions: policy version that sampled each token; -1 on context tokens.
        spans: tiles [0, T) in order.
        media: image placeholders inside context spans, in order; empty while observations are text.
    """

    tokens: list[int] = field(default_factory=list)
    policy_mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    media: list[MediaSpan] = field(default_factory=list)

    def __len__(self) -> int:
        """Return T."""
        return len(self.tokens)

    def append_context(self, tokens: Sequence[int], kind: SpanKind, media: Sequence[MediaSpan] = ()) -> None:
        """Append template tokens (prompt or observation). An empty sequence adds nothing.

        `media` are the pictures among them; their places count from the first of these tokens.

        Raises:
            ValueError: when the kind belongs to the policy.
        """
        if kind in POLICY_KINDS:
            raise ValueError(f"context tokens cannot be of policy kind {kind.value!r}")
        n, before = len(tokens), len(self.tokens)
        self.media += (span.moved(before) for span in media)
        self._append(tokens, [False] * n, [0.0] * n, [CONTEXT_VERSION] * n, kind)

    def append_policy(
        self, tokens: Sequence[int], logprobs: Sequence[float], versions: Sequence[int], kind: SpanKind
    ) -> None:
        """Append sampled tokens with their behavior log-probs and policy versions.

        Raises:
            ValueError: when lengths differ, a version is negative, or the kind is a context kind.
        """
        if kind not in POLICY_KINDS:
            raise ValueError(f"policy tokens cannot be of context kind {kind.value!r}")
        if not len(tokens) == len(logprobs) == len(versions):
            raise ValueError(f"{len(tokens)} tokens, {len(logprobs)} log-probs, {len(versions)} versions")
        if any(v < 0 for v in versions):
            raise ValueError(f"policy versions must be >= 0, got {min(versions)}")
        self._append(tokens, [True] * len(tokens), logprobs, versions, kind)

    def _append(
        self,
        tokens: Sequence[int],
        mask: Sequence[bool],
        logprobs: Sequence[float],
        versions: Sequence[int],
        kind: SpanKind,
    ) -> None:
        if not tokens:
            return
        start = len(self.tokens)
        self.tokens.extend(tokens)
        self.policy_mask.extend(mask)
        self.logprobs.extend(logprobs)
        self.versions.extend(versions)
        self.spans.append(Span(kind=kind, start=start, end=len(self.tokens)))

    @property
    def policy_tokens(self) -> int:
        """Number of sampled tokens."""
        return sum(self.policy_mask)

    @property
    def oldest_version(self) -> int | None:
        """Smallest policy version among sampled tokens, None before the first."""
        return min((v for v, m in zip(self.versions, self.policy_mask, strict=True) if m), default=None)

    def without(self, start: int, end: int) -> TokenLedger:
        """Return a ledger without the tokens [start, end), which lie inside one span of the context and show no picture.

        Raises:
            ValueError: when they do not.
        """
        inside = [s for s in self.spans if s.start <= start and end <= s.end and s.kind not in POLICY_KINDS]
        shown = [m for m in self.media if m.start < end and start < m.end]
        if not 0 <= start <= end or not inside or shown:
            raise ValueError(f"tokens {start} to {end} are not text inside one span of the context")
        gone = end - start
        spans = [
            span.model_copy(
                update={
                    "start": span.start - gone * (span.start >= end and span is not inside[0]),
                    "end": span.end - gone * (span.end >= end),
                }
            )
            for span in self.spans
        ]
        return TokenLedger(
            self.tokens[:start] + self.tokens[end:],
            self.policy_mask[:start] + self.policy_mask[end:],
            self.logprobs[:start] + self.logprobs[end:],
            self.versions[:start] + self.versions[end:],
            spans=[span for span in spans if span.start < span.end],
            media=[m if m.end <= start else m.moved(-gone) for m in self.media],
        )

    def check(self) -> None:
        """Check the invariants. Raises ValueError naming the violated one."""
        n = len(self.tokens)
        columns: dict[str, Sequence[object]] = {
            "policy_mask": self.policy_mask,
            "logprobs": self.logprobs,
            "versions": self.versions,
        }
        for name, column in columns.items():
            if len(column) != n:
                raise ValueError(f"ledger column {name} has {len(column)} entries for {n} tokens")
        position = 0
        for span in self.spans:
            if span.start != position or span.end <= span.start:
                raise ValueError(f"span {span} does not continue the tiling at {position}")
            if set(self.policy_mask[span.start : span.end]) != {span.kind in POLICY_KINDS}:
                raise ValueError(f"span {span} disagrees with the policy mask")
            position = span.end
        if position != n:
            raise ValueError(f"spans cover {position} of {n} tokens")
        self._check_media()

    def _check_media(self) -> None:
        position = 0
        for image in self.media:
            if not position <= image.start < image.end <= len(self.tokens):
                raise ValueError(f"picture {image} is out of order, or outside the {len(self.tokens)} tokens")
            if any(self.policy_mask[image.start : image.end]):
                raise ValueError(f"picture {image} has tokens of the policy")
            if not any(span.start <= image.start and image.end <= span.end for span in self.spans):
                raise ValueError(f"picture {image} is in more than one span")
            position = image.end
