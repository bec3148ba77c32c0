"""From a micro-batch to what the losses share, and from sums over tokens to a step's metrics.

Shape legend: P policy tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from genevolve_ray.learning.batch import MicroBatch, TrainSequence
from genevolve_ray.learning.grpo import TokenStreams

MAXIMA = frozenset({"ratio_max", "parity_max"})
"""Metrics combined by maximum over micro-batches; all others are sums over tokens."""
_TAUGHT = "ved_"
"""Metrics of this prefix are sums over the tokens of sequences that have a teacher."""

Scored = tuple[TrainSequence, list[float] | None]
"""A sequence and its teacher's log-probs on the policy tokens, None where it has no bundle."""


def token_streams(
    batch: MicroBatch,
    chosen: Sequence[Scored],
    logprobs_P: Tensor,
    reference_P: Tensor | None,
    *,
    sequences: int,
    taught: int,
    proximal: bool,
) -> TokenStreams:
    """Return what the losses share: one value per policy token of the micro-batch.

    Args:
        batch: the micro-batch.
        chosen: its sequences, in order.
        logprobs_P: log pi, with its gradient.
        reference_P: log-probs of the reference policy, where there is one.
        sequences: non-empty sequences of the global batch.
        taught: those of them that have a teacher.
        proximal: whether the correction needs the policy's log-probs before the step.
    """
    column = partial(torch.tensor, dtype=logprobs_P.dtype, device=logprobs_P.device)
    flags = partial(torch.tensor, dtype=torch.bool, device=logprobs_P.device)
    behaviour = [x for s, _ in chosen for x, wanted in zip(s.logprobs, s.policy_mask, strict=True) if wanted]
    teacher = [x for s, scores in chosen for x in scores or [0.0] * s.policy_tokens]
    return TokenStreams(
        logprobs_P=logprobs_P,
        behaviour_P=column(behaviour),
        advantages_P=column([s.advantage for s, _ in chosen])[batch.sequence_P],
        weights_P=column([s.weight for s, _ in chosen])[batch.sequence_P],
        sequences=sequences,
        # A step is one update, so the policy at its start is the policy of this very pass.
        proximal_P=logprobs_P.detach() if proximal else None,
        reference_P=reference_P,
        teacher_P=column(teacher) if taught else None,
        taught_P=flags([scores is not None for _, scores in chosen])[batch.sequence_P],
        gate_P=flags([x for s, _ in chosen for x in _gate(s)]),
        sequence_P=batch.sequence_P,
        taught_sequences=taught,
    )


def _gate(sequence: TrainSequence) -> Sequence[bool]:
    """Return, per policy token, whether its kind may be taught."""
    gate = sequence.teacher.gate if sequence.teacher is not None else ()
    return gate or [True] * sequence.policy_tokens


def means(totals: dict[str, float], policy_tokens: int) -> dict[str, float]:
    """Return sums over tokens as means: over policy tokens, or over those of taught sequences; maxima as they are."""
    taught = totals.pop("ved_tokens", 0.0)
    metrics = {}
    for name, total in totals.items():
        count = 1 if name in MAXIMA else taught if name.startswith(_TAUGHT) else policy_tokens
        metrics[name] = total / max(1, count)
    return metrics | ({"ved_tokens": taught} if taught else {})
