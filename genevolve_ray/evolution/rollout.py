"""One rollout from request to verdict; the same code runs in process and inside a rollout worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from genevolve_ray.agent.episode import run_episode
from genevolve_ray.agent.observer import EpisodeObserver
from genevolve_ray.agent.policy_session import PolicySession
from genevolve_ray.agent.profile import ProtocolProfile, prompt_messages
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.judging import Panel
from genevolve_ray.evolution.ports import GroupJudgePort, JudgePort, RenderPort, RolloutTask
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.secrets import redacted
from genevolve_ray.records.trajectory import Outcome, Trajectory, timed
from genevolve_ray.records.usage import metered
from genevolve_ray.records.verdict import RewardConfig
from genevolve_ray.tools.protocol import Tool

OpenSession = Callable[[SamplingParams], PolicySession]
"""Returns the policy for one conversation."""


class Scoring:
    """Render and judge the programs of episodes, independent of where these were played."""

    def __init__(
        self,
        renderer: RenderPort,
        judge: JudgePort | GroupJudgePort,
        reward: RewardConfig,
        generation: int = 0,
        others: Mapping[str, JudgePort | GroupJudgePort] | None = None,
    ) -> None:
        """Combine the parts.

        Args:
            renderer: draws programs.
            judge: the run's judge.
            reward: its settings.
            generation: the number of the renderer, which tasks name.
            others: further judges by name.

        Raises:
            UserFault: for a reward that these judges cannot give.
        """
        self.panel = Panel(judge, others or {}, reward)
        self._renderers: dict[int, RenderPort] = {generation: renderer}

    def add_renderer(self, generation: int, renderer: RenderPort) -> None:
        """Use a renderer for the tasks of a generation."""
        self._renderers[generation] = renderer

    def drop_renderer(self, generation: int) -> None:
        """Remove a renderer that no task needs any more; a missing one is not an error."""
        self._renderers.pop(generation, None)

    async def score(self, task: RolloutTask, trajectory: Trajectory) -> Trajectory:
        """Render and judge a played sample. A failure of an external service becomes the outcome INFRA_FAILURE.

        Where a judge judges groups, a sample of a group remains PENDING until `Panel.judge_group`.
        """
        renderer = self._renderers[task.renderer]
        trajectory.provenance = trajectory.provenance.model_copy(
            update={
                "renderer": renderer.identity,
                "judge": self.panel.identity,
                "render_seed": task.render_seed,
            }
        )
        if trajectory.outcome is Outcome.PENDING and trajectory.program is not None:
            await self._judged(task, trajectory, trajectory.program, renderer)
            if task.alone:
                await self.panel.judge_group(task.request, [trajectory])
        return trajectory

    async def _judged(self, task: RolloutTask, trajectory: Trajectory, program: Program, renderer: RenderPort) -> None:
        references = trajectory.references
        try:
            with timed(trajectory.timings, "render"):
                trajectory.rendered = await renderer.render(
                    program.gen_prompt, [r.image for r in references], task.render_seed
                )
            with timed(trajectory.timings, "judge"):
                judged = await self.panel.judge(task.request, trajectory.rendered, program, references)
            self.panel.settle(trajectory, judged)
        except InfraFailure as failure:
            trajectory.outcome, trajectory.reason = Outcome.INFRA_FAILURE, str(failure)


class Rollouts:
    """Play episodes, and have their programs rendered and judged where there is a scoring.

    Episodes may run concurrently.
    """

    def __init__(
        self,
        open_session: OpenSession,
        tools: Mapping[str, Tool],
        profile: ProtocolProfile,
        date: str = "",
        scoring: Scoring | None = None,
    ) -> None:
        """Combine the parts.

        Args:
            open_session: returns the policy for one conversation.
            tools: by name.
            profile: the protocol of the episodes.
            date: required by profiles that append the date.
            scoring: renders and judges; without it a valid program ends as PENDING.
        """
        self._open_session, self._tools, self._profile, self._date = open_session, tools, profile, date
        self._scoring = scoring

    @property
    def tools(self) -> tuple[str, ...]:
        """Names of the tools."""
        return tuple(self._tools)

    async def rollout(self, task: RolloutTask, observer: EpisodeObserver | None = None) -> Trajectory:
        """Draw one sample. A failure of an external service becomes the outcome INFRA_FAILURE.

        `observer` listens to the episode.
        """
        with metered() as meter:
            trajectory = await run_episode(
                task.request,
                key=task.key,
                session=self._open_session(task.sampling),
                tools=self._tools,
                profile=self._profile,
                seed=task.seed,
                experience=task.experience,
                split=task.split,
                date=self._date,
                observer=observer,
            )
            if self._scoring is not None:
                trajectory = await self._scoring.score(task, trajectory)
        trajectory.usage = dict(meter.by_service)
        trajectory.reason = redacted(trajectory.reason)
        return trajectory

    def opening(self, request: Request) -> list[dict[str, str]]:
        """Return the messages before the first turn."""
        return prompt_messages(request.prompt, self._profile, self._tools, date=self._date)
