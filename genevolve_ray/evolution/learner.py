"""Learner port over one process's `Learner`: judged groups in, one optimization step out."""

from __future__ import annotations

import asyncio
import errno
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.engines.checks import context_length
from genevolve_ray.engines.protocol import Probe
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.metrics import turn_gap_metrics
from genevolve_ray.evolution.pictures import ProbeContext, TrajectoryPictures, seeing_probe
from genevolve_ray.evolution.ports import LearnerLost, Parts
from genevolve_ray.evolution.redraws import RedrawTraining
from genevolve_ray.evolution.teaching import ExperienceLeakError, TeacherPatch
from genevolve_ray.evolution.weights import FolderPayload, PublishedWeights, WeightFolders
from genevolve_ray.learning.advantage import AdvantageConfig, group_advantages
from genevolve_ray.learning.batch import ImageInputs, TeacherContext, TrainSequence
from genevolve_ray.records.experience import Lesson, MovedToken
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.trajectory import Group, Outcome, Trajectory

if TYPE_CHECKING:
    from genevolve_ray.learning.distributed import Ranks
    from genevolve_ray.learning.null import NullLearner
    from genevolve_ray.learning.outgoing import OutgoingWeights
    from genevolve_ray.learning.step import Learner

PROBE_TOKENS = 96
PROBE_TOLERANCE_16_BITS = 0.15
"""Least tolerance of the probe in 16 bits. Its tokens are random, and a pretrained model gives them log-probs near -14, far
below those of its own samples: at equal weights, vLLM and the learner differ by 0.057 to 0.095 on them for SmolLM2-135M in
bfloat16, more than on sampled turns. Checksums compare the tensors themselves."""
MOVED_TOKENS = 12
"""Tokens kept for each taught request: those that its experience moved most."""
_OWN = ("seconds", "tokens_per_second", "tokens", "policy_tokens", "model_flops_per_second")
"""Learner metrics that rollouts have too; they are logged as `learner_...`."""
PicturesOf = Callable[[Trajectory], ImageInputs | None]
"""Returns the pictures of a trajectory, None for one without."""


class LocalLearner:
    """Wrap a `Learner` for the loop; it runs in process or inside an actor."""

    def __init__(
        self,
        learner: Learner | NullLearner,
        advantage: AdvantageConfig,
        probe: ProbeContext,
        tolerance: float,
        folders: WeightFolders,
        patch: TeacherPatch | None = None,
        pictures: Callable[[], PicturesOf] | None = None,
        redraws: RedrawTraining | None = None,
        *,
        yields: bool = False,
    ) -> None:
        """Wrap a learner.

        Args:
            learner: the policy under training.
            advantage: settings of the advantages.
            probe: the sequence that verifies weight updates.
            tolerance: largest mean |engine - learner| log-prob on them.
            folders: where versions are written.
            patch: builds the teacher's contexts; without one, lessons teach nothing.
            pictures: begins a step, and returns what reads the pictures of its trajectories.
            redraws: turns guided re-draws into sequences; without it they teach nothing.
            yields: whether an engine that sleeps during a step needs the GPU's free memory after it.
        """
        self._learner, self._advantage = learner, advantage
        self._probe, self._tolerance, self._patch = probe, tolerance, patch
        self._folders, self._pictures, self._yields, self._redraws = folders, pictures, yields, redraws
        self._trained: list[Trajectory] = []
        self._begun: tuple[int, list[tuple[str, ...]]] = (0, [])
        """A step that was begun early, and the parts of it that the learner has added."""

    async def accumulate(self, groups: Sequence[Group], step: int) -> None:
        """Add the gradient of some groups of a step early, in another thread. Raises as `step` does."""
        await asyncio.to_thread(self._add, groups, step)

    def _add(self, groups: Sequence[Group], step: int) -> None:
        if self._begun[0] != step:
            self._drop(step)
        (_, added), self._begun = self._begun, (0, [])  # a part that fails leaves nothing to go on from
        self._learner.accumulate(self._sequences(groups), step - 1)
        self._trained += trained_trajectories(groups)
        self._begun = (step, [*added, tuple(group.request_id for group in groups)])

    def _drop(self, step: int) -> None:
        """Drop what was accumulated; the next parts belong to a step."""
        self._learner.drop()
        self._begun, self._trained = (step, []), []

    def _sequences(self, groups: Sequence[Group], teachers: _Teachers | None = None) -> list[TrainSequence]:
        pictures = self._pictures() if self._pictures is not None else None
        return training_sequences(groups, self._advantage, teachers, pictures)

    async def catch_up(self, groups: Sequence[Group], step: int, parts: Parts) -> None:
        """Add in another thread those parts of a step that the learner lacks, as after its loss. Raises as `step` does."""
        await asyncio.to_thread(self._catch_up, groups, step, parts)

    def _catch_up(self, groups: Sequence[Group], step: int, parts: Parts) -> None:
        wanted, added = [tuple(part) for part in parts], self._begun[1]
        if self._begun[0] != step or added != wanted[: len(added)]:
            self._drop(step)
        named = {group.request_id: group for group in groups}
        for part in wanted[len(self._begun[1]) :]:
            self._add([named[request] for request in part], step)

    async def step(
        self,
        groups: Sequence[Group],
        step: int,
        lessons: Sequence[Lesson] = (),
        parts: Parts = (),
        redraws: Sequence[Group] = (),
    ) -> dict[str, float]:
        """Take one step on judged groups, taught by lessons where there is a patch; `parts` as `LearnerPort.step`.

        Raises:
            RuntimeError: when no group has two scores to compare.
            ExperienceLeakError: when a student's context holds experience.
            StoredPictureMismatch: for a picture that is not the one that the policy saw.
        """
        teachers = _Teachers(self._patch, lessons) if self._patch is not None else None
        self._catch_up(groups, step, parts)
        self._begun = (0, [])
        added = {request for part in parts for request in part}
        rest = [group for group in groups if group.request_id not in added]
        self._trained += trained_trajectories(rest)
        if not self._trained:
            reasons = {t.reason for g in groups for t in g.trajectories if t.outcome is Outcome.INFRA_FAILURE}
            raise RuntimeError(
                f"step {step} has no training data, because all {len(groups)} groups are incomplete: {reasons}"
            )
        sequences, draws = self._sequences(rest, teachers), None
        if self._redraws is not None and redraws:
            draws = self._redraws(groups, redraws, lessons, self._pictures() if self._pictures is not None else None)
        metrics = self._learner.train_step(sequences, step - 1, draws)
        if self._yields:
            from genevolve_ray.learning.policy import release_cached_memory

            release_cached_memory()
        if teachers is not None:
            metrics["teacher_contexts_too_long"] = float(teachers.too_long)
            metrics |= turn_gap_metrics(self._trained, self._learner.gaps)
        return {f"learner_{name}" if name in _OWN else name: value for name, value in metrics.items()}

    async def teacher_disagreement(self) -> list[MovedToken]:
        """Return, for each taught request of the last step, the tokens with the largest |log pi - log q|."""
        found: dict[str, list[MovedToken]] = {}
        for trajectory, gaps in zip(self._trained, self._learner.gaps, strict=True):
            if not gaps:
                continue
            places = [i for i, wanted in enumerate(trajectory.ledger.policy_mask) if wanted]
            found.setdefault(trajectory.key.request_id, []).extend(
                MovedToken(trajectory=str(trajectory.key), position=place, gap=gap)
                for place, gap in zip(places, gaps, strict=True)
            )
        return [m for tokens in found.values() for m in sorted(tokens, key=lambda m: -abs(m.gap))[:MOVED_TOKENS]]

    async def publish(self, version: int) -> PublishedWeights:
        """Write the weights as a version, and return it with the probe that engines must reproduce."""
        # All ranks of a learner do their joint work first: a full disk then fails rank 0 alone, and no other waits for
        # it.
        probe = await self.probe()
        return PublishedWeights(version, probe, FolderPayload(await self.write(version)))

    async def release(self, version: int) -> None:
        """Remove a version that every engine has replaced."""
        self._folders.release(version)

    async def probe(self) -> Probe:
        """Return the probe that engines with these weights must reproduce."""
        probe = self._probe
        return Probe(
            token_ids=probe.tokens,
            logprobs=tuple(self._learner.raw_logprobs(probe.tokens, probe.images)),
            tolerance=self._tolerance,
            media=probe.media,
            tensors=self._checksums(),
        )

    def _checksums(self) -> dict[str, int] | None:
        """Return the checksums of the tensors that are published; the learner of a rehearsal has none."""
        from genevolve_ray.learning.step import Learner

        if not isinstance(self._learner, Learner):
            return None
        return self._learner.outgoing().checksums(factors=self._learner.config.publishes_adapter)

    async def write(self, version: int) -> str:
        """Write the weights to a fresh folder for a version, and return it."""
        folder = self._folders.create(version)
        with _writing(folder):
            self._learner.write_weights(folder)
        return folder

    def outgoing(self) -> OutgoingWeights:
        """Return the weights as tensors, for engines that receive them over device memory."""
        from genevolve_ray.learning.step import Learner

        if not isinstance(self._learner, Learner):
            raise TypeError(f"a {type(self._learner).__name__} provides weights only as a folder")
        return self._learner.outgoing()

    async def save(self, folder: str) -> None:
        """Write a checkpoint."""
        with _writing(folder):
            self._learner.save(folder)

    async def restart(self) -> None:
        """Do nothing: there is no other process, so a lost learner ends the run's process as well."""
        raise LearnerLost("the learner runs in the process of the run")

    async def load(self, folder: str) -> None:
        """Restore a checkpoint."""
        self._begun = (0, [])
        self._learner.load(folder)

    async def state_hash(self) -> str:
        """Return the hash over weights and optimizer."""
        return self._learner.state_hash()


@contextmanager
def _writing(folder: str) -> Iterator[None]:
    """Raise OSError for the various errors of torch and safetensors on a full disk."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if type(error) not in (RuntimeError, SafetensorError):
            raise  # not a disk error: a GPU that is out of memory, or ranks that lost each other
        free = shutil.disk_usage(folder).free
        raise OSError(errno.EIO, f"{folder} cannot be written ({free} bytes are free there): {error}") from error


class _Teachers:
    """Hold the teacher's context of each trajectory of a step, and the number that were too long to have one."""

    def __init__(self, patch: TeacherPatch, lessons: Sequence[Lesson]) -> None:
        self._patch, self.too_long = patch, 0
        self._lessons = {lesson.request_id: lesson.experience for lesson in lessons}

    def __call__(self, trajectory: Trajectory, images: ImageInputs | None) -> TeacherContext | None:
        self._patch.check_student(trajectory)
        experience = self._lessons.get(trajectory.key.request_id)
        context = self._patch.context(trajectory, experience, images) if experience is not None else None
        self.too_long += experience is not None and context is None
        return context


def build_learner(
    config: EvolutionConfig,
    model_dir: Path,
    banned: Sequence[int],
    chat: ChatFormat,
    folders: WeightFolders,
    images: ImageStore,
    ranks: Ranks | None = None,
) -> LocalLearner:
    """Load the policy and wrap it.

    Args:
        config: the settings of the run.
        model_dir: the policy, in HF layout.
        banned: ids that have no probability in engine and learner.
        chat: the policy's template; the probe is drawn from the ids of its tokenizer.
        folders: where versions are written.
        images: the store of the run, with the pictures that the policy saw.
        ranks: this process's place among several that share the policy.
    """
    probe = probe_context(config, banned, chat)
    learner = _policy_learner(config, model_dir, banned, ranks)
    patch, redraws = None, None
    if config.experience.enabled:
        limits = (config.engine_for(context := context_length(model_dir)).max_model_len, context)
        limit = min((n for n in limits if n is not None), default=sys.maxsize)
        patch = TeacherPatch(chat, config.protocol, limit, config.learner.ved.gate_kinds)
        redraws = RedrawTraining.of(config, patch)
    pictures = partial(TrajectoryPictures, chat.image_tokens, images)
    return LocalLearner(
        learner,
        config.learner.advantage,
        probe,
        probe_tolerance(config),
        folders,
        patch,
        pictures,
        redraws,
        yields=config.engine.vllm.sleep,
    )


def probe_tolerance(config: EvolutionConfig) -> float:
    """Return the largest mean |engine - learner| log-prob on the probe: that of `loop.parity_limit`, more in 16 bits."""
    limit = config.loop.parity_limit
    exact = config.engine.dtype == "float32" and config.learner.dtype in ("float32", "float64")
    return limit if exact else max(limit, PROBE_TOLERANCE_16_BITS)


def probe_context(config: EvolutionConfig, banned: Sequence[int], chat: ChatFormat) -> ProbeContext:
    """Return the probe of a run, which follows from its seed; where the policy sees pictures, it has one."""
    rng = np.random.default_rng(derive_seed(config.seed, "probe"))
    sees = chat.image_tokens is not None
    # A token of a picture that is not there would have no meaning, and such tokens are banned.
    left_out = frozenset(banned) if sees else frozenset()
    ids = [i for i in range(len(chat.tokenizer)) if i not in left_out]
    tokens = [ids[place] for place in rng.integers(len(ids), size=PROBE_TOKENS)]
    if sees and config.protocol.observations.images and config.rehearsal is None:
        return seeing_probe(tokens, chat, rng)
    return ProbeContext(tuple(tokens))


def _policy_learner(
    config: EvolutionConfig, model_dir: Path, banned: Sequence[int], ranks: Ranks | None
) -> Learner | NullLearner:
    if config.rehearsal is not None:
        from genevolve_ray.learning.null import NullLearner

        rehearsal = config.rehearsal
        return NullLearner(rehearsal.step_seconds, rehearsal.weights_mib, first=ranks is None or ranks.first)
    from genevolve_ray.learning.step import Learner

    return Learner(model_dir, config.learner, banned, ranks=ranks)


def trained_trajectories(groups: Sequence[Group]) -> list[Trajectory]:
    """Return the trajectories that a step trains on, in its order.

    A group with fewer than two scores has nothing to compare and is left out; infrastructure failures never enter.

    Raises:
        ValueError: for a trajectory that has only text, without tokens to learn from.
        ExperienceLeakError: for one that was sampled with experience in its context.
    """
    kept = ([t for t in g.trajectories if t.outcome in (Outcome.SCORED, Outcome.POLICY_FAILURE)] for g in groups)
    trained = [t for scored in kept if len(scored) > 1 for t in scored]
    if guided := next((t for t in trained if t.provenance.guided is not None), None):
        raise ExperienceLeakError(f"trajectory {guided.key} is a guided re-draw, which no group may hold")
    if text := next((t for t in trained if not t.has_tokens), None):
        raise ValueError(
            f"trajectory {text.key} of {text.provenance.engine} has no tokens and no log-probs to train on"
        )
    return trained


def training_sequences(
    groups: Sequence[Group],
    config: AdvantageConfig,
    teacher: Callable[[Trajectory, ImageInputs | None], TeacherContext | None] | None = None,
    pictures: PicturesOf | None = None,
) -> list[TrainSequence]:
    """Turn judged groups into sequences with group-relative advantages (PAPER section 3).

    The order is that of `trained_trajectories`.

    Args:
        groups: the groups of a step.
        config: settings of the advantages.
        teacher: returns the teacher's context of a trajectory with its pictures, None where no bundle was recalled for
            its request.
        pictures: returns the pictures of a trajectory; without it, trajectories show none.
    """
    sequences = []
    for _, members in groupby(trained_trajectories(groups), key=lambda t: t.key.request_id):
        scored = list(members)
        advantages = group_advantages([t.compared for t in scored], config).values
        for t, advantage in zip(scored, advantages, strict=True):
            images = pictures(t) if pictures is not None else None
            sequences.append(
                TrainSequence(
                    t.ledger.tokens,
                    t.ledger.policy_mask,
                    t.ledger.logprobs,
                    advantage,
                    versions=t.ledger.versions,
                    teacher=teacher(t, images) if teacher is not None else None,
                    images=images,
                )
            )
    return sequences
