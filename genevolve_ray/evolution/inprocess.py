"""The ports in one process: the same loop under a debugger, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.agent.chat import ChatFormat, load_tokenizer
from genevolve_ray.agent.policy_session import TokenSession
from genevolve_ray.engines.ban import banned_token_ids
from genevolve_ray.engines.checks import context_length, vocabulary_size
from genevolve_ray.engines.factory import create_engine, let_sleep
from genevolve_ray.engines.protocol import Engine, SamplingParams
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.experience import LocalExperience, build_run_embedder
from genevolve_ray.evolution.judging import Panel
from genevolve_ray.evolution.learner import LocalLearner, build_learner
from genevolve_ray.evolution.placebo import PlaceboWriter
from genevolve_ray.evolution.plugins import PluginFault, RendererSpec, build_here
from genevolve_ray.evolution.ports import ExperiencePort, LearnerPort, RolloutPort, RolloutTask
from genevolve_ray.evolution.rollout import Rollouts, Scoring
from genevolve_ray.evolution.services import RenderService, judge_service
from genevolve_ray.evolution.swaps import RendererHost
from genevolve_ray.evolution.weights import PublishedWeights, WeightFolders, weight_folders
from genevolve_ray.experience.config import AblationControl
from genevolve_ray.models.image_tokens import load_image_tokens
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.tools.protocol import Tool
from genevolve_ray.tools.running import close_toolbox, running_tools

if TYPE_CHECKING:
    from genevolve_ray.learning.distributed import Ranks

AdjustTools = Callable[[Mapping[str, Tool]], dict[str, Tool]]
"""Returns tools in place of a run's."""


@dataclass
class Ports:
    """Hold the parts that the loop needs, independent of where they run."""

    rollouts: RolloutPort
    learner: LearnerPort
    experience: ExperiencePort | None = None
    renderers: RendererHost | None = None
    panel: Panel | None = None
    """The judges, where some of them judge groups; None is enough for a run without such a judge."""


class LocalRollouts:
    """Serve the rollout port over one engine in this process; it also holds the renderers."""

    def __init__(
        self, rollouts: Rollouts, scoring: Scoring, engine: Engine, images: ImageStore, toolbox: Any = None
    ) -> None:
        """Combine rollouts, their scoring, their engine, the run's pictures, and the toolbox behind the tools."""
        self._rollouts, self._scoring, self._engine, self._images = rollouts, scoring, engine, images
        self._toolbox = toolbox

    @property
    def panel(self) -> Panel:
        """The judges."""
        return self._scoring.panel

    async def add_renderer(self, generation: int, spec: RendererSpec) -> str:
        """Build an additional renderer. Raises PluginFault for one that cannot run in this process."""
        if spec.isolated:
            raise PluginFault("renderer.runtime_env needs separate processes, but this run is one process")
        service = RenderService(await asyncio.to_thread(build_here, spec), self._images)
        self._scoring.add_renderer(generation, service)
        return service.identity

    async def remove_renderer(self, generation: int) -> None:
        """Remove a renderer."""
        self._scoring.drop_renderer(generation)

    async def rollout(self, task: RolloutTask) -> Trajectory:
        """Play, render and judge one sample."""
        return await self._rollouts.rollout(task)

    async def rest(self) -> None:
        """Let the engine free its GPU until the next update."""
        await let_sleep(self._engine)

    async def update(self, weights: PublishedWeights) -> float:
        """Load published weights and verify them."""
        return await self._engine.update(await weights.folder(), weights.version, weights.probe)

    async def aclose(self) -> None:
        """Close the toolbox, where it holds connections; the engine belongs to the caller."""
        await close_toolbox(self._toolbox)


def load_chat(model_dir: Path, date: str = "") -> ChatFormat:
    """Load the chat format of a model folder; `date` is the day that its template prints, by default the current one."""
    return ChatFormat(load_tokenizer(model_dir), date=date, image_tokens=load_image_tokens(model_dir))


def load_banned(model_dir: Path, chat: ChatFormat) -> tuple[int, ...]:
    """Return the ids that have no probability in engine and learner, including those that pad the vocabulary."""
    return banned_token_ids(chat.tokenizer, vocabulary_size(model_dir), chat.end_of_turn_id)


async def start_engine(config: EvolutionConfig, model_dir: Path, transfer: str | None = None) -> Engine:
    """Start the engine of a run in this process, with the run's ban mask; in a rehearsal one that plays a script.

    `transfer` as in `create_engine`.

    Raises:
        UserFault: for a policy that the engine cannot sample.
    """
    chat = load_chat(model_dir, config.date)
    if config.rehearsal is not None:
        from genevolve_ray.engines.null import NullEngine

        turns = config.rehearsal
        return NullEngine(chat.tokenizer, turn_seconds=turns.turn_seconds, tool_calls=turns.tool_calls)
    try:
        engine = config.engine_for(context_length(model_dir))
        return await create_engine(engine, model_dir, load_banned(model_dir, chat), transfer)
    except ValueError as error:
        raise UserFault(f"the policy {model_dir} cannot be sampled: {error}") from error


def build_rollouts(
    config: EvolutionConfig, model_dir: Path, engine: Engine, images: ImageStore, adjust: AdjustTools | None = None
) -> LocalRollouts:
    """Build everything around an engine in this process; the caller closes the engine.

    `adjust` replaces the tools, for a measurement.
    """
    chat = load_chat(model_dir, config.date)
    toolbox = config.tools.build(images)
    tools = running_tools(toolbox.tools, config.protocol.observations, images)
    tools = tools if adjust is None else adjust(tools)
    scoring = build_scoring(config, images)

    def open_session(sampling: SamplingParams) -> TokenSession:
        return TokenSession(engine, chat, sampling, images.get)

    rollouts = Rollouts(open_session, tools, config.protocol, config.date, scoring)
    return LocalRollouts(rollouts, scoring, engine, images, toolbox)


def build_scoring(config: EvolutionConfig, images: ImageStore) -> Scoring:
    """Build a run's renderer and judges in this process."""
    renderer = RenderService(config.renderer.build(), images)
    others = {name: judge_service(spec.build(), images) for name, spec in config.judges.items()}
    return Scoring(renderer, judge_service(config.judge.build(), images), config.reward, others=others)


async def start_rollouts(
    config: EvolutionConfig, model_dir: Path, images: ImageStore, adjust: AdjustTools | None = None
) -> tuple[LocalRollouts, Engine]:
    """Start an engine and everything around it in this process; `adjust` as in `build_rollouts`."""
    engine = await start_engine(config, model_dir)
    return build_rollouts(config, model_dir, engine, images, adjust), engine


def start_learner(
    config: EvolutionConfig, model_dir: Path, folders: WeightFolders, images: ImageStore, ranks: Ranks | None = None
) -> LocalLearner:
    """Load the learner, or this process's rank of it, with the engines' ban mask; it writes to `folders`.

    `images` is the store of the run, with the pictures that the policy saw.

    Raises:
        UserFault: for a policy that cannot be trained under the run's settings.
    """
    chat = load_chat(model_dir, config.date)
    try:
        return build_learner(config, model_dir, load_banned(model_dir, chat), chat, folders, images, ranks)
    except ValueError as error:
        raise UserFault(f"the policy {model_dir} cannot be trained: {error}") from error


def start_experience(config: EvolutionConfig, model_dir: Path) -> LocalExperience | None:
    """Build the experience memory with its summarizer and embedder, None where the run has no experience.

    `model_dir` is the policy, whose tokens a placebo counts.
    """
    if not config.experience.enabled:
        return None
    embedder, summariser = build_run_embedder(config.experience.embedder), build_here(config.summariser)
    placebo = None
    if config.experience.control is AblationControl.PLACEBO:
        placebo = PlaceboWriter(load_chat(model_dir, config.date), config.protocol).of
    return LocalExperience(config.experience, summariser, embedder, placebo)


@asynccontextmanager
async def in_process(config: EvolutionConfig, model_dir: Path, images: ImageStore) -> AsyncIterator[Ports]:
    """Build every part here and close the engine at the end."""
    with weight_folders() as folders:
        learner = start_learner(config, model_dir, folders, images)
        rollouts, engine = await start_rollouts(config, model_dir, images)
        try:
            renderers = None if config.deterministic else rollouts
            yield Ports(rollouts, learner, start_experience(config, model_dir), renderers, rollouts.panel)
        finally:
            await rollouts.aclose()
            await engine.close()
