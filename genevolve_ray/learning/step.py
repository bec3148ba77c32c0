"""The learner: scores sequences, takes one GRPO step on them, saves and restores its whole state."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from genevolve_ray.errors import GenevolveError
from genevolve_ray.learning.batch import ImageInputs, MaskedTokens, TrainSequence
from genevolve_ray.learning.build import base_dtype, build_optimizer, build_policy, flops_per_token
from genevolve_ray.learning.checkpoint_parts import OPTIMIZER_FILE, load_optimizer, save_parts
from genevolve_ray.learning.coefficient import Coefficient
from genevolve_ray.learning.config import LearnerConfig
from genevolve_ray.learning.distributed import (
    Ranks,
    clip_gradients,
    full_optimizer,
    full_state,
    load_full_optimizer,
    load_full_state,
    lone_rank,
    sum_replicated,
    with_context,
)
from genevolve_ray.learning.hashing import learner_hash
from genevolve_ray.learning.lora import (
    adapter_scalings,
    adapter_state,
    check_publishable,
    publish_adapter,
    read_adapter,
    write_adapter,
)
from genevolve_ray.learning.objective import Objective
from genevolve_ray.learning.outgoing import OutgoingWeights
from genevolve_ray.learning.parts import Sizes, StepSums
from genevolve_ray.learning.passes import Passes
from genevolve_ray.learning.policy import (
    DTYPES,
    load_policy,
    save_beside,
    state_to_folder,
    use_deterministic_kernels,
)
from genevolve_ray.learning.redraw_config import GuidedDraws
from genevolve_ray.learning.redraws import add_redraws
from genevolve_ray.learning.speed import peak_memory
from genevolve_ray.learning.streams import means
from genevolve_ray.learning.tower import FrozenTower
from genevolve_ray.learning.workers import Workers
from genevolve_ray.models.companions import copy_companions


class NonFiniteStep(GenevolveError, FloatingPointError):
    """Signal that loss or gradient is not finite; the step was not applied."""


class Learner:
    """Train one policy; hold its optimizer, and the reference where its coefficient requires one.

    Over several ranks every method is a collective. All ranks call it with the same arguments and see the same scores
    and metrics; rank 0 writes.
    """

    def __init__(
        self,
        model_dir: str | Path,
        config: LearnerConfig,
        banned: Sequence[int] = (),
        reference_dir: str | Path | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Load the policy.

        Args:
            model_dir: folder in HF layout; all its files besides the weights are copied into every checkpoint.
            config: the settings.
            banned: token ids that the sampler never emits; probability 0 here too.
            reference_dir: the policy at the start of evolution, by default `model_dir`; read only where its coefficient
                is above 0. With LoRA the reference is this same model with its adapter switched.
            ranks: this process's place among several, from `join_ranks`.

        Raises:
            FileNotFoundError: for a missing folder.
            ValueError: for a banned id outside the vocabulary.
        """
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        self._device = torch.device(config.device)
        if config.deterministic:
            use_deterministic_kernels()
        place = ranks or (lone_rank(config.device) if config.shards else Ranks())
        self._ranks = with_context(place, config.context_parallel)
        self.model, self._adapter = build_policy(model_dir, config, self._ranks)
        if config.publishes_adapter:
            check_publishable(self.model, model_dir)
        self._model_dir = Path(model_dir)
        reference: PreTrainedModel | None = None
        if config.kl.coefficient > 0:
            reference = self.model
            if self._adapter is None:
                frozen = config.model_copy(update={"gradient_checkpointing": False})
                reference, _ = build_policy(reference_dir or model_dir, frozen, self._ranks, reference=True)
        self._tower = FrozenTower(self.model)
        twin = reference_dir in (None, model_dir)
        self._workers = Workers.of(config, self._ranks, shared=reference is self.model)
        self._passes = Passes(self.model, reference, config, banned, self._ranks, twin=twin, workers=self._workers)
        self._optimizer = build_optimizer(self.model, config)
        self._parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._scalings = adapter_scalings(self.model)
        self._coefficient = Coefficient(config.ved, self._optimizer, self._parameters)
        computing = self._passes, self._workers, self._ranks, self._parameters
        self._objective = Objective(config, *computing, self._coefficient)
        self.gaps: list[list[float]] = []
        """Of the last step: log pi - log q per policy token of each sequence, empty where it had no teacher."""
        self._sums: StepSums | None = None
        """Of a step that was begun by `accumulate`."""

    # --- scoring -----------------------------------------------------------------------------------------------------

    def score(self, sequences: Sequence[MaskedTokens]) -> list[list[float]]:
        """Return, per sequence, the log-probs of its policy tokens at the sampling temperature under the ban mask."""
        return self._passes.score(sequences)

    def raw_logprobs(self, token_ids: Sequence[int], images: ImageInputs | None = None) -> list[float]:
        """Return log p(token_ids[i + 1] | token_ids[: i + 1]), temperature 1, no ban: the probe of a weight update."""
        return self._passes.raw_logprobs(token_ids, images)

    # --- one step ----------------------------------------------------------------------------------------------------

    def _add(self, sequences: Sequence[TrainSequence], step: int) -> StepSums:
        """Add the gradient of a part of a step's batch, and return the sums over all its parts so far."""
        started = time.perf_counter()
        batches = self._passes.split(sequences)
        sums, self._sums = self._sums, None
        if sums is None or sums.step != step:
            self._optimizer.zero_grad(set_to_none=True)
            self._tower.check_untrained(self._optimizer)
            sums = StepSums(step)
        sums.sizes += Sizes.of(batches, sequences)
        with self._passes.features.step():
            scored = self._objective.with_teacher(sequences)
            sums.seconds_teacher += time.perf_counter() - started
            if batches:
                counts = self._objective.counts(scored)
                sums.add(counts, self._objective.add_gradients(batches, scored, step, sums.divisor(counts)))
        sums.gaps += self._objective.gaps if batches else [[] for _ in sequences]
        sums.seconds += time.perf_counter() - started
        return sums

    def accumulate(self, sequences: Sequence[TrainSequence], step: int) -> None:
        """Begin a step early: add the gradient of a part of its batch, which `train_step` is then called without.

        The weights stay unchanged, and other methods may be called before `train_step`.

        Args:
            sequences: the part, none of whose sequences has a teacher.
            step: number of the step from 0; parts of another step are dropped.

        Raises:
            ValueError: for a part that follows one with a teacher.
        """
        self._sums = self._add(sequences, step)

    def drop(self) -> None:
        """Drop the parts of a step that `accumulate` has added."""
        self._sums = None
        self._optimizer.zero_grad(set_to_none=True)

    def train_step(
        self, sequences: Sequence[TrainSequence], step: int, draws: GuidedDraws | None = None
    ) -> dict[str, float]:
        """Do one update on a whole batch and return its metrics; log-prob metrics are means over policy tokens.

        The batch consists of the parts that `accumulate` has added for this step, and of these sequences.

        `parity` is mean |behavior - learner| log-prob before the update over the tokens that this version sampled
        (absent where there are none); `parity_images` is the same over sequences that show pictures, `stale_gap` over
        older tokens. Metrics that begin with `ved_` are means over the tokens of sequences that have a teacher. The
        result does not depend on the order of the sequences or on `token_budget` beyond floating-point rounding.

        Args:
            sequences: the global batch, or the rest of it; those without policy tokens are counted, not averaged over.
            step: number of the step from 0, which is also the version that learns.
            draws: guided re-draws, whose metrics begin with `redraw_`; they enter no other metric but the loss.

        Raises:
            ValueError: when no sequence has a policy token.
            NonFiniteStep: when loss or gradient is not finite; nothing was updated.
        """
        sums = self._add(sequences, step)
        if sums.counts is None:
            self._optimizer.zero_grad(set_to_none=True)
            raise ValueError(f"none of the {sums.sizes.sequences} sequences of step {step} has a policy token")
        started, self.gaps = time.perf_counter(), sums.gaps
        sums.divide(self._parameters, self.config.grpo.aggregation)
        redrawn = add_redraws(draws, sums, self._passes, self._workers, self._ranks, self._parameters, self.config)
        sum_replicated(self._parameters, self._ranks)
        norm = clip_gradients(self._parameters, self.config.grad_clip)
        loss, taught = sums.totals.pop("loss"), sums.totals.pop("taught_sequences")
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._optimizer.zero_grad(set_to_none=True)
            raise NonFiniteStep(f"step {step} has loss {loss} and gradient norm {norm}; the weights are unchanged")
        rate = self.config.rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        metrics = means(sums.totals, sums.sizes.policy_tokens) | redrawn
        metrics |= {"loss": loss, "grad_norm": norm, "lr": rate, "gpu_memory_peak_bytes": peak_memory(self._device)}
        if self.config.ved.teaches:
            metrics["taught_sequences"] = taught
            if not self.config.ved.form.exact:  # Its teacher reads between the student's micro-batches.
                metrics["seconds_teacher"] = sums.seconds_teacher
            metrics |= self._coefficient.figures if taught else {}
        sums.seconds += time.perf_counter() - started
        return metrics | sums.sizes.metrics(sums.seconds, flops_per_token(self.model))

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the trained parameters (with LoRA the adapter alone), the optimizer and torch's random state.

        They are plain containers and tensors, without copies in one process. Over several ranks, rank 0 gets full
        tensors on the host, and the others get no usable values.
        """
        return {
            "model": full_state(self.model, self._ranks, None if self._adapter is None else adapter_state),
            "optimizer": full_optimizer(self._optimizer, self._ranks),
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`. Raises RuntimeError or KeyError when it does not fit this model."""
        load_full_state(self.model, state["model"], None if self._adapter is None else adapter_state)
        load_full_optimizer(self._optimizer, state["optimizer"])
        self.drop()
        torch.set_rng_state(state["rng"])

    def state_hash(self) -> str:
        """Return a hash of the trained parameters and the optimizer's state, the same for any number of ranks.

        Equal hashes mean bit-equal next steps on equal batches (in one process; with LoRA on the same base).
        """
        return learner_hash(self.model, self._optimizer, self._ranks, None if self._adapter is None else adapter_state)

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint: HF layout (peft's with LoRA), optimizer.pt, and the other files of the model folder.

        Several ranks that train all parameters write parts of them side by side.

        Raises:
            TowerChanged: when the frozen vision tower is not the one of the start.
        """
        self._tower.check_unchanged("before a checkpoint")
        target = Path(folder)
        if self._adapter is None and save_parts(self.model, self._optimizer, self._model_dir, target, self._ranks):
            return
        state = self.state_dict()
        if not self._ranks.first:
            return
        target.mkdir(parents=True, exist_ok=True)
        if self._adapter is None:
            save_beside(self.model, self._model_dir, target, state["model"])
        else:
            write_adapter(state["model"], self._adapter, target, base_dtype(self.config))
            copy_companions(self._model_dir, target, config=False)
        torch.save({"optimizer": state["optimizer"], "rng": state["rng"]}, target / OPTIMIZER_FILE)

    def load(self, folder: str | Path) -> None:
        """Restore a checkpoint; the reference stays unchanged.

        Raises:
            FileNotFoundError: when a part is missing.
            TowerChanged: when the checkpoint has another vision tower.
        """
        if self._adapter is None:
            weights = load_policy(folder, base_dtype(self.config)).state_dict()
        else:
            weights = read_adapter(folder)
        self.load_state_dict({"model": weights, **load_optimizer(folder)})
        self._tower.check_unchanged(f"after loading {folder}")

    def write_weights(self, folder: str | Path) -> None:
        """Write a version for the engines, in the form of `lora.publish`."""
        (self.write_adapter if self.config.publishes_adapter else self.write_merged)(folder)

    def write_merged(self, folder: str | Path) -> None:
        """Write whole weights (model.safetensors, an adapter merged in)."""
        tensors = {name: tensor.cpu() for name, tensor in self.outgoing() if self._ranks.first}
        if self._ranks.first:
            state_to_folder(tensors, folder)

    def outgoing(self) -> OutgoingWeights:
        """Return the content of `write_merged` as tensors on the policy's device, for engines that share no folder."""
        published = self.config.published_dtype
        return OutgoingWeights(self.model, self._scalings, None if published is None else DTYPES[published])

    def write_adapter(self, folder: str | Path) -> str:
        """Write the adapter alone in peft's layout; rank 0 returns the checksum of factors, scalings and base dtype.

        Raises:
            ValueError: when the learner trains no adapter.
        """
        if self._adapter is None:
            raise ValueError("learner.lora is not set: no adapter to write")
        state = full_state(self.model, self._ranks, adapter_state)
        return publish_adapter(state, self._adapter, folder, base_dtype(self.config)) if self._ranks.first else ""
