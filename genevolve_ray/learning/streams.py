"""Token streams that the losses share, and a step's metrics from sums over tokens.

Shape legend: P policy tokens of a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from genevolve_ray.learning.batch import MicroBatch, TrainSequence
from genevolve_ray.learning.config import LossAggregation

MAXIMA = frozenset({"ratio_max", "parity_max"})
"""Metrics combined by maximum over micro-batches; all others are sums over tokens."""
_PARITIES = ("parity", "parity_images")
_ROUNDING = 1e-9
"""A tenth of thirty tokens is three, although 0.1 * 30 exceeds 3 in floating point."""
_TAUGHT = "ved_"
"""Metrics of this prefix are sums over the tokens of sequences that have a teacher."""

Scored = tuple[TrainSequence, list[float] | None]
"""A sequence and its teacher's log-probs on the policy tokens: None where it has no bundle, and empty where the teacher
reads it beside its micro-batch."""


@dataclass(frozen=True)
class TaughtTokens:
    """Hold what a teacher says about the policy tokens [P] of a micro-batch, beside which it has read.

    Attributes:
        logprobs_P: its log-probs, 0 on tokens of sequences without a bundle.
        divergence_P: the divergence from it on the tokens that the gate selects, 0 elsewhere.
    """

    logprobs_P: Tensor
    divergence_P: Tensor


@dataclass(frozen=True)
class TokenStreams:
    """Hold the inputs of the losses: one value per policy token [P] of a micro-batch, and the global normalizer.

    Attributes:
        logprobs_P: log pi at the sampling temperature; carries the gradient.
        behaviour_P: log mu, from the engine.
        advantages_P: the sequence's advantage, repeated on its tokens.
        weights_P: the sequence's loss weight, repeated on its tokens.
        sequences: non-empty sequences of the GLOBAL batch. Every loss divides by one of these global counts, so that
            the result depends neither on the micro-batch split nor on the number of ranks.
        proximal_P: log prox, where the correction needs it.
        reference_P: log-probs of the reference policy, where its coefficient is above 0.
        teacher_P: log-probs of the teacher that reads experience, 0 on tokens of sequences without a bundle.
        taught_P: True on tokens of sequences that have a bundle.
        gate_P: True on tokens of a kind that may be taught; None means all.
        sequence_P: the sequence of the micro-batch that each token belongs to.
        taught_sequences: sequences of the GLOBAL batch that have a bundle.
        current_P: True on tokens that the learning version itself has sampled; None means all.
        seeing_P: True on tokens of sequences that show pictures; None means none.
        policy_tokens: policy tokens of the GLOBAL batch.
        gated_tokens: tokens of the GLOBAL batch that VED's gate will select.
        divergence_P: the exact divergence from the teacher on tokens that VED's gate selects, 0 on others; carries
            gradient.
    """

    logprobs_P: Tensor
    behaviour_P: Tensor
    advantages_P: Tensor
    weights_P: Tensor
    sequences: int
    proximal_P: Tensor | None = None
    reference_P: Tensor | None = None
    teacher_P: Tensor | None = None
    taught_P: Tensor | None = None
    gate_P: Tensor | None = None
    sequence_P: Tensor | None = None
    taught_sequences: int = 0
    current_P: Tensor | None = None
    seeing_P: Tensor | None = None
    policy_tokens: int = 0
    gated_tokens: int = 0
    divergence_P: Tensor | None = None

    def normalizer(self, aggregation: LossAggregation) -> int:
        """Return the global count that a sum of token losses is divided by."""
        return self.policy_tokens if aggregation is LossAggregation.TOKEN_MEAN else self.sequences

    def loss_weights(self, aggregation: LossAggregation) -> Tensor:
        """Return the weights [P] of the token losses; a micro-batch has whole sequences, so that it knows their lengths.

        Raises:
            ValueError: for a mean over the tokens of a sequence where sequences are not known.
        """
        if aggregation is not LossAggregation.SEQ_MEAN_TOKEN_MEAN:
            return self.weights_P
        if self.sequence_P is None:
            raise ValueError("seq-mean-token-mean needs the sequence of each token")
        return self.weights_P * token_shares(self.sequence_P, self.weights_P.dtype)


@dataclass(frozen=True)
class BatchCounts:
    """Hold the counts of a global batch that losses divide by; every rank computes the same ones.

    Attributes:
        sequences: sequences with policy tokens.
        taught: those of them that have a teacher.
        policy_tokens: their policy tokens.
        gated_tokens: tokens that VED's gate will select.
    """

    sequences: int
    taught: int
    policy_tokens: int
    gated_tokens: int

    @staticmethod
    def of(sequences: Sequence[Scored], gate_fraction: float) -> BatchCounts:
        """Count a global batch; sequences without policy tokens do not enter."""
        kept = [(s, scores) for s, scores in sequences if s.policy_tokens]
        taught = [s for s, scores in kept if scores is not None]
        return BatchCounts(
            sequences=len(kept),
            taught=len(taught),
            policy_tokens=sum(s.policy_tokens for s, _ in kept),
            # Known before any log-prob: the gate selects by gap, but its size depends on counts alone.
            gated_tokens=sum(min(gate_size(s.policy_tokens, gate_fraction), sum(_gate(s))) for s in taught),
        )


def token_shares(sequence_P: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1 / (policy tokens of its sequence) for each token [P] of a micro-batch."""
    return torch.bincount(sequence_P).to(dtype).reciprocal()[sequence_P]


def gate_size(tokens: int, fraction: float) -> int:
    """Return ceil(fraction * tokens): the most tokens that VED's gate selects in a sequence of that many."""
    return math.ceil(fraction * tokens - _ROUNDING)


Term = Callable[[TokenStreams], tuple[Tensor, dict[str, Tensor]]]
"""One loss over the shared streams: its scalar, already normalized, and metrics as sums over the tokens."""


def token_streams(
    batch: MicroBatch,
    chosen: Sequence[Scored],
    logprobs_P: Tensor,
    reference_P: Tensor | None,
    *,
    counts: BatchCounts,
    proximal: bool,
    version: int,
    teacher: TaughtTokens | None = None,
) -> TokenStreams:
    """Return the inputs of the losses: one value per policy token of the micro-batch.

    Args:
        batch: the micro-batch.
        chosen: its sequences, in order.
        logprobs_P: log pi, with its gradient.
        reference_P: log-probs of the reference policy, where there is one.
        counts: those of the global batch.
        proximal: whether the correction needs the policy's log-probs before the step.
        version: the policy version that learns.
        teacher: what a teacher that read beside the micro-batch says; by default its log-probs come with the sequences.
    """
    column = partial(torch.tensor, dtype=logprobs_P.dtype, device=logprobs_P.device)
    flags = partial(torch.tensor, dtype=torch.bool, device=logprobs_P.device)
    behaviour = [x for s, _ in chosen for x, wanted in zip(s.logprobs, s.policy_mask, strict=True) if wanted]
    scored = [x for s, scores in chosen for x in scores or [0.0] * s.policy_tokens]
    teacher_P = column(scored) if counts.taught else None
    return TokenStreams(
        logprobs_P=logprobs_P,
        behaviour_P=column(behaviour),
        advantages_P=column([s.advantage for s, _ in chosen])[batch.sequence_P],
        weights_P=column([s.weight for s, _ in chosen])[batch.sequence_P],
        sequences=counts.sequences,
        # A step is one update, so the policy at its start is the policy of this same pass.
        proximal_P=logprobs_P.detach() if proximal else None,
        reference_P=reference_P,
        teacher_P=teacher_P if teacher is None else teacher.logprobs_P,
        taught_P=flags([scores is not None for _, scores in chosen])[batch.sequence_P],
        gate_P=flags([x for s, _ in chosen for x in _gate(s)]),
        sequence_P=batch.sequence_P,
        taught_sequences=counts.taught,
        current_P=flags([x == version for s, _ in chosen for x in _versions(s, version)]),
        seeing_P=flags([s.images is not None for s, _ in chosen])[batch.sequence_P],
        policy_tokens=counts.policy_tokens,
        gated_tokens=counts.gated_tokens,
        divergence_P=None if teacher is None else teacher.divergence_P,
    )


def may_be_taught(chosen: Sequence[Scored], device: torch.device) -> Tensor:
    """Return, per policy token [P], whether its sequence has a teacher and its kind may be taught."""
    flags = [scores is not None and x for s, scores in chosen for x in _gate(s)]
    return torch.tensor(flags, dtype=torch.bool, device=device)


def _gate(sequence: TrainSequence) -> Sequence[bool]:
    """Return, per policy token, whether its kind may be taught."""
    gate = sequence.teacher.gate if sequence.teacher is not None else ()
    return gate or [True] * sequence.policy_tokens


def _versions(sequence: TrainSequence, version: int) -> Sequence[int]:
    """Return the version behind each policy token."""
    if not sequence.versions:
        return [version] * sequence.policy_tokens
    return [v for v, wanted in zip(sequence.versions, sequence.policy_mask, strict=True) if wanted]


def parity_metrics(streams: TokenStreams) -> dict[str, Tensor]:
    """Return the sums of |behavior - learner| log-prob over the tokens of this version, and over older ones.

    At equal version the difference is the engine's error. On older tokens it is the change of the policy since then.
    The tokens of sequences that show pictures have a sum of their own: few of them would hide among many others.
    """
    gap_P = (streams.behaviour_P - streams.logprobs_P.detach()).abs()
    current_P = streams.current_P if streams.current_P is not None else torch.ones_like(gap_P, dtype=torch.bool)
    now_P = gap_P * current_P
    seeing_P = current_P & streams.seeing_P if streams.seeing_P is not None else torch.zeros_like(current_P)
    return {
        "parity": now_P.sum(),
        "parity_max": now_P.max() if len(now_P) else now_P.sum(),
        "parity_images": (now_P * seeing_P).sum(),
        "current_tokens": current_P.sum(),
        "current_tokens_images": seeing_P.sum(),
        "stale_gap": (gap_P - now_P).sum(),
    }


def means(totals: dict[str, float], policy_tokens: int) -> dict[str, float]:
    """Return sums over tokens as means: over policy tokens, or over those of taught sequences.

    Maxima stay unchanged. `ved_loss_gated` is the mean over the gated tokens alone, on the scale of the paper's curve.
    """
    taught, current = totals.pop("ved_tokens", 0.0), totals.pop("current_tokens", float(policy_tokens))
    counts = {"parity": current, "stale_gap": policy_tokens - current} | dict.fromkeys(MAXIMA, 1.0)
    counts["parity_images"] = totals.pop("current_tokens_images", 0.0)
    metrics = {}
    for name, total in totals.items():
        count = counts.get(name, taught if name.startswith(_TAUGHT) else policy_tokens)
        if count or name not in _PARITIES:  # no such token of this version: parity is undefined
            metrics[name] = total / max(1.0, count)
    if gated := totals.get("ved_gated"):
        metrics["ved_loss_gated"] = totals["ved_loss"] / gated
    return metrics | {"stale_tokens": policy_tokens - current} | ({"ved_tokens": taught} if taught else {})
