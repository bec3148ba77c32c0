"""The teacher beside a micro-batch: its states at the taught tokens, and the exact divergence of the student from them.

The teacher is the policy itself at the start of the step: a step is one update, so the weights are the same in all its
passes. It reads the contexts with experience of one micro-batch at a time, and what is kept of them is the states that
predict the student's tokens, [M, H] numbers. Logits of both exist for some tokens at a time (`divergences`).

Shape legend: P policy tokens of a micro-batch, N distinct ones that the student predicts, M that the teacher predicts,
K tokens that the gate selects, U distinct pairs of states among them, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genevolve_ray.learning.batch import MicroBatch
from genevolve_ray.learning.divergences import divergence_of, divergences
from genevolve_ray.learning.streams import Scored, TaughtTokens, may_be_taught
from genevolve_ray.learning.ved import selected
from genevolve_ray.learning.ved_config import VedConfig


@dataclass(frozen=True)
class TeacherStates:
    """Hold what a teacher predicts the policy tokens of a student's micro-batch from, without gradient.

    Attributes:
        states_M_H: its states.
        logprobs_P: its log-probs of the tokens, 0 where there is no bundle.
        places_P: the state (0 to M - 1) that predicts each token, 0 where there is no bundle.
        taught_P: true on tokens of sequences that have a bundle.
        eligible_P: true on those of them whose kind may be taught.
    """

    states_M_H: Tensor
    logprobs_P: Tensor
    places_P: Tensor
    taught_P: Tensor
    eligible_P: Tensor

    @staticmethod
    def of(
        row: MicroBatch, states_M_H: Tensor, logprobs_M: Tensor, student: MicroBatch, chosen: Sequence[Scored]
    ) -> TeacherStates:
        """Assign the teacher's tokens to the student's.

        Args:
            row: the teacher's micro-batch: the contexts of the sequences that have a bundle, numbered in their order.
            states_M_H: its states.
            logprobs_M: the log-probs of its policy tokens.
            student: the student's micro-batch.
            chosen: its sequences, in order.
        """
        device = student.sequence_P.device
        taught = torch.tensor([scores is not None for _, scores in chosen], dtype=torch.bool, device=device)
        taught_P = taught[student.sequence_P]
        # The teacher's row has an order of its own.
        of_context = {context: row.places_P[row.sequence_P == place] for place, context in enumerate(row.indices)}
        found = [of_context[context] for context in range(len(of_context))]
        places_P = torch.zeros_like(student.places_P)
        places_P[taught_P] = torch.cat(found) if found else places_P[:0]
        logprobs_P = logprobs_M.new_zeros(len(places_P))
        logprobs_P[taught_P] = logprobs_M[places_P[taught_P]]
        return TeacherStates(states_M_H, logprobs_P, places_P, taught_P, may_be_taught(chosen, device))


@dataclass(frozen=True)
class TeacherComparison:
    """Compare a student's micro-batch with its teacher at the tokens that the gate selects."""

    student: MicroBatch
    teacher: TeacherStates
    config: VedConfig
    temperature: float
    ban_mask_V: Tensor | None

    def divergence(self, states_N_H: Tensor, weight_V_H: Tensor, logprobs_P: Tensor) -> Tensor:
        """Return the divergence [P] from the teacher on the tokens that the gate selects, 0 on others.

        Args:
            states_N_H: the student's states, with their gradient.
            weight_V_H: the head.
            logprobs_P: log pi of the sampled tokens.
        """
        teacher, student = self.teacher, self.student
        gap_P = torch.where(teacher.taught_P, logprobs_P.detach() - teacher.logprobs_P, 0.0)
        places_K = selected(gap_P, teacher.eligible_P, student.sequence_P, self.config).nonzero()[:, 0]
        # Rollouts that share a prefix, and their teacher's, are compared there once.
        count = max(1, len(teacher.states_M_H))
        pairs_U, of_K = (student.places_P[places_K] * count + teacher.places_P[places_K]).unique(return_inverse=True)
        values_U = divergences(
            states_N_H[pairs_U // count],
            teacher.states_M_H[pairs_U % count],
            weight_V_H,
            divergence_of(self.config),
            temperature=self.temperature,
            ban_mask_V=self.ban_mask_V,
        )
        return logprobs_P.new_zeros(len(logprobs_P)).index_put((places_K,), values_U[of_K])

    def taught(self, divergence_P: Tensor) -> TaughtTokens:
        """Return what the teacher says about the tokens, with their divergence."""
        return TaughtTokens(self.teacher.logprobs_P, divergence_P)
