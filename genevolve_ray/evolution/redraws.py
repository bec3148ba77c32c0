"""Guided re-draws of stuck groups: further attempts with the recalled guide, learned from without it.

A group is stuck when it compares nothing (`StuckWhen`). Its request may still recall what others taught. The re-draws
are a part of the step of their own: no group holds them, so that no reward, advantage, parity or picture of a training
group is theirs. Their metrics begin with `redraw_`; what they cost counts in the costs of the step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.collect import OnTrajectory, SampleLimits, collect_group, gather_or_cancel
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.generations import RendererGenerations
from genevolve_ray.evolution.judging import Panel
from genevolve_ray.evolution.outage import main_reason, too_long
from genevolve_ray.evolution.ports import RolloutPort, RolloutTask
from genevolve_ray.evolution.teaching import TeacherPatch
from genevolve_ray.learning.advantage import AdvantageConfig, redraw_advantages
from genevolve_ray.learning.batch import ImageInputs, TeacherContext, TrainSequence
from genevolve_ray.learning.redraw_config import GuidedDraws, RedrawConfig, RedrawCorrection, StuckWhen
from genevolve_ray.records.experience import Experience, Lesson
from genevolve_ray.records.request import Request
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.trajectory import GUIDED, Group, Outcome, Trajectory

_ROUNDING = 1e-9
"""0.7 - 0.5 is a gap of 0.2 although the floating-point result is slightly less."""


def is_stuck(group: Group, config: RedrawConfig, min_gap: float) -> bool:
    """Return whether a group compares nothing and is not solved; one without any reward failed from outside.

    Args:
        group: a judged group.
        config: the settings.
        min_gap: least difference of rewards that is worth a comparison (`experience.min_gap`). A failure of the policy
            counts with its reward of 0, as in the advantages: a group of one success and failures is not stuck.
    """
    scores = group.scores()
    if not scores or max(scores) >= config.below:
        return False
    if config.stuck is StuckWhen.ALL_INVALID:
        return all(t.outcome is not Outcome.SCORED for t in group.trajectories)
    if config.stuck is StuckWhen.ZERO_VARIANCE:
        return max(scores) == min(scores)
    gap = max(scores) - min(scores)
    return gap <= _ROUNDING or gap < min_gap - _ROUNDING


def check_panel(config: EvolutionConfig, panel: Panel | None) -> None:
    """Check that re-draws can be judged by themselves. Raises UserFault where a judge compares a whole group."""
    if panel is not None and (names := panel.group_judges):
        check_group_judge(config, f"judges.{names[0]}")


def check_group_judge(config: EvolutionConfig, role: str) -> None:
    """Check that a run with a judge of groups has no re-draws. Raises UserFault naming the judge's key."""
    if config.experience.redraws.draws:
        raise UserFault(
            f"experience.redraws.draws={config.experience.redraws.draws}: {role} judges the attempts of a group "
            "together, and re-draws belong to none: leave out the judge, or the re-draws"
        )


async def draw_again(
    config: EvolutionConfig,
    rollouts: RolloutPort,
    requests: Sequence[Request],
    groups: Sequence[Group],
    lessons: Sequence[Lesson],
    step: int,
    *,
    sampling: SamplingParams,
    generations: RendererGenerations,
    on_begin: Callable[[int], None],
    on_trajectory: OnTrajectory,
) -> list[Group]:
    """Return the re-draws of each stuck group whose request recalled a bundle that says anything, in the order of the groups.

    Seeds derive from step, request and sample, so that a step that is repeated draws the same. Samples are numbered after
    those of their group, and share its render seed.

    Args:
        config: the settings of the run.
        rollouts: plays the samples.
        requests: those of the groups, in their order.
        groups: the groups of the step.
        lessons: bundles by request.
        step: the step that learns.
        sampling: sampling parameters, as of the groups.
        generations: the renderers.
        on_begin: called with the number of samples before the first is drawn.
        on_trajectory: called with every attempt that ended.
    """
    settings, loop = config.experience.redraws, config.loop
    recalled = {lesson.request_id: lesson for lesson in lessons if lesson.experience.guidance}
    wanted = [
        (request, group, recalled[request.id])
        for request, group in zip(requests, groups, strict=True)
        if request.id in recalled and is_stuck(group, settings, config.experience.min_gap)
    ]
    on_begin(len(wanted) * settings.draws)
    slots = None if loop.max_running is None else asyncio.Semaphore(loop.max_running)

    async def draw(request: Request, group: Group, lesson: Lesson) -> Group:
        return await collect_group(
            request,
            group.step,
            rollouts,
            run_seed=config.seed,
            group_size=settings.draws,
            max_attempts=loop.max_attempts,
            sampling=sampling,
            on_trajectory=on_trajectory,
            limits=SampleLimits(slots, loop.sample_deadline),
            generations=generations,
            adjust=partial(guided_task, lesson=lesson, step=step, run_seed=config.seed, after=loop.group_size),
        )

    drawn = await gather_or_cancel(draw(*each) for each in wanted)
    return [group for group in drawn if group.trajectories]


def guided_task(task: RolloutTask, lesson: Lesson, step: int, run_seed: int, after: int) -> RolloutTask:
    """Return the task of a re-draw: with a guide, its provenance, and a seed and a number of its own."""
    key = task.key.model_copy(update={"sample": after + task.key.sample})
    return RolloutTask(
        request=task.request,
        key=key,
        seed=derive_seed(run_seed, "redraw", step, task.request.id, key.sample, key.attempt),
        render_seed=task.render_seed,
        sampling=task.sampling,
        split=f"{GUIDED}{lesson.bundle}",
        experience=lesson.experience,
        renderer=task.renderer,
    )


def left_out(redraws: Sequence[Group]) -> list[str]:
    """Return why some re-draws have no reward, one text for each kind of reason; empty where all have one."""
    last = {(t.key.request_id, t.key.sample): t for group in redraws for t in group.trajectories}
    long = too_long(last.values())
    failed = [t for t in last.values() if t.repeatable]
    why = "re-draws left out, because the guide makes the prompt too long"
    return [
        f"{len(found)} {what}: {main_reason(found)}"
        for found, what in ((long, why), (failed, "re-draws failed from outside"))
        if found
    ]


def comparable(group: Group, redraws: Group) -> list[Trajectory]:
    """Return the re-draws that have a reward which compares with those of their group: of the same renderer and judge."""
    makers = {(t.provenance.renderer, t.provenance.judge) for t in _scored(group)}
    return [t for t in _scored(redraws) if (t.provenance.renderer, t.provenance.judge) in makers]


def redraw_metrics(
    groups: Sequence[Group], redraws: Sequence[Group], config: RedrawConfig, min_gap: float
) -> dict[str, float]:
    """Return the metrics of a step's re-draws; rewards are means over those that compare with their group.

    `redraw_gain` is the mean reward above that of the group's own attempts. `redraw_too_long` counts samples that were left
    out because the guide makes the prompt too long. `redraw_failures` counts those that failed from outside, or were drawn
    with another renderer or judge than their group, as after a swap.
    """
    own = {group.request_id: group for group in groups}
    pairs = [(own[drawn.request_id], t) for drawn in redraws for t in comparable(own[drawn.request_id], drawn)]
    samples = sum(drawn.samples for drawn in redraws)
    long = sum(len(too_long(drawn.trajectories)) for drawn in redraws)
    metrics = {
        "redraw_stuck_groups": float(sum(is_stuck(group, config, min_gap) for group in groups)),
        "redraw_groups": float(len(redraws)),
        "redraw_samples": float(samples),
        "redraw_too_long": float(long),
        "redraw_failures": float(samples - len(pairs) - long),
        "redraw_winners": float(sum(_wins(group, t, config.min_gap or min_gap) for group, t in pairs)),
    }
    if pairs:
        metrics["redraw_reward_mean"] = fmean(t.score for _, t in pairs)
        metrics["redraw_gain"] = fmean(t.score - fmean(group.scores()) for group, t in pairs)
    return metrics


@dataclass(frozen=True)
class RedrawTraining:
    """Turn re-draws into what the learner trains on: sequences without their guide, token for token.

    Attributes:
        patch: removes the guide.
        config: the settings.
        min_gap: reward by which a winner beats the best attempt of its group.
        advantage: settings of the advantages.
    """

    patch: TeacherPatch
    config: RedrawConfig
    min_gap: float
    advantage: AdvantageConfig = AdvantageConfig()

    @staticmethod
    def of(config: EvolutionConfig, patch: TeacherPatch) -> RedrawTraining | None:
        """Return that of a run, None where it draws nothing again."""
        redraws = config.experience.redraws
        gap = redraws.min_gap or config.experience.min_gap
        return RedrawTraining(patch, redraws, gap, config.learner.advantage) if redraws.draws else None

    def __call__(
        self,
        groups: Sequence[Group],
        redraws: Sequence[Group],
        lessons: Sequence[Lesson],
        pictures: Callable[[Trajectory], ImageInputs | None] | None = None,
    ) -> GuidedDraws | None:
        """Return the re-draws of a step for the learner, None when none of them teaches anything.

        Args:
            groups: the groups of the step.
            redraws: their re-draws.
            lessons: the bundles that they were drawn with.
            pictures: returns the pictures of a trajectory; without it, trajectories show none.

        Raises:
            PatchError: when a context does not hold its guide, token for token.
            ExperienceLeakError: when a re-draw holds experience besides its guide.
        """
        own = {group.request_id: group for group in groups}
        guides = {lesson.request_id: lesson.experience for lesson in lessons}
        sequences = [
            self._sequence(guided, guides[drawn.request_id], value, pictures(guided) if pictures is not None else None)
            for drawn in redraws
            for guided, value in self._weighted(own[drawn.request_id], drawn)
        ]
        return GuidedDraws(sequences, self.config) if any(s.policy_tokens for s in sequences) else None

    def _weighted(self, group: Group, drawn: Group) -> list[tuple[Trajectory, float]]:
        """Return the re-draws that are learned from, each with its advantage."""
        found = comparable(group, drawn)
        if self.config.correction is RedrawCorrection.WINNERS:
            return [(t, 1.0) for t in found if _wins(group, t, self.min_gap)]
        values = redraw_advantages(group.scores(), [t.score for t in found], self.advantage)
        return list(zip(found, values, strict=True))

    def _sequence(
        self, guided: Trajectory, guide: Experience, advantage: float, images: ImageInputs | None
    ) -> TrainSequence:
        student = self.patch.unguided(guided, guide).ledger
        return TrainSequence(
            student.tokens,
            student.policy_mask,
            student.logprobs,
            advantage,
            versions=student.versions,
            teacher=TeacherContext(guided.ledger.tokens, guided.ledger.policy_mask, images=images),
            images=images,
        )


def _scored(group: Group) -> list[Trajectory]:
    return [t for t in group.trajectories if t.outcome in (Outcome.SCORED, Outcome.POLICY_FAILURE)]


def _wins(group: Group, redraw: Trajectory, gap: float) -> bool:
    return redraw.outcome is Outcome.SCORED and redraw.score - max(group.scores()) >= gap - _ROUNDING
