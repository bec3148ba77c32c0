"""Policy, tools, renderer and judges in this process, which answer one request after another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from time import perf_counter

from genevolve_ray.bench.jobs.stages import SPLIT, render_seed
from genevolve_ray.commands.inference import Agent
from genevolve_ray.config import RunConfig
from genevolve_ray.doctor.preflight import check_reward
from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.collect import gather_or_cancel
from genevolve_ray.evolution.inference import InferencePorts, Wanted, inference_in_process
from genevolve_ray.evolution.judging import MAIN, Panel
from genevolve_ray.evolution.ports import JudgePort, RolloutTask
from genevolve_ray.evolution.rollout import Rollouts
from genevolve_ray.records.components import opened
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.published.files import write_bytes, write_object
from genevolve_ray.records.request import Request
from genevolve_ray.records.secrets import masked, redacted
from genevolve_ray.records.seeds import derive_seed
from genevolve_ray.records.trajectory import Outcome, SampleKey, Trajectory, timed
from genevolve_ray.records.usage import Usage, metered
from genevolve_ray.viewer.ask_events import answer_values
from genevolve_ray.viewer.ask_view import Answered, AskedParts, AskView
from genevolve_ray.viewer.trajectory_page import write_trajectory_page

ANSWER, PAGE = "answer.json", "trajectory.html"
Answer = Callable[[Request, Path, int], Answered]
"""Answers a request with a seed, and writes its files to a folder."""


@contextmanager
def warm_session(agent: Agent, images: ImageStore, view: AskView) -> Iterator[Answer]:
    """Lend a function that answers requests; the parts stay warm between its calls, and are closed at the end.

    Ctrl-C during a call ends that call alone, by KeyboardInterrupt.
    """
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        session = runner.run(stack.enter_async_context(_session(agent, images, view)))
        try:
            yield lambda request, folder, seed: runner.run(session.answer(request, folder, seed))
        finally:
            runner.run(stack.aclose())


def wanted_parts(agent: Agent) -> Wanted:
    """Return the parts that answer requests."""
    return Wanted(policy=agent.source, render=True, judge=True, panel=True, date=agent.date)


@asynccontextmanager
async def _session(agent: Agent, images: ImageStore, view: AskView) -> AsyncIterator[AskSession]:
    started = perf_counter()
    view.opening()
    async with inference_in_process(agent.config, images, wanted_parts(agent)) as ports:
        session = AskSession(agent, ports, images, view)
        view.opened(session.parts(perf_counter() - started))
        yield session


class AskSession:
    """Answer requests: play the episode, render its program, judge the picture, and write the files."""

    def __init__(self, agent: Agent, ports: InferencePorts, images: ImageStore, view: AskView) -> None:
        """Combine the parts; `view` hears what happens."""
        assert isinstance(ports.agent, Rollouts) and ports.renderer is not None and ports.judge is not None
        self._agent, self._images, self._view = agent, images, view
        self._rollouts, self._renderer = ports.agent, ports.renderer
        self._judges: dict[str, JudgePort] = {MAIN: ports.judge, **ports.judges}
        self._no_reward = _reward_fault(agent.config)
        self._panel = None if self._no_reward else Panel(ports.judge, ports.judges, agent.config.reward)

    def parts(self, seconds: float) -> AskedParts:
        """Return the parts, which took so many seconds to start."""
        source, engine = self._agent.source, self._agent.config.engine
        assert source is not None
        return AskedParts(
            policy=source.identity,
            engine="an endpoint" if source.endpoint is not None else f"sampled by {engine.kind} on {engine.device}",
            tools=self._rollouts.tools,
            renderer=self._renderer.identity,
            judges={name: judge.identity for name, judge in self._judges.items()},
            no_reward=self._no_reward,
            seconds=seconds,
        )

    async def answer(self, request: Request, folder: Path, seed: int) -> Answered:
        """Answer a request. A failure of a service, or of the policy, is the outcome of the trajectory."""
        started = perf_counter()
        self._view.asked(request, seed)
        task = RolloutTask(
            request=request,
            key=SampleKey(step=0, request_id=request.id, sample=0),
            seed=derive_seed(seed, SPLIT, request.id, 0),
            render_seed=render_seed(seed, request.id),
            sampling=self._agent.sampling,
            split=SPLIT,
        )
        trajectory = await self._rollouts.rollout(task, self._view)
        unasked: dict[str, str] = {}
        if trajectory.outcome is Outcome.PENDING:
            with metered() as meter:
                try:
                    unasked = await self._scored(task, trajectory)
                except InfraFailure as failure:
                    trajectory.outcome = Outcome.INFRA_FAILURE
                    trajectory.reason = redacted(str(failure))
            for service, used in meter.by_service.items():
                trajectory.usage[service] = trajectory.usage.get(service, Usage()) + used
        answer = self._written(Answered(request, trajectory, unasked), folder, perf_counter() - started)
        self._view.ended(answer)
        return answer

    async def _scored(self, task: RolloutTask, trajectory: Trajectory) -> dict[str, str]:
        """Render and judge; return why judges were not asked. Raises InfraFailure."""
        program, request = trajectory.program, task.request
        assert program is not None
        trajectory.provenance = trajectory.provenance.model_copy(
            update={
                "renderer": self._renderer.identity,
                "judge": self._judges[MAIN].identity,
                "render_seed": task.render_seed,
            }
        )
        self._view.programmed(trajectory)
        pictures = [hit.image for hit in trajectory.references]
        with timed(trajectory.timings, "render"):
            trajectory.rendered = await self._renderer.render(program.gen_prompt, pictures, task.render_seed)
        self._view.drawn(trajectory, self._images.get(trajectory.rendered))
        unasked = _without_truth(request, self._agent.config)
        asked = {name: judge for name, judge in self._judges.items() if name not in unasked}
        try:
            with timed(trajectory.timings, "judge"):
                await self._judged(request, trajectory, trajectory.rendered, asked)
        finally:
            self._view.judged(Answered(request, trajectory, unasked))
        return unasked

    async def _judged(
        self, request: Request, trajectory: Trajectory, picture: ImageRef, asked: dict[str, JudgePort]
    ) -> None:
        """Ask judges. The reward of a run needs all of them; without one, each verdict stands alone."""
        program, references = trajectory.program, trajectory.references
        assert program is not None
        if self._panel is not None and len(asked) == len(self._judges):
            self._panel.settle(trajectory, await self._panel.judge(request, picture, program, references))
            return

        async def ask(name: str, judge: JudgePort) -> None:
            trajectory.verdicts[name] = opened(await judge.judge(request, picture, program, references))

        await gather_or_cancel(ask(name, judge) for name, judge in asked.items())

    def _written(self, answer: Answered, folder: Path, seconds: float) -> Answered:
        """Return the answer with its files. Raises OSError."""
        trajectory, picture = answer.trajectory, None
        folder.mkdir(parents=True, exist_ok=True)
        _remove_answer(folder)
        if trajectory.rendered is not None:
            picture = self._picture(trajectory.rendered, folder / "picture")
        program = trajectory.program
        for reference in program.reference_images if program is not None else ():
            with contextlib.suppress(FileNotFoundError):  # The page says that it is missing.
                self._picture(trajectory.images[reference.img_id].image, folder / "references" / reference.img_id)
        page = write_trajectory_page(
            trajectory,
            self._images.get,
            folder / PAGE,
            request=answer.request,
            truth=answer.request.truth_image,
            reward=self._agent.config.reward,
        )
        written = Answered(answer.request, trajectory, answer.unasked, picture, page, seconds)
        write_object(folder / ANSWER, masked(answer_values(written)))
        return written

    def _picture(self, ref: ImageRef, stem: Path) -> Path:
        stem.parent.mkdir(exist_ok=True)
        return write_bytes(stem.with_name(f"{stem.name}.{ref.media_type.rpartition('/')[2]}"), self._images.get(ref))


def _reward_fault(config: RunConfig) -> str:
    """Return why the judges give no reward together, so that each verdict stands alone; "" where they give one."""
    try:
        check_reward(config)
    except UserFault as fault:
        return str(fault)
    return ""


def _remove_answer(folder: Path) -> None:
    """Remove the files of an earlier answer, of which a new one may lack some. Raises OSError."""
    # `answer.json` is last: without it, a removal that was interrupted could not be repeated.
    for pattern in ("picture.*", "references/IMG_*.*", PAGE, ANSWER):
        for path in folder.glob(pattern):
            path.unlink()


def _without_truth(request: Request, config: RunConfig) -> dict[str, str]:
    """Return why judges cannot judge a request, by name: it has no ground-truth picture, and they need one."""
    if request.truth_image is not None:
        return {}
    names = [role.removeprefix("judges.") for role in config.truth_roles]
    return dict.fromkeys(names, "it compares with a ground-truth picture, and this request has none")
