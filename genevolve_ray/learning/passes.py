"""The passes of a policy and of its reference over micro-batches.

Shape legend: B rows of a micro-batch, T tokens, P policy tokens of its sequences, N distinct ones, M those of a teacher, H
hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from genevolve_ray.learning.attention import use_trees
from genevolve_ray.learning.batch import ImageInputs, MaskedTokens, MicroBatch, TrainSequence
from genevolve_ray.learning.config import LearnerConfig
from genevolve_ray.learning.context import ContextPart, use_context
from genevolve_ray.learning.distributed import Ranks, under_root
from genevolve_ray.learning.logprobs import ban_mask, token_logprobs
from genevolve_ray.learning.lora import reference_adapter
from genevolve_ray.learning.packing import Packer
from genevolve_ray.learning.policy import head_weight, hidden_states
from genevolve_ray.learning.streams import Scored, TaughtTokens
from genevolve_ray.learning.teacher import TeacherComparison, TeacherStates
from genevolve_ray.learning.tower import TowerFeatures
from genevolve_ray.learning.workers import Workers

Compare = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Returns one number per policy token [P] from predicting states [N, H], the head [V, H] and log-probs [P]."""


class Passes:
    """Compute log-probs of policy tokens by a policy, and by its reference where there is one.

    Attributes:
        refers: whether there is a reference.
        features: features of pictures that both share within a step.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reference: PreTrainedModel | None,
        config: LearnerConfig,
        banned: Sequence[int],
        ranks: Ranks,
        *,
        twin: bool,
        workers: Workers | None = None,
    ) -> None:
        """Prepare both models.

        Args:
            model: the policy.
            reference: the policy at the start of evolution. With LoRA it is `model`, with its adapter switched.
            config: the settings.
            banned: token ids of probability 0.
            ranks: the ranks that share the models.
            twin: whether the reference has the vision tower of the policy.
            workers: compute micro-batches side by side; by default one after the other.

        Raises:
            ValueError: for a banned id outside the vocabulary.
        """
        self._model, self._reference, self._config, self._ranks = model, reference, config, ranks
        self._device, self._workers = torch.device(config.device), workers or Workers()
        self._packer = Packer(model, self._device, config.packed_rows)
        self.refers = reference is not None
        if reference is not None and self._packer.packs:
            use_trees(reference, self._device)
        if ranks.context is not None:
            if not self._packer.packs:
                raise ValueError("learner.context_parallel needs packed rows, which the policy or the settings exclude")
            for each in (model, reference or model):
                use_context(each)
        # With projectors that learn, features carry a gradient and differ between policy and reference.
        kept_mib = 0 if config.trains_projector else config.picture_cache_mib
        self.features = TowerFeatures([model, *([reference] if reference is not None and twin else [])], kept_mib)
        self._ban_mask_V = ban_mask(head_weight(model).shape[0], banned, self._device)

    def split(self, sequences: Sequence[MaskedTokens]) -> list[MicroBatch]:
        """Return the micro-batches of all ranks and workers. Raises ValueError for a malformed sequence."""
        return self._packer.batches(sequences, self._config.token_budget, self._ranks.groups * self._workers.count)

    def logprobs(self, batch: MicroBatch, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return log-probs [P] (and entropies [P]) of policy tokens at the sampling temperature under the ban mask."""
        logprobs_P, entropy_P, _ = self._logprobs(self._model, batch, entropy)
        return logprobs_P, entropy_P

    def compared_logprobs(
        self, batch: MicroBatch, chosen: Sequence[Scored], entropy: bool = False
    ) -> tuple[Tensor, Tensor | None, TaughtTokens]:
        """Return what `logprobs` does, and the exact divergence from the teacher, which reads its contexts first.

        Args:
            batch: the micro-batch.
            chosen: its sequences, in order.
            entropy: whether to return entropies.
        """
        settings = self._config.ved, self._config.temperature, self._ban_mask_V
        comparison = TeacherComparison(batch, self._teacher_states(batch, chosen), *settings)
        logprobs_P, entropy_P, divergence_P = self._logprobs(self._model, batch, entropy, comparison.divergence)
        assert divergence_P is not None
        return logprobs_P, entropy_P, comparison.taught(divergence_P)

    @torch.no_grad()
    def _teacher_states(self, student: MicroBatch, chosen: Sequence[Scored]) -> TeacherStates:
        """Return the teacher's states for a micro-batch. Every rank makes this pass, also without a bundle."""
        contexts = [s.teacher for s, scores in chosen if scores is not None and s.teacher is not None]
        row = self._packer.together(contexts)

        def work() -> tuple[Tensor, Tensor]:
            states_M_H, weight_V_H = self._states(self._model, row)
            temperature, ban = self._config.temperature, self._ban_mask_V
            logprobs_M, _ = token_logprobs(
                states_M_H, weight_V_H, row.targets_N, temperature=temperature, ban_mask_V=ban
            )
            return states_M_H, logprobs_M

        return TeacherStates.of(row, *under_root(self._model, work), student, chosen)

    def reference_logprobs(self, batch: MicroBatch) -> Tensor | None:
        """Return the reference's log-probs [P], without gradient; None without a reference."""
        if self._reference is None:
            return None
        with torch.no_grad(), reference_adapter(self._reference):
            return self._logprobs(self._reference, batch)[0]

    def score(self, sequences: Sequence[MaskedTokens]) -> list[list[float]]:
        """Return, per sequence, the log-probs of its policy tokens at the sampling temperature under the ban mask."""
        scores: list[list[float]] = [[] for _ in sequences]
        mine = self._ranks.share(self.split(sequences), self._device)
        for batch, (logprobs_P, _) in zip(mine, self._workers.map(self.logprobs, mine), strict=True):
            for logprob, row in zip(logprobs_P.tolist(), batch.sequence_P.tolist(), strict=True):
                scores[batch.indices[row]].append(logprob)
        return self._ranks.gather(scores)

    @torch.no_grad()
    def raw_logprobs(self, token_ids: Sequence[int], images: ImageInputs | None = None) -> list[float]:
        """Return log p(token_ids[i + 1] | token_ids[: i + 1]), temperature 1, no ban: the probe of a weight update."""
        count = len(token_ids)
        probe = TrainSequence(token_ids, [False, *[True] * (count - 1)], [0.0] * count, 0.0, images=images)

        def raw(batch: MicroBatch) -> Tensor:
            return token_logprobs(*self._states(self._model, batch), batch.targets_N)[0]

        batches = self._packer.batches([probe], count)
        return [x for batch in batches for x in under_root(self._model, partial(raw, batch)).tolist()]

    def _logprobs(
        self, model: PreTrainedModel, batch: MicroBatch, entropy: bool = False, compare: Compare | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return log-probs [P] of policy tokens at the sampling temperature under the ban mask.

        With them come their entropies [P], and what `compare` returns. It runs here because the head is whole here.
        """
        context = self._ranks.context
        part = None if context is None or batch.layout is None else context.part(batch)

        def work() -> tuple[Tensor, Tensor | None, Tensor | None]:
            own = batch if part is None else part.batch
            states_N_H, weight_V_H = self._states(model, own, part)
            logprobs_N, entropy_N = token_logprobs(
                states_N_H,
                weight_V_H,
                own.targets_N,
                temperature=self._config.temperature,
                ban_mask_V=self._ban_mask_V,
                entropy=entropy,
            )
            if part is not None:
                logprobs_N = part.united(logprobs_N)
                entropy_N = None if entropy_N is None else part.united(entropy_N)
            logprobs_P = logprobs_N[batch.places_P]
            entropy_P = None if entropy_N is None else entropy_N[batch.places_P]
            return logprobs_P, entropy_P, None if compare is None else compare(states_N_H, weight_V_H, logprobs_P)

        return under_root(model, work)

    def _states(
        self, model: PreTrainedModel, batch: MicroBatch, part: ContextPart | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the predicting states [N, H] and the head [V, H], both in the compute dtype."""
        features = self.features.outputs if self.features.serves(model) else None
        return predicting_states(model, batch, self._config.dtype, features, part)


def predicting_states(
    model: PreTrainedModel,
    batch: MicroBatch,
    dtype: str,
    features: Callable[[ImageInputs], Any] | None = None,
    part: ContextPart | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the states [N, H] that predict the scored tokens of a micro-batch, and the head [V, H].

    Args:
        model: the policy.
        batch: the micro-batch, on the device of the passes.
        dtype: "bfloat16" rounds inside the passes; any other computes in the dtype of the weights.
        features: as of `hidden_states`.
        part: this rank's part of a row, of which `batch` is what it computes.
    """
    half = dtype == "bfloat16"
    with torch.autocast(batch.ids_B_T.device.type, dtype=torch.bfloat16, enabled=half):
        states_B_T_H = hidden_states(
            model,
            batch.ids_B_T,
            batch.images,
            features=features,
            positions=batch.positions,
            layout=batch.layout if part is None else None,
            attention={} if part is None else part.arguments,
        )
        states_N_H = states_B_T_H.flatten(0, 1).index_select(0, batch.rows_N)
    weight_V_H = head_weight(model)
    return (states_N_H.bfloat16(), weight_V_H.bfloat16()) if half else (states_N_H, weight_V_H)
