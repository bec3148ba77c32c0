"""One rollout from request to verdict; the same code runs in process and inside a rollout worker."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.episode import run_episode
from genevolve_ray.agent.profile import ProtocolProfile
from genevolve_ray.agent.speaker import TokenSpeaker
from genevolve_ray.engines.protocol import Engine
from genevolve_ray.evolution.ports import JudgePort, RenderPort, RolloutTask
from genevolve_ray.metering import metered
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Outcome, Trajectory
from genevolve_ray.records.verdict import RewardConfig, combine_reward
from genevolve_ray.tools.protocol import InfraFailure, Tool


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
    ) -> None:
        """Bring the parts together."""
        self._engine, self._chat, self._tools = engine, chat, tools
        self._renderer, self._judge, self._profile, self._reward = renderer, judge, profile, reward

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
            speaker=TokenSpeaker(self._engine, self._chat, task.sampling),
            tools=self._tools,
            profile=self._profile,
            seed=task.seed,
            experience=task.experience,
            split=task.split,
        )
        trajectory.provenance = trajectory.provenance.model_copy(
            update={
                "renderer": self._renderer.identity,
                "judge": self._judge.identity,
                "render_seed": task.render_seed,
            }
        )
        if trajectory.outcome is Outcome.PENDING and trajectory.program is not None:
            await self._score(task.request, trajectory, trajectory.program, task.render_seed)
        return trajectory

    async def _score(self, request: Request, trajectory: Trajectory, program: Program, seed: int) -> None:
        references = [trajectory.images[r.img_id] for r in program.reference_images]
        started = perf_counter()
        try:
            trajectory.rendered = await self._renderer.render(program.gen_prompt, [r.image for r in references], seed)
            rendered = perf_counter()
            trajectory.verdict = await self._judge.judge(request, trajectory.rendered, program, references)
        except InfraFailure as failure:
            trajectory.outcome, trajectory.reason = Outcome.INFRA_FAILURE, str(failure)
            return
        trajectory.timings["render"] = rendered - started
        trajectory.timings["judge"] = perf_counter() - rendered
        trajectory.reward = combine_reward(trajectory.verdict, trajectory.tool_calls, self._reward)
        trajectory.outcome = Outcome.SCORED
