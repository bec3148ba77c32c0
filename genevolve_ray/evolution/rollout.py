"""One rollout from request to verdict; the same code runs in process and inside a rollout worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.episode import run_episode
from genevolve_ray.agent.policy_session import PolicySession, TokenSpeaker
from genevolve_ray.agent.profile import ProtocolProfile, prompt_messages
from genevolve_ray.engines.protocol import Engine, SamplingParams
from genevolve_ray.errors import InfraFailure
from genevolve_ray.evolution.ports import JudgePort, RenderPort, RolloutTask
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Outcome, Trajectory
from genevolve_ray.records.usage import metered
from genevolve_ray.records.verdict import RewardConfig, combine_reward
from genevolve_ray.tools.protocol import Tool


class Scoring:
    """Has the programs of episodes rendered and judged, wherever they were played."""

    def __init__(self, renderer: RenderPort, judge: JudgePort, reward: RewardConfig, generation: int = 0) -> None:
        """Bring the parts together; `generation` is the number of the renderer, which tasks name."""
        self._judge, self._reward = judge, reward
        self._renderers: dict[int, RenderPort] = {generation: renderer}

    def add_renderer(self, generation: int, renderer: RenderPort) -> None:
        """Draw tasks of a generation with a renderer."""
        self._renderers[generation] = renderer

    def drop_renderer(self, generation: int) -> None:
        """Forget a renderer that no task needs any more; one that is not there is no error."""
        self._renderers.pop(generation, None)

    async def score(self, task: RolloutTask, trajectory: Trajectory) -> Trajectory:
        """Render and judge a played sample. A failure of the outside world becomes the outcome INFRA_FAILURE."""
        renderer = self._renderers[task.renderer]
        trajectory.provenance = trajectory.provenance.model_copy(
            update={
                "renderer": renderer.identity,
                "judge": self._judge.identity,
                "render_seed": task.render_seed,
            }
        )
        if trajectory.outcome is Outcome.PENDING and trajectory.program is not None:
            await self._judged(task, trajectory, trajectory.program, renderer)
        return trajectory

    async def _judged(self, task: RolloutTask, trajectory: Trajectory, program: Program, renderer: RenderPort) -> None:
        references = [trajectory.images[r.img_id] for r in program.reference_images]
        started = perf_counter()
        try:
            trajectory.rendered = await renderer.render(
                program.gen_prompt, [r.image for r in references], task.render_seed
            )
            rendered = perf_counter()
            trajectory.verdict = await self._judge.judge(task.request, trajectory.rendered, program, references)
        except InfraFailure as failure:
            trajectory.outcome, trajectory.reason = Outcome.INFRA_FAILURE, str(failure)
            return
        trajectory.timings["render"] = rendered - started
        trajectory.timings["judge"] = perf_counter() - rendered
        trajectory.reward = combine_reward(trajectory.verdict, trajectory.tool_calls, self._reward)
        trajectory.outcome = Outcome.SCORED


class Rollouts:
    """Plays episodes and has their programs rendered and judged; many may run at once."""

    def __init__(
        self,
        *,
        engine: Engine,
        chat: ChatFormat,
        tools: Mapping[str, Tool],
        renderer: RenderPort,
        judge: JudgePort,
        profile: ProtocolProfile,
        reward: RewardConfig,
        generation: int = 0,
    ) -> None:
        """Bring the parts together; `generation` is the number of the renderer, which tasks name."""
        self._engine, self._chat, self._tools, self._profile = engine, chat, tools, profile
        self._scoring = Scoring(renderer, judge, reward, generation)

    def add_renderer(self, generation: int, renderer: RenderPort) -> None:
        """Draw tasks of a generation with a renderer."""
        self._scoring.add_renderer(generation, renderer)

    def drop_renderer(self, generation: int) -> None:
        """Forget a renderer that no task needs any more; one that is not there is no error."""
        self._scoring.drop_renderer(generation)

    async def rollout(self, task: RolloutTask) -> Trajectory:
        """Play, render and judge one sample. A failure of the outside world becomes the outcome INFRA_FAILURE."""
        with metered() as meter:
            trajectory = await self._play(task)
        trajectory.usage = dict(meter.by_service)
        return trajectory

    async def _play(self, task: RolloutTask) -> Trajectory:
        trajectory = await run_episode(
            task.request,
            key=task.key,
            session=TokenSpeaker(self._engine, self._chat, task.sampling),
            tools=self._tools,
            profile=self._profile,
            seed=task.seed,
            experience=task.experience,
            split=task.split,
        )
        return await self._scoring.score(task, trajectory)


class Episodes:
    """Plays episodes without rendering: the agent's half of a rollout."""

    def __init__(
        self,
        speak: Callable[[SamplingParams], PolicySession],
        tools: Mapping[str, Tool],
        profile: ProtocolProfile,
        date: str = "",
    ) -> None:
        """Bring the parts together; `speak` returns the policy for one conversation."""
        self._speak, self._tools, self._profile, self._date = speak, tools, profile, date

    async def rollout(self, task: RolloutTask) -> Trajectory:
        """Play one episode."""
        with metered() as meter:
            trajectory = await run_episode(
                task.request,
                key=task.key,
                session=self._speak(task.sampling),
                tools=self._tools,
                profile=self._profile,
                seed=task.seed,
                experience=task.experience,
                split=task.split,
                date=self._date,
            )
        trajectory.usage = dict(meter.by_service)
        return trajectory

    def opening(self, request: Request) -> list[dict[str, str]]:
        """Return the messages before the first turn."""
        return prompt_messages(request.prompt, self._profile, self._tools, date=self._date)
