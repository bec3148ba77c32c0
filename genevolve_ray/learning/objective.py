"""The loss of a step over its micro-batches, L = L_GRPO + beta KL_ref + lambda L_VED, and its gradient.

Shape legend: P policy tokens of a micro-batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from genevolve_ray.learning.batch import MicroBatch, TrainSequence
from genevolve_ray.learning.coefficient import Coefficient
from genevolve_ray.learning.config import LearnerConfig
from genevolve_ray.learning.distributed import Ranks
from genevolve_ray.learning.grpo import grpo_loss
from genevolve_ray.learning.kl import reference_kl
from genevolve_ray.learning.passes import Passes
from genevolve_ray.learning.streams import (
    MAXIMA,
    BatchCounts,
    Scored,
    Term,
    TokenStreams,
    parity_metrics,
    token_streams,
)
from genevolve_ray.learning.ved import ved_loss
from genevolve_ray.learning.workers import Workers


class Objective:
    """Add the gradients of the losses of a batch to the parameters."""

    def __init__(
        self,
        config: LearnerConfig,
        passes: Passes,
        workers: Workers,
        ranks: Ranks,
        parameters: Sequence[nn.Parameter],
        coefficient: Coefficient,
    ) -> None:
        """Keep what computes.

        Args:
            config: the settings.
            passes: the passes of policy, teacher and reference.
            workers: compute micro-batches side by side.
            ranks: the ranks that share the micro-batches.
            parameters: what is trained.
            coefficient: that of the distillation loss.
        """
        self._config, self._passes, self._workers = config, passes, workers
        self._ranks, self._parameters, self._coefficient = ranks, parameters, coefficient
        self._device = torch.device(config.device)
        self.gaps: list[list[float]] = []
        """Of the last batch: log pi - log q per policy token of each sequence, empty where it had no teacher."""

    def with_teacher(self, sequences: Sequence[TrainSequence]) -> list[Scored]:
        """Pair each sequence with its teacher's log-probs on the policy tokens, None where it has no bundle.

        The teacher is this same policy before the step, without gradient, on the context that holds experience. For an
        exact form there are no log-probs yet: it reads beside each micro-batch, and its states are compared there.
        """
        ved = self._config.ved
        taught = [i for i, s in enumerate(sequences) if s.teacher is not None and s.policy_tokens and ved.teaches]
        if ved.form.exact:
            return [(s, [] if i in set(taught) else None) for i, s in enumerate(sequences)]
        contexts = [teacher for i in taught if (teacher := sequences[i].teacher) is not None]
        scores: dict[int, list[float]] = dict(zip(taught, self._passes.score(contexts), strict=True))
        return [(s, scores.get(i)) for i, s in enumerate(sequences)]

    def counts(self, sequences: Sequence[Scored]) -> BatchCounts:
        """Return the counts of a global batch that losses divide by."""
        return BatchCounts.of(sequences, self._config.ved.selected_fraction)

    def add_gradients(
        self,
        batches: Sequence[MicroBatch],
        sequences: Sequence[Scored],
        version: int,
        counts: BatchCounts | None = None,
    ) -> dict[str, float]:
        """Add every micro-batch's gradient and return the summed loss and token metrics.

        Losses divide by `counts`, by default those of the sequences. Where the coefficient is measured, the gradient of
        the distillation is taken by itself, over the micro-batches that have a teacher.
        """
        counts = counts or self.counts(sequences)
        self.gaps = [[] for _ in sequences]
        policy = self._terms()
        if counts.taught and self._coefficient.measures(version):
            totals = self._add(batches, sequences, version, counts, policy)
            grpo = self._coefficient.take()
            having = [b for b in batches if any(sequences[i][1] is not None for i in b.indices)]
            taught = self._add(having, sequences, version, counts, [], coefficient=1.0)
            totals["loss"] += self._coefficient.combine(grpo) * taught.pop("loss")
            totals |= taught
        else:
            coefficient = self._coefficient.value if counts.taught else None
            totals = self._add(batches, sequences, version, counts, policy, coefficient)
        if counts.taught:
            self.gaps = self._ranks.gather(self.gaps)
        return totals | {"taught_sequences": float(counts.taught)}

    def _terms(self) -> list[Term]:
        """Return the terms without a teacher, each over the same token streams."""
        terms: list[Term] = [partial(grpo_loss, config=self._config.grpo)]
        if self._passes.refers:
            terms.append(partial(reference_kl, config=self._config.kl, aggregation=self._config.grpo.aggregation))
        return terms

    def _add(
        self,
        batches: Sequence[MicroBatch],
        sequences: Sequence[Scored],
        version: int,
        counts: BatchCounts,
        policy: list[Term],
        coefficient: float | None = None,
    ) -> dict[str, float]:
        """Add the gradients of the policy's terms, and of the distillation with a coefficient (None: without it)."""
        terms = [*policy]
        if coefficient is not None:
            terms.append(partial(ved_loss, config=self._config.ved, coefficient=coefficient))
        compares = coefficient is not None and self._config.ved.form.exact

        def loss_of(batch: MicroBatch) -> tuple[Tensor, dict[str, float]]:
            chosen = [sequences[i] for i in batch.indices]
            if compares:
                logprobs_P, entropy_P, teacher = self._passes.compared_logprobs(batch, chosen, entropy=bool(policy))
            else:
                logprobs_P, entropy_P = self._passes.logprobs(batch, entropy=bool(policy))
                teacher = None
            streams = token_streams(
                batch,
                chosen,
                logprobs_P,
                self._passes.reference_logprobs(batch) if policy else None,
                counts=counts,
                proximal=self._config.grpo.needs_proximal,
                version=version,
                teacher=teacher,
            )
            loss = logprobs_P.new_zeros(())
            metrics = {} if entropy_P is None else {"entropy": entropy_P.sum(), **parity_metrics(streams)}
            for term in terms:
                value, parts = term(streams)
                loss = loss + value
                metrics.update(parts)
            if coefficient is not None:
                self._note_gaps(batch, streams)
            return loss, {"loss": loss.item()} | {name: metric.item() for name, metric in metrics.items()}

        totals: dict[str, float] = defaultdict(float)
        mine = self._ranks.share(batches, self._device)
        for metrics in self._workers.add_gradients(loss_of, mine, self._parameters):
            for name, metric in metrics.items():
                totals[name] = max(totals[name], metric) if name in MAXIMA else totals[name] + metric
        return self._ranks.combine(totals, MAXIMA)

    def _note_gaps(self, batch: MicroBatch, streams: TokenStreams) -> None:
        """Keep log pi - log q of the policy tokens of taught sequences, for a display of the moved tokens."""
        if streams.teacher_P is None or streams.taught_P is None:
            return
        gaps = (streams.logprobs_P.detach() - streams.teacher_P).tolist()
        for gap, row, taught in zip(gaps, batch.sequence_P.tolist(), streams.taught_P.tolist(), strict=True):
            if taught:
                self.gaps[batch.indices[row]].append(gap)
