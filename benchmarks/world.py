"""What several benchmarks need: the atlas preset with its policy, trajectories of atlas lengths, a bare training loop.

Shape legend: B sequences of a micro-batch, T tokens, P policy tokens of a micro-batch, V vocabulary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Options
from genevolve_ray.config import RunConfig, load_config
from genevolve_ray.doctor.preflight import model_folder

if TYPE_CHECKING:
    from genevolve_ray.learning.batch import MicroBatch, TrainSequence
    from genevolve_ray.learning.step import Learner

QUICK = ("loop.requests_per_step=2", "loop.group_size=3", "engine.vllm.kv_cache_mib=64")


def default_policy() -> Path:
    """Return the folder of the policy that the atlas preset names."""
    return model_folder(load_config("atlas").policy.model)


def atlas_config(options: Options, *overrides: str) -> RunConfig:
    """Return the atlas preset on the policy of the command line; small where only a trial is wanted."""
    chosen = [f"policy.model={options.policy}", f"learner.threads={options.threads}"]
    return load_config("atlas", [*chosen, *(QUICK if options.quick else ()), *overrides])


def grpo_config(options: Options, *overrides: str) -> RunConfig:
    """Return the atlas preset as GRPO alone: no experience, no reference, no teacher, no validation."""
    alone = ("experience.enabled=false", "learner.kl.coefficient=0", "learner.ved.coefficient=0")
    return atlas_config(options, *alone, "loop.validate_every=0", *overrides)


def concurrency(config: RunConfig) -> int:
    """Return the number of rollouts of a step, which all run at once."""
    return config.loop.requests_per_step * config.loop.group_size


def teacher_sequences(config: RunConfig, policy: Path) -> list[TrainSequence]:
    """Return as many sequences as a step has: real atlas trajectories of the scripted teacher, advantages +1 and -1.

    Each has what a distilling teacher would read: the same with a bundle in its prompt. Behaviour log-probs are 0 until
    `with_behaviour` fills them in.
    """
    from genevolve_ray.atlas.coldstart import Curriculum, CurriculumConfig
    from genevolve_ray.atlas.teacher import GENERIC
    from genevolve_ray.evolution.inprocess import load_chat
    from genevolve_ray.evolution.teaching import TeacherPatch
    from genevolve_ray.learning.batch import TrainSequence
    from genevolve_ray.records.trajectory import Trajectory

    chat = load_chat(policy)
    curriculum = Curriculum(CurriculumConfig(stated_fraction=0.0, stated_share_later=0.0, worlds=1), chat)
    patch = TeacherPatch(chat, config.protocol, max_tokens=2048)

    async def play() -> list[Trajectory]:
        return [await curriculum.trajectory(0, index) for index in range(concurrency(config))]

    return [
        TrainSequence(
            t.ledger.tokens,
            t.ledger.policy_mask,
            t.ledger.logprobs,
            (-1.0) ** i,
            teacher=patch.context(t, GENERIC["atlas"]),
        )
        for i, t in enumerate(asyncio.run(play()))
    ]


def with_behaviour(learner: Learner, sequences: Sequence[TrainSequence]) -> list[TrainSequence]:
    """Return the sequences as if this learner's policy had sampled them: its log-probs on the policy tokens."""
    from dataclasses import replace

    filled = []
    for sequence, scores in zip(sequences, learner.score(sequences), strict=True):
        left = iter(scores)
        column = [next(left) if wanted else 0.0 for wanted in sequence.policy_mask]
        filled.append(replace(sequence, logprobs=column))
    return filled


class BareLoop:
    """The least a training step can do: forward with logits, cross entropy, backward, AdamW, on prepared tensors.

    The same model class, weights, optimizer and micro-batches as the learner's; no advantages, ratios, clipping,
    entropy, parity gauge or gradient norm.
    """

    def __init__(self, model_dir: Path, config: RunConfig) -> None:
        """Load the model and its optimizer."""
        import torch

        from genevolve_ray.learning.policy import load_policy

        learner = config.learner
        self.model = load_policy(model_dir, "float32", learner.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learner.lr, betas=learner.betas, weight_decay=learner.weight_decay, fused=True
        )

    def prepare(self, batches: Sequence[MicroBatch]) -> list[tuple[Any, Any]]:
        """Return ids [B, T] and labels [B, T] of each micro-batch: the token to predict, or -100 where there is none."""
        import torch

        prepared = []
        for batch in batches:
            labels_B_T = torch.full_like(batch.ids_B_T, -100)
            labels_B_T.view(-1)[batch.rows_N] = batch.targets_N
            prepared.append((batch.ids_B_T, labels_B_T))
        return prepared

    def step(self, prepared: Sequence[tuple[Any, Any]]) -> None:
        """Take one step."""
        from torch.nn.functional import cross_entropy

        self.optimizer.zero_grad(set_to_none=True)
        for ids_B_T, labels_B_T in prepared:
            logits_B_T_V = self.model(input_ids=ids_B_T, use_cache=False).logits
            loss = cross_entropy(logits_B_T_V.flatten(0, 1), labels_B_T.flatten(), reduction="sum")
            (loss / len(ids_B_T)).backward()
        self.optimizer.step()
