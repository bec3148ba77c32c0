"""The tokens of a trajectory one by one: text, role, log-prob, advantage, mask, version and teacher gap."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.viewer.experience import Decode

LANE_TOKENS = 400
"""Tokens of one page of a lane."""
BANDS = (0.9, 0.5, 0.2, 0.05)
"""Probabilities that divide the shades of a lane: band 0 is at or above the first, band 4 below the last."""


@dataclass(frozen=True)
class LaneToken:
    """Describe one token. A value that was not stored, or that the token cannot have, is None.

    Attributes:
        position: its place in the ledger, from 0.
        token: its id.
        text: its text; None without a tokenizer.
        role: kind of its span, or `picture` for a placeholder of a picture.
        policy: the mask: whether the policy sampled it, and it is trained on.
        logprob: behavior log-prob, in nats.
        version: policy version that sampled it.
        gap: teacher gap, log pi - log q.
    """

    position: int
    token: int
    text: str | None
    role: str
    policy: bool
    logprob: float | None
    version: int | None
    gap: float | None

    @property
    def probability(self) -> float | None:
        """Probability of the token when it was sampled."""
        return None if self.logprob is None else math.exp(min(self.logprob, 0.0))

    @property
    def band(self) -> int | None:
        """Place of the probability among `BANDS`, None for a token that was not sampled."""
        share = self.probability
        return None if share is None else sum(share < limit for limit in BANDS)


@dataclass(frozen=True)
class TokenLane:
    """Hold one page of a lane; `advantage` is one number for all sampled tokens, None where there is none."""

    tokens: tuple[LaneToken, ...]
    total: int
    number: int
    advantage: float | None
    gaps: int

    @property
    def pages(self) -> int:
        """Number of pages, at least 1."""
        return max(1, math.ceil(self.total / LANE_TOKENS))


def token_lane(
    trajectory: Trajectory,
    number: int = 1,
    *,
    decode: Decode | None = None,
    advantage: float | None = None,
    gaps: Mapping[int, float] | None = None,
) -> TokenLane:
    """Return one page of the tokens of a trajectory.

    Args:
        trajectory: the trajectory.
        number: of the page, from 1; a number beyond the last is that of the last.
        decode: turns token ids into text.
        advantage: of the trajectory.
        gaps: teacher gaps by position.
    """
    ledger, known = trajectory.ledger, gaps or {}
    total = len(ledger)
    number = min(max(1, number), max(1, math.ceil(total / LANE_TOKENS)))
    first, end = (number - 1) * LANE_TOKENS, min(total, number * LANE_TOKENS)
    roles: dict[int, str] = {}
    for span in ledger.spans:
        roles |= dict.fromkeys(range(max(first, span.start), min(end, span.end)), span.kind.value)
    for media in ledger.media:
        roles |= dict.fromkeys(range(max(first, media.start), min(end, media.end)), "picture")
    tokens = []
    for position in range(first, end):
        sampled = ledger.policy_mask[position]
        token = ledger.tokens[position]
        tokens.append(
            LaneToken(
                position=position,
                token=token,
                text=decode([token]) if decode else None,
                role=roles.get(position, "").replace("_", " "),
                policy=sampled,
                logprob=ledger.logprobs[position] if sampled else None,
                version=ledger.versions[position] if sampled else None,
                gap=known.get(position),
            )
        )
    return TokenLane(tuple(tokens), total, number, advantage, len(known))
