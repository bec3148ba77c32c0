"""Inspection of a pushed episode: cheap checks, the replay, and the scores of the run's own weights."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.profile import ProtocolProfile, built_in
from genevolve_ray.engines.protocol import PromptImage
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.gateway.config import TrustConfig
from genevolve_ray.gateway.leases import Call, SampleLease
from genevolve_ray.gateway.logprobs import Scorer, Scores
from genevolve_ray.gateway.meters import WorkerMeter
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.gateway.replay import check_columns, rebuild, without_room
from genevolve_ray.gateway.trust import TOLERANCES, Calibration, logprob_gap
from genevolve_ray.gateway.versions import VersionStore
from genevolve_ray.gateway.wire import Push, read_push
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.tools.protocol import Tool


@dataclass(frozen=True)
class PolicyFacts:
    """Hold the gateway's facts about the policy, without its weights."""

    chat: ChatFormat
    profile: ProtocolProfile
    tools: Mapping[str, Tool]
    vocabulary: int
    banned: frozenset[int]
    max_model_len: int
    dtype: str

    @property
    def own_profile(self) -> ProtocolProfile | None:
        """The profile, None where its name says all."""
        return None if built_in(self.profile) else self.profile

    async def load_processor(self) -> None:
        """Load the image processor of a policy that sees: with torch behind it, seconds that no event loop should lose."""
        if self.profile.observations.images and self.chat.image_tokens is not None:
            await asyncio.to_thread(getattr, self.chat.image_tokens, "processor")


class Inspector:
    """Turn pushed episodes into the gateway's own trajectories, or refuse them."""

    def __init__(
        self,
        facts: PolicyFacts,
        config: TrustConfig,
        version_store: VersionStore,
        scorer: Scorer,
        images: ImageStore | None = None,
    ) -> None:
        """Combine the parts; `images` holds the pictures that the policy sees."""
        self._images = images
        self._facts, self._config, self._version_store, self._scorer = facts, config, version_store, scorer
        mean, largest = TOLERANCES[facts.dtype]
        self._mean, self._largest = config.mean_tolerance or mean, config.token_tolerance or largest
        self._calibrations: dict[str, Calibration] = {}
        self._dice = random.SystemRandom()  # the sample of scored trajectories must be unpredictable outside

    async def without_room(self, task: RolloutTask) -> Trajectory | None:
        """Return the end of a sample whose prompt is too long; None for any other, which a worker is to play."""
        facts = self._facts
        return await without_room(
            task, chat=facts.chat, profile=facts.profile, tools=facts.tools, max_model_len=facts.max_model_len
        )

    def read(self, lease: SampleLease, body: bytes) -> Push:
        """Return an episode that passes the checks without a replay; it may be called in a thread.

        Raises:
            GatewayRefusal: for a body that is no episode, and for an episode that fails a check.
        """
        push = read_push(body)
        check_columns(
            push.ledger,
            vocabulary=self._facts.vocabulary,
            banned=self._facts.banned,
            oldest=lease.version,
            newest=self._version_store.newest,
        )
        return push

    async def inspect(self, lease: SampleLease, push: Push, own: Sequence[Call], meter: WorkerMeter) -> Trajectory:
        """Return the trajectory for training; `own` are the calls that a trusted worker executed itself.

        Raises:
            GatewayRefusal: for an episode that fails a check; the evidence holds the scores where there are any.
        """
        facts, task = self._facts, lease.sample.task
        await facts.load_processor()
        trajectory = await rebuild(
            task,
            push.ledger,
            lease.calls or own,
            worker=lease.owner,
            chat=facts.chat,
            profile=facts.profile,
            tools=facts.tools,
            max_model_len=facts.max_model_len,
        )
        for version in {v for v, m in zip(push.ledger.versions, push.ledger.policy_mask, strict=True) if m}:
            if version not in self._version_store.versions():
                raise GatewayRefusal(RefusalReason.VERSION_STALE, f"version {version} is no longer kept")
        if trajectory.ledger.policy_tokens and self._is_due(meter):
            await self._score(trajectory, lease, meter)
        return trajectory

    def _is_due(self, meter: WorkerMeter) -> bool:
        return meter.scored < self._config.probation or self._dice.random() < self._config.spot_check

    async def _score(self, trajectory: Trajectory, lease: SampleLease, meter: WorkerMeter) -> None:
        """Compare log-probs and sampling statistics with the run's own policy. Raises GatewayRefusal."""
        config, ledger = self._config, trajectory.ledger
        scores = await self._scores(trajectory, lease)
        pushed = [x for x, policy in zip(ledger.logprobs, ledger.policy_mask, strict=True) if policy]
        gap = logprob_gap(pushed, scores, lease.sample.task.sampling.top_p)
        meter.scored, meter.gap = meter.scored + 1, gap.mean
        evidence: dict[str, object] = {"own_logprobs": scores.logprobs, "pushed_logprobs": pushed}
        if not (gap.mean <= self._mean and gap.largest <= self._largest):
            raise GatewayRefusal(
                RefusalReason.WRONG_LOGPROBS,
                f"difference {gap.mean:.3g} in the mean, {gap.largest:.3g} at most; "
                f"tolerances are {self._mean:g} and {self._largest:g}",
                evidence,
            )
        calibration = self._calibrations.setdefault(lease.owner, Calibration(config.calibration_window))
        calibration.add(scores)
        drift = calibration.drift()
        meter.drift = drift.mean
        if drift.tokens < config.calibration_tokens or abs(drift.mean) <= config.calibration_drift:
            return
        if abs(drift.z) > config.calibration_bound:
            raise GatewayRefusal(
                RefusalReason.MISCALIBRATED,
                f"log-prob and entropy differ by {drift.mean:+.3g} nats a token over {drift.tokens} tokens, "
                f"{drift.z:+.1f} standard errors",
                evidence,
            )

    async def _scores(self, trajectory: Trajectory, lease: SampleLease) -> Scores:
        """Return the scores of the policy tokens, each under the version that sampled it."""
        ledger, sampling = trajectory.ledger, lease.sample.task.sampling
        versions = [v for v, policy in zip(ledger.versions, ledger.policy_mask, strict=True) if policy]
        pictures = await asyncio.to_thread(self._pictures, trajectory)
        found = {}
        for version in sorted(set(versions)):
            folder = self._version_store.get(version).folder
            found[version] = await self._scorer.score(
                folder, ledger.tokens, ledger.policy_mask, sampling.temperature, sampling.top_p, pictures
            )
        return Scores(*([found[v][column][i] for i, v in enumerate(versions)] for column in range(4)))

    def _pictures(self, trajectory: Trajectory) -> list[PromptImage]:
        """Return the pictures of a trajectory as the gateway stores them. Raises GatewayRefusal for a missing one."""
        if not trajectory.ledger.media:
            return []
        assert self._images is not None, "a gateway whose tools show pictures needs their store"
        try:
            return [
                PromptImage(span=span, data=self._images.get(trajectory.shown(span.sha256)))
                for span in trajectory.ledger.media
            ]
        except OSError as error:
            raise GatewayRefusal(RefusalReason.UNKNOWN_FILE, "a picture that the tools showed is missing") from error
