"""Settings of guided re-draws, and re-draws as the learner gets them. Importing this module is cheap: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import Field, model_validator

from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.records.base import Config


class StuckWhen(StrEnum):
    """Name the groups that count as stuck: GRPO learns little or nothing from them."""

    NO_PAIR = "no_pair"
    """No two rewards differ by `experience.min_gap`, a failure of the policy having 0; this includes the two below."""
    ZERO_VARIANCE = "zero_variance"
    """All rewards are equal."""
    ALL_INVALID = "all_invalid"
    """No attempt was judged: each is a failure of the policy."""


class RedrawCorrection(StrEnum):
    """Select how the policy learns, without the guide, from attempts that were sampled with it (see `learning.redraws`)."""

    IMPORTANCE = "importance"
    """The policy gradient of every re-draw, each token weighted by min(pi / mu, cap): pi without the guide, mu with it."""
    WINNERS = "winners"
    """Cross-entropy of the re-draws that beat the best attempt of their group by `min_gap`."""


class RedrawConfig(Config):
    """Configure guided re-draws: further attempts at the requests of stuck groups, sampled with the recalled guide.

    A stuck group compares nothing, and its request recalls what others taught. The re-draws are learned from without the
    guide in their context. This is a departure from the paper, in which experience is never sampled with.
    """

    draws: int = Field(default=0, ge=0)
    """Re-draws of a stuck group whose request recalls a bundle; 0 draws none."""
    stuck: StuckWhen = StuckWhen.NO_PAIR
    """Which groups are stuck."""
    below: float = Field(default=1.0, gt=0, le=1)
    """A group whose best attempt reaches this reward is solved, not stuck."""
    correction: RedrawCorrection = RedrawCorrection.IMPORTANCE
    """How the policy learns from them."""
    coefficient: float = Field(default=1.0, ge=0)
    """Weight of their loss; 1 weighs a token as one of the policy loss with advantage 1."""
    cap: float = Field(default=2.0, gt=0)
    """Greatest weight pi / mu of a token in the `importance` form; the share of tokens above it is logged."""
    min_gap: float | None = Field(default=None, gt=0, le=1)
    """Reward by which a winner beats the best attempt of its group; None: `experience.min_gap`."""

    @model_validator(mode="after")
    def _gap_belongs_to_winners(self) -> RedrawConfig:
        if self.min_gap is not None and self.correction is not RedrawCorrection.WINNERS:
            raise ValueError(
                f"redraws.min_gap={self.min_gap} belongs to correction 'winners', correction is {self.correction.value!r}"
            )
        return self


@dataclass(frozen=True)
class GuidedDraws:
    """Hold the re-draws of a step for the learner.

    Attributes:
        sequences: each without its guide; `logprobs` are those of the guided context, which is its `teacher`, and
            `advantage` is against the attempts of its group. Under `winners` these are the winners alone.
        config: the settings.
    """

    sequences: Sequence[TrainSequence]
    config: RedrawConfig
