"""The learner port over one process's `Learner`: judged groups in, one optimisation step out."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError

from genevolve_ray.engines.protocol import Probe
from genevolve_ray.evolution.settings import EvolutionConfig
from genevolve_ray.learning.advantage import AdvantageConfig, group_advantages
from genevolve_ray.learning.batch import TrainSequence
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.trajectory import Group, Outcome

if TYPE_CHECKING:
    from genevolve_ray.learning.distributed import Ranks
    from genevolve_ray.learning.step import Learner

PROBE_TOKENS = 96
_OWN = ("seconds", "tokens_per_second", "tokens", "policy_tokens", "model_flops_per_second")
"""Learner metrics that rollouts have too; they are logged as `learner_...`."""


class LocalLearner:
    """A `Learner` behind the port that the loop knows; it runs in process or inside an actor."""

    def __init__(self, learner: Learner, advantage: AdvantageConfig, probe: Sequence[int], tolerance: float) -> None:
        """Wrap a learner.

        Args:
            learner: the policy under training.
            advantage: how rewards become advantages.
            probe: the token ids by which weight updates are verified.
            tolerance: largest mean |engine - learner| log-prob on them.
        """
        self._learner, self._advantage = learner, advantage
        self._probe, self._tolerance = tuple(probe), tolerance

    async def step(self, groups: Sequence[Group], step: int) -> dict[str, float]:
        """Take one step on judged groups. Raises RuntimeError when no group has two scores to compare."""
        sequences = training_sequences(groups, self._advantage)
        if not sequences:
            reasons = {t.reason for g in groups for t in g.trajectories if t.outcome is Outcome.INFRA_FAILURE}
            raise RuntimeError(f"step {step} has nothing to train on, all {len(groups)} groups are short: {reasons}")
        metrics = self._learner.train_step(sequences, step - 1)
        return {f"learner_{name}" if name in _OWN else name: value for name, value in metrics.items()}

    async def publish(self, folder: str) -> Probe:
        """Write the weights to `folder` and return the probe that engines must reproduce."""
        # First what all ranks of a learner do together: a full disk then fails rank 0 alone, and no other waits for it.
        logprobs = self._learner.raw_logprobs(self._probe)
        with _writing(folder):
            self._learner.write_weights(folder)
        return Probe(token_ids=self._probe, logprobs=tuple(logprobs), tolerance=self._tolerance)

    async def save(self, folder: str) -> None:
        """Write a checkpoint."""
        with _writing(folder):
            self._learner.save(folder)

    async def load(self, folder: str) -> None:
        """Restore a checkpoint."""
        self._learner.load(folder)

    async def state_hash(self) -> str:
        """Return the hash over weights and optimizer."""
        return self._learner.state_hash()


@contextmanager
def _writing(folder: str) -> Iterator[None]:
    """Raise OSError for what torch and safetensors raise, each in its own way, when a disk is full."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(folder).free
        raise OSError(errno.EIO, f"{folder} cannot be written ({free} bytes are free there): {error}") from error


def build_learner(
    config: EvolutionConfig, model_dir: Path, banned: Sequence[int], vocabulary: int, ranks: Ranks | None = None
) -> LocalLearner:
    """Load the policy and wrap it.

    Args:
        config: the settings of the run.
        model_dir: the policy, in HF layout.
        banned: ids that neither engine nor learner gives any probability.
        vocabulary: the number of ids that the probe is drawn from.
        ranks: this process's place among several that share the policy.
    """
    from genevolve_ray.learning.step import Learner

    rng = np.random.default_rng(derive_seed(config.seed, "probe"))
    probe = [int(token) for token in rng.integers(vocabulary, size=PROBE_TOKENS)]
    learner = Learner(model_dir, config.learner, banned, ranks=ranks)
    return LocalLearner(learner, config.learner.advantage, probe, config.loop.parity_limit)


def training_sequences(groups: Sequence[Group], config: AdvantageConfig) -> list[TrainSequence]:
    """Turn judged groups into sequences with group-relative advantages (PAPER section 3).

    A group with fewer than two scores has nothing to compare and is left out; infrastructure failures never enter.
    """
    sequences = []
    for group in groups:
        scored = [t for t in group.trajectories if t.outcome in (Outcome.SCORED, Outcome.POLICY_FAILURE)]
        if len(scored) < 2:
            continue
        advantages = group_advantages([t.score for t in scored], config).values
        sequences += [
            TrainSequence(t.ledger.tokens, t.ledger.policy_mask, t.ledger.logprobs, advantage)
            for t, advantage in zip(scored, advantages, strict=True)
        ]
    return sequences
