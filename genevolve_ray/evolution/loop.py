"""Evolution loop of PAPER sections 3 and 4: rollouts, judgment, experience, one learner step, publication.

With `loop.max_staleness` above 0, the rollouts of the next steps continue during the learner step (DESIGN section 5);
nothing else differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.alarms import AlarmStop, AlarmWatch
from genevolve_ray.evolution.collect import evaluate
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.curriculum import CurriculumRequests, check_pool, follow_curriculum
from genevolve_ray.evolution.generations import RendererGenerations
from genevolve_ray.evolution.judging import Panel
from genevolve_ray.evolution.metrics import (
    Clock,
    check_parity,
    evaluation_metrics,
    group_metrics,
    usage_metrics,
    warnings_of,
)
from genevolve_ray.evolution.monitor import Monitor
from genevolve_ray.evolution.outage import Patience, Remainder, check_prompts_fit, main_reason
from genevolve_ray.evolution.overlap import Comparisons, Overlap, part_state
from genevolve_ray.evolution.ports import (
    ExperiencePort,
    ExperienceStep,
    LearnerLost,
    LearnerPort,
    RequestSource,
    RolloutPort,
)
from genevolve_ray.evolution.redraws import check_panel, draw_again, left_out, redraw_metrics
from genevolve_ray.evolution.restore import restore, revive
from genevolve_ray.evolution.store.lessons import lesson_state, redraw_state
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.evolution.stream import Batch, RolloutStream
from genevolve_ray.evolution.telemetry.watching import UNHEARD, StreamListener
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Group, Trajectory


@dataclass
class Evolution:
    """Run an evolution: the loop with all its parts, behind protocols."""

    config: EvolutionConfig
    requests: RequestSource
    rollouts: RolloutPort
    learner: LearnerPort
    store: RunStore
    monitor: Monitor
    experience: ExperiencePort | None = None
    generations: RendererGenerations = field(default_factory=RendererGenerations)
    warned: set[str] = field(default_factory=set)
    """Metrics that a note was made of."""
    panel: Panel | None = None
    """The judges, where some of them judge groups."""
    listener: StreamListener = UNHEARD
    """Hears of the groups that are judged, and of the samples by state."""

    def __post_init__(self) -> None:
        """Prepare for outages and for the overlap of rollouts and learner."""
        self.patience = Patience(self.config.loop.outage_limit, self.monitor)
        config, experience = self.config, self.experience
        self.overlap = Overlap(self.learner, config.part_tokens if config.learns_early else math.inf)
        self.comparisons = Comparisons(experience if config.compares_early else None, lambda n: self.requests.train(n))
        self.alarms = AlarmWatch(config.alarms, config.loop.parity_limit)

    async def start(self) -> int:
        """Restore the last committed state, publish it to the engines, and return its policy version.

        Raises UserFault for judges or a source of requests that do not fit the configuration.
        """
        check_panel(self.config, self.panel)
        check_pool(self.requests, self.config.loop.curriculum)
        await self.rest()
        version = await restore(
            self.store, self.learner, self.experience, self.monitor, exact=self.config.learner.exact
        )
        for message in self.store.damage.values():
            self.monitor.note(f"{message}; nothing that the run needs is lost")
        self.alarms = self.alarms.after_all(self.store.metrics())
        for name, since in self.alarms.active().items():
            self.monitor.note(f"alarm {name.value} is raised since step {since}")
        await self.publish(version)
        return version

    async def rest(self) -> None:
        """Let engines that share the learner's GPUs free them until the next version, where the run says so."""
        if self.config.engine.vllm.sleep:
            await self.rollouts.rest()

    async def run(self, version: int) -> None:
        """Evolve the policy from `version`, which `start` returned, to the last step."""
        config = self.config
        store, monitor, sampling = self.store, self.monitor, self.sampling()
        redraws = config.experience.redraws.draws > 0
        self.requests = follow_curriculum(self.requests, config, store, version)
        stream = RolloutStream(
            config,
            self.requests,
            self.rollouts,
            store,
            monitor,
            sampling,
            version,
            self.generations,
            self.patience,
            self.offer,
            self.panel,
            self.listener,
        )
        try:
            for step in range(version + 1, config.loop.steps + 1):
                clock = Clock()
                self.overlap.begin(step)
                self.comparisons.begin(step)
                batch = await stream.take(step)
                if not redraws:
                    await self.rest()
                clock.lap("seconds_rollout")
                experience = await self.recall(batch, step)
                clock.lap("seconds_experience")
                if redraws:
                    batch = await self.redraw(batch, experience, step)
                    await self.rest()
                    clock.lap("seconds_redraws")
                while not await self.advance(step, batch, experience, clock):
                    await revive(self.store, self.learner, self.monitor, exact=self.config.learner.exact)
        finally:
            await stream.close()
            await self.overlap.close()
            await self.comparisons.close()

    def offer(self, groups: Mapping[int, Group]) -> None:
        """Begin to work on the groups of a step that are complete so far, by lease."""
        self.overlap.offer(groups.values())
        self.comparisons.offer(groups)

    async def advance(self, step: int, batch: Batch, experience: ExperienceStep, clock: Clock) -> bool:
        """Learn from a batch, publish and commit; return False without a commit when the learner was lost."""
        self.monitor.phase("learning", 0, len(batch.groups))
        metrics = group_metrics(batch.groups, self.config.reward) | batch.metrics | experience.metrics
        if isinstance(self.requests, CurriculumRequests):
            metrics |= self.requests.hear(step, batch.drawn)
        self.warn(f"step {step}", metrics)
        try:
            parts = await self.overlap.settle(batch.groups)
            metrics |= await self.learner.step(batch.groups, step, experience.lessons, parts, batch.redraws)
            check_parity(step, metrics, self.config.loop.parity_limit)
            clock.lap("seconds_learn")
            metrics["probe_difference"] = await self.publish(step)
            clock.lap("seconds_sync")
            await self.commit(step, batch, experience, metrics, clock)
        except LearnerLost as error:
            self.monitor.note(f"step {step}: {error}")
            return False
        return True

    def warn(self, when: str, metrics: Mapping[str, float]) -> None:
        """Note metrics that make results doubtful, each once."""
        for name, text in warnings_of(metrics).items():
            if name not in self.warned:
                self.warned.add(name)
                self.monitor.note(f"{when}: {text}")

    async def recall(self, batch: Batch, step: int) -> ExperienceStep:
        """Turn best-worst pairs into bundles, and return the bundle that each request recalls, including its own.

        Raises:
            OutageError: when summarizer or embedder failed for every pair for too long.
        """
        if self.experience is None:
            return ExperienceStep()
        self.monitor.phase("experience", 0, len(batch.groups))
        await self.comparisons.settle()
        while (learned := await self.experience.learn(batch.requests, batch.groups, step)).outage:
            await self.patience.wait(f"the experience of step {step}", learned.outage)
        self.patience.over()
        for fault in learned.faults:
            self.monitor.note(f"step {step}, experience: {fault}")
        return learned

    async def redraw(self, batch: Batch, experience: ExperienceStep, step: int) -> Batch:
        """Sample the requests of stuck groups again with the guides that they recalled, and return the batch with that."""
        redraws = await draw_again(
            self.config,
            self.rollouts,
            batch.requests,
            batch.groups,
            experience.lessons,
            step,
            sampling=self.sampling(),
            generations=self.generations,
            on_begin=lambda count: self.monitor.phase("redraws", 0, count),
            on_trajectory=self.monitor.trajectory,
        )
        for note in left_out(redraws):
            self.monitor.note(f"step {step}: {note}")
        settings, every = self.config.experience, [*batch.drawn.values(), *redraws]
        metrics = redraw_metrics(batch.groups, redraws, settings.redraws, settings.min_gap)
        metrics |= usage_metrics([t for group in every for t in group.trajectories])
        return replace(batch, redraws=redraws, metrics=batch.metrics | metrics)

    async def publish(self, version: int) -> float:
        """Publish the learner's weights; engines sample only after the probe agrees. Returns the difference."""
        self.monitor.phase("publishing", 0, 1)
        weights = await self.learner.publish(version)
        difference = await self.rollouts.update(weights)
        # The current version stays: a rollout worker that restarts needs it before its first token.
        await self.learner.release(version - 1)
        return difference

    async def commit(
        self, step: int, batch: Batch, experience: ExperienceStep, metrics: dict[str, float], clock: Clock
    ) -> None:
        """Validate and checkpoint where due, then commit the step by its one manifest."""
        loop, last = self.config.loop, step == self.config.loop.steps
        alarms, raised = self.alarms.after(step, metrics)
        stopping = [] if last else alarms.stopping(raised)
        validation = None
        if loop.validate_every and (step % loop.validate_every == 0 or last):
            requests = self.requests.validation(loop.validation_requests)
            validation = evaluation_metrics(await self.evaluate(requests, "validation"), self.config.reward)
            clock.lap("seconds_validation")
        state_hash = await self.learner.state_hash()
        moved = await self.learner.teacher_disagreement() if experience.lessons else []
        if step % loop.checkpoint_every == 0 or last or stopping:
            with self.store.checkpoint(step, state_hash, validation) as folder:
                await self.learner.save(str(folder))
        if self.experience is not None:
            if self.store.whole_experience_due(step):
                self.store.put_experience(step, await self.experience.snapshot())
            else:
                self.store.put_experience_changes(step, await self.experience.changes())
        clock.lap("seconds_commit")
        metrics |= clock.seconds() | self.overlap.metrics() | alarms.metrics()
        # In parallel with the learner, rollouts take the whole step.
        seconds = metrics["seconds_rollout" if loop.mode == "sync" else "seconds_step"]
        sampled = metrics["policy_tokens"] + metrics.get("dynamic_tokens_dropped", 0.0)
        metrics["tokens_per_second"] = sampled / seconds
        state = lesson_state(experience.lessons, moved) | {"flow": batch.flow.model_dump(mode="json")}
        if isinstance(self.requests, CurriculumRequests):
            state["curriculum"] = self.requests.state(batch.flow).model_dump(mode="json")
        state |= {"renderer_swap": self.generations.current} | part_state(self.overlap.parts)
        state |= redraw_state(self.store, step, batch.redraws)
        truths = {r.id: r.truth_image for r in batch.requests if r.truth_image is not None}
        state["truths"] = {name: ref.model_dump(mode="json") for name, ref in truths.items()}
        state["alarms"] = [alarm.model_dump(mode="json") for alarm in raised]
        self.store.commit_step(step, batch.groups, metrics, state_hash, validation, loop=state)
        self.alarms = alarms
        self.monitor.step(step, metrics, validation)
        for alarm in raised:
            self.monitor.note(f"step {step}, alarm {alarm.name.value}: {alarm.text}")
        if stopping:
            names = ", ".join(alarm.name.value for alarm in stopping)
            raise AlarmStop(
                f"stopped after step {step}, which is committed with a checkpoint, by alarms.stop={names}: "
                f"{stopping[0].text}. The same command resumes the run"
            )

    async def evaluate(self, requests: Sequence[Request], split: str) -> list[Trajectory]:
        """Draw one rollout of each request with the current weights, sampled as in training.

        Samples that failed from outside are drawn again after a wait, as `Remainder` decides. Raises OutageError, and
        UserFault where no prompt fits.
        """
        rest = Remainder(len(requests))
        while rest.places:
            self.monitor.phase("validating", 0, len(rest.places))
            drawn = await evaluate(
                [requests[place] for place in rest.places],
                self.rollouts,
                run_seed=self.config.seed,
                sampling=self.sampling(),
                split=split,
                on_trajectory=self.monitor.trajectory,
                generations=self.generations,
            )
            check_prompts_fit(f"the {split} requests", drawn)
            if rest.settles(drawn, self.patience.left):
                self.patience.over()
                break
            await self.patience.wait(f"{len(rest.places)} of {len(requests)} {split} samples", main_reason(drawn))
        self.warn(split, evaluation_metrics(rest.trajectories))
        return rest.trajectories

    def sampling(self) -> SamplingParams:
        """Return the sampling parameters of training and validation rollouts."""
        return SamplingParams(temperature=self.config.sampling.temperature, top_p=self.config.sampling.top_p)
