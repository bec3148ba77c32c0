"""The parts of inference: agent, renderer and judge; in one process here, on Ray in `cluster`."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from genevolve_ray.agent.policy_session import ChatSession, TokenSession
from genevolve_ray.engines.openai import OpenAIPolicy, OpenAIPolicyConfig
from genevolve_ray.engines.protocol import Engine
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.evolution.ports import GradePort, JudgePort, RenderPort, RolloutTask
from genevolve_ray.evolution.rollout import OpenSession, Rollouts
from genevolve_ray.evolution.services import (
    GradeService,
    JudgeService,
    RenderService,
    judge_service,
    judges_of_pictures,
    kscore_judge,
)
from genevolve_ray.records.base import Record
from genevolve_ray.records.images import ImageStore
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Trajectory
from genevolve_ray.tools.running import running_tools

_SAMPLE = 1 << 16


class PolicySource(Record):
    """Identify the policy: a model folder sampled by an engine, or an endpoint. `identity` is recorded in outputs."""

    identity: str
    model: Path | None = None
    endpoint: OpenAIPolicyConfig | None = None


def folder_digest(model: Path) -> str:
    """Return a digest of a model folder: names and sizes of its files, and samples of each.

    It does not read all weights.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in model.iterdir() if p.suffix in (".json", ".safetensors", ".jinja")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}\n".encode())
        with path.open("rb") as file:
            for place in sorted({0, max(0, size // 2), max(0, size - _SAMPLE)}):
                file.seek(place)
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:12]


class AgentPort(Protocol):
    """Play episodes."""

    async def rollout(self, task: RolloutTask) -> Trajectory:
        """Play one episode; a valid program ends as PENDING. Its usage is recorded on the caller's meter."""
        ...

    def opening(self, request: Request) -> list[dict[str, str]]:
        """Return the messages before the first turn."""
        ...


@dataclass
class InferencePorts:
    """Hold the requested parts."""

    agent: AgentPort | None = None
    renderer: RenderPort | None = None
    judge: JudgePort | None = None
    judges: dict[str, JudgePort] = field(default_factory=dict)
    """Further judges by name."""
    grader: GradePort | None = None


@dataclass(frozen=True)
class Wanted:
    """Name the parts that a run or a command needs; without a policy there is neither an engine nor tools."""

    policy: PolicySource | None = None
    render: bool = False
    judge: bool = False
    panel: bool = False
    """Further judges as well; each may give any verdict, also one without a KScore."""
    grade: bool = False
    """The judge plug-in uses the scale of another benchmark."""
    train: bool = False
    """A learner trains the policy: samples are rendered and judged directly, and engines load each version."""
    date: str = ""
    """Required by profiles that append the date."""

    @property
    def kscore(self) -> bool:
        """True where the judge must give KScores, as nothing else is written."""
        return self.judge and not (self.grade or self.panel or self.train)


@dataclass(frozen=True)
class RunningPolicy:
    """Hold a policy that plays in this process."""

    open_session: OpenSession
    engine: Engine | None = None
    """Samples the policy; None for an endpoint, whose weights cannot be replaced here."""


@asynccontextmanager
async def open_policy(
    config: EvolutionConfig, source: PolicySource, images: ImageStore, transfer: str | None = None
) -> AsyncIterator[RunningPolicy]:
    """Start a policy in this process, and close it at the end; `transfer` as in `create_engine`.

    `images` is the store from which it sees pictures.
    """
    if source.endpoint is not None:
        policy = OpenAIPolicy(source.endpoint)
        try:
            yield RunningPolicy(lambda sampling: ChatSession(policy, sampling, images.get))
        finally:
            await policy.aclose()
        return
    # Rendering, judging and endpoints do not need torch.
    from genevolve_ray.evolution.inprocess import load_chat, start_engine

    assert source.model is not None, "a policy must be a model folder or an endpoint"
    chat = load_chat(source.model, config.date)
    engine = await start_engine(config, source.model, transfer)
    try:
        yield RunningPolicy(lambda sampling: TokenSession(engine, chat, sampling, images.get), engine)
    finally:
        await engine.close()


@asynccontextmanager
async def inference_in_process(
    config: EvolutionConfig, images: ImageStore, wanted: Wanted
) -> AsyncIterator[InferencePorts]:
    """Build the parts here, and close the engine at the end."""
    async with AsyncExitStack() as stack:

        def built(spec: PluginSpec, *context: ImageStore) -> Any:
            plugin = spec.build(*context)
            if (close := getattr(plugin, "aclose", None)) is not None:
                stack.push_async_callback(close)
            return plugin

        ports = InferencePorts()
        if wanted.policy is not None:
            policy = await stack.enter_async_context(open_policy(config, wanted.policy, images))
            tools = running_tools(built(config.tools, images).tools, config.protocol.observations, images)
            ports.agent = Rollouts(policy.open_session, tools, config.protocol, wanted.date)
        if wanted.render:
            ports.renderer = RenderService(built(config.renderer), images)
        if wanted.judge:
            judge = JudgeService(built(config.judge), images)
            ports.judge = kscore_judge(judge) if wanted.kscore else judge
        if wanted.panel:
            further = {name: judge_service(built(spec), images) for name, spec in config.judges.items()}
            ports.judges = judges_of_pictures(further)
        if wanted.grade:
            ports.grader = GradeService(built(config.judge), images)
        yield ports
