"""Parts of a step's batch: sums over them, and the one division at the end by what the whole batch counts.

All parts divide their losses by the counts of the first, since those of the whole batch are not known yet. Every loss
without a teacher divides by the same count, so that one factor on the gradient corrects this at the end. A teacher's
loss has a second count, and a step with one is therefore added as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import nn

from genevolve_ray.learning.batch import MicroBatch, TrainSequence
from genevolve_ray.learning.config import LossAggregation
from genevolve_ray.learning.streams import MAXIMA, BatchCounts


@dataclass(frozen=True)
class Sizes:
    """Hold sizes of a batch over all ranks, or of a part of one.

    Attributes:
        sequences: all of them.
        filled: those with policy tokens.
        zero_advantage: those with advantage 0.
        micro_batches: micro-batches with sequences.
        tokens: tokens of the filled sequences.
        distinct: those of them that are computed: prefixes that a micro-batch shares count once.
        places: places of the micro-batches, with padding.
        policy_tokens: tokens that enter the loss.
    """

    sequences: int = 0
    filled: int = 0
    zero_advantage: int = 0
    micro_batches: int = 0
    tokens: int = 0
    distinct: int = 0
    places: int = 0
    policy_tokens: int = 0

    @staticmethod
    def of(batches: Sequence[MicroBatch], sequences: Sequence[TrainSequence]) -> Sizes:
        """Return the sizes of sequences and of their micro-batches."""
        filled = [b for b in batches if b.indices]
        return Sizes(
            sequences=len(sequences),
            filled=sum(len(b.indices) for b in filled),
            zero_advantage=sum(s.advantage == 0 for s in sequences),
            micro_batches=len(filled),
            tokens=sum(b.tokens for b in batches),
            distinct=sum(b.distinct for b in batches),
            places=sum(b.ids_B_T.numel() for b in filled),
            policy_tokens=sum(len(b.sequence_P) for b in batches),
        )

    def __add__(self, other: Sizes) -> Sizes:
        return Sizes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def metrics(self, seconds: float, flops_per_token: float) -> dict[str, float]:
        """Return sizes and speed of all ranks.

        `shared_prefix_fraction` is the share of tokens that were not computed, because another sequence of the
        micro-batch has them in the same prefix. `model_flops_per_second` counts the tokens that were, without attention.
        """
        return {
            "sequences": float(self.sequences),
            "empty_sequences": float(self.sequences - self.filled),
            "zero_advantage_sequences": float(self.zero_advantage),
            "micro_batches": float(self.micro_batches),
            "tokens": float(self.tokens),
            "policy_tokens": float(self.policy_tokens),
            "shared_prefix_fraction": 1 - self.distinct / self.tokens,
            "padding": 1 - self.distinct / self.places,
            "seconds": seconds,
            "tokens_per_second": self.tokens / seconds,
            "model_flops_per_second": self.distinct * flops_per_token / seconds,
        }


@dataclass
class StepSums:
    """Hold what the parts of a step add up to, besides the gradients, which are on the parameters.

    Attributes:
        step: number of the step from 0.
        counts: counts of the first part that has policy tokens, by which all parts divide their losses.
        totals: sums of loss and metrics over all ranks.
        sizes: sizes of all parts.
        seconds: time of all parts, and of their teacher.
        gaps: log pi - log q per policy token of each sequence, empty where it had no teacher.
    """

    step: int
    counts: BatchCounts | None = None
    totals: dict[str, float] = field(default_factory=dict)
    sizes: Sizes = Sizes()
    seconds: float = 0.0
    seconds_teacher: float = 0.0
    gaps: list[list[float]] = field(default_factory=list)

    def divisor(self, part: BatchCounts) -> BatchCounts:
        """Return the counts that the losses of the next part divide by.

        Raises:
            ValueError: when the part or an earlier one has a teacher.
        """
        if self.counts is None:
            return part
        if part.taught or self.counts.taught:
            raise ValueError(f"step {self.step} has a teacher, so that its batch cannot be added in parts")
        return self.counts

    def add(self, part: BatchCounts, totals: Mapping[str, float]) -> None:
        """Add the sums over a part with policy tokens."""
        self.counts = self.counts or part
        for name, total in totals.items():
            before = self.totals.get(name, 0.0)
            self.totals[name] = max(before, total) if name in MAXIMA else before + total

    def count(self, aggregation: LossAggregation) -> int:
        """Return what the losses of the whole batch divide by."""
        return self.sizes.policy_tokens if aggregation is LossAggregation.TOKEN_MEAN else self.sizes.filled

    def divide(self, parameters: Sequence[nn.Parameter], aggregation: LossAggregation) -> None:
        """Divide gradients and loss by the count of all parts; where there was one part, they are already."""
        assert self.counts is not None, "no part has policy tokens"
        by_tokens = aggregation is LossAggregation.TOKEN_MEAN
        divided_by, count = self.counts.policy_tokens if by_tokens else self.counts.sequences, self.count(aggregation)
        if count == divided_by:
            return
        self.totals["loss"] *= divided_by / count
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(divided_by / count)
