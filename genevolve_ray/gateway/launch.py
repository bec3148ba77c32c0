"""Start of a gateway from a run's settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve_ray.engines.checks import context_length, vocabulary_size
from genevolve_ray.errors import UserFault
from genevolve_ray.evolution.config import EvolutionConfig
from genevolve_ray.evolution.inprocess import build_scoring, load_banned, load_chat
from genevolve_ray.evolution.ports import RolloutPort
from genevolve_ray.evolution.rollout import Scoring
from genevolve_ray.evolution.weights import own_folder
from genevolve_ray.experience.config import ExperienceConfig
from genevolve_ray.gateway.auth import TokenFile
from genevolve_ray.gateway.config import GatewayConfig
from genevolve_ray.gateway.gateway import Gateway, RunFacts
from genevolve_ray.gateway.inspector import PolicyFacts
from genevolve_ray.gateway.logprobs import NullScorer, PolicyScorer, Scorer
from genevolve_ray.gateway.rollouts import GatewayRollouts, SharedRollouts
from genevolve_ray.gateway.server import GatewayServer
from genevolve_ray.gateway.trust import TOLERANCES
from genevolve_ray.models.image_tokens import ImageTokens
from genevolve_ray.records.images import ImageStore
from genevolve_ray.tools.protocol import EpisodeContext, Tool, keeps_state
from genevolve_ray.tools.running import close_toolbox, running_tools

if TYPE_CHECKING:
    from genevolve_ray.learning.rescoring import Rescorer

NULL_CONTEXT = 1 << 20
"""Context of the engine of a rehearsal."""


@dataclass(frozen=True)
class GatewayParts:
    """Hold the parts of the run that the gateway needs: tools, renderer and judge, and the run's pictures."""

    tools: Mapping[str, Tool]
    scoring: Scoring
    images: ImageStore
    toolbox: Any = None
    """Holds the tools, where they were built in this process."""

    async def aclose(self) -> None:
        """Close the toolbox, where it holds connections."""
        await close_toolbox(self.toolbox)


def local_parts(config: EvolutionConfig, images: ImageStore) -> GatewayParts:
    """Build tools, renderer and judge in this process; the caller closes the parts."""
    toolbox = config.tools.build(images)
    tools = running_tools(toolbox.tools, config.protocol.observations, images)
    return GatewayParts(tools, build_scoring(config, images), images, toolbox)


@asynccontextmanager
async def open_gateway(
    config: GatewayConfig,
    run: EvolutionConfig,
    model_dir: Path,
    parts: GatewayParts,
    folder: Path,
    *,
    inside: RolloutPort | None,
    on_listening: Callable[[GatewayServer], None] = lambda server: None,
) -> AsyncIterator[RolloutPort]:
    """Serve the gateway while the run lasts, and yield the rollout port over both sides.

    Without `inside`, the port uses workers alone. Tools, renderer and judge are called in the event loop that enters
    this.

    Args:
        config: the gateway's settings.
        run: the run's settings.
        model_dir: the policy at the start of the run.
        parts: the tools, renderer and judge inside.
        folder: where evidence is kept.
        inside: the rollout port over the run's own engines.
        on_listening: receives the server once it listens.

    Raises:
        GatewayStartError: when it cannot listen.
    """
    if stateful := [tool.name for tool in parts.tools.values() if keeps_state(tool)]:
        raise UserFault(f"gateway: {', '.join(stateful)} has state for each episode, which outside workers cannot open")
    home = asyncio.get_running_loop()

    async def call(tool: Tool, arguments: dict[str, object], context: EpisodeContext) -> object:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(tool.call(arguments, context), home))

    # In memory where there is a RAM disk, next to the folders that the engines inside load.
    with own_folder("gateway") as weights:

        def build() -> Gateway:
            facts = policy_facts(run, model_dir, parts.tools)
            return Gateway(
                config,
                run_facts(run, model_dir),
                facts,
                scorer=build_scorer(run, model_dir, facts.banned, facts.chat.image_tokens),
                folder=folder,
                weights=weights,
                call_tool=call,
                images=parts.images,
            )

        server = GatewayServer(build, config)
        await asyncio.to_thread(server.start)
        finished = False
        try:
            on_listening(server)
            outside = GatewayRollouts(server, parts.scoring)
            yield outside if inside is None else SharedRollouts(inside, outside, config.share, config.patience)
            finished = True
        finally:
            await server.stop(finished=finished)


def opening_notes(config: GatewayConfig, experience: ExperienceConfig) -> list[str]:
    """Return what a user should know before the first worker connects: no token exists, or there is no experience."""
    said = []
    if not TokenFile(config.tokens).entries():
        said.append(
            f"no worker can connect: {config.tokens} holds no token; make one for each worker with "
            f"`genevolve gateway token new NAME --file {config.tokens}`"
        )
    if experience.enabled and config.only and not experience.outside:
        said.append(
            "experience is off: every rollout comes from outside workers, and a bundle from outside would advise all later "
            "rollouts; experience.outside=true permits it"
        )
    return said


def policy_facts(run: EvolutionConfig, model_dir: Path, tools: Mapping[str, Tool]) -> PolicyFacts:
    """Read the facts that a replay needs from the run's settings and the model folder."""
    chat = load_chat(model_dir, run.date)
    own = None if run.rehearsal is not None else context_length(model_dir)
    asked = run.engine_for(own).max_model_len
    used = {str(run.engine.dtype), str(run.learner.dtype)}
    return PolicyFacts(
        chat=chat,
        profile=run.protocol,
        tools=tools,
        vocabulary=vocabulary_size(model_dir),
        banned=frozenset(load_banned(model_dir, chat)),
        max_model_len=NULL_CONTEXT if run.rehearsal is not None else min(asked or NULL_CONTEXT, own or NULL_CONTEXT),
        dtype=max(used, key=lambda dtype: TOLERANCES[dtype]),
    )


def run_facts(run: EvolutionConfig, model_dir: Path) -> RunFacts:
    """Return the facts about a run that workers receive."""
    script = run.rehearsal
    return RunFacts(
        name=run.name,
        engine=run.engine.kind if script is None else "null",
        model_dir=model_dir,
        adapter=script is None and run.learner.publishes_adapter,
        turn_seconds=script.turn_seconds if script else 0.0,
        tool_calls=script.tool_calls if script else 0,
    )


def build_scorer(
    run: EvolutionConfig, model_dir: Path, banned: frozenset[int], image_tokens: ImageTokens | None = None
) -> Scorer:
    """Return the scorer of a run: its policy, or the digest of a rehearsal; `image_tokens` of a policy that sees."""
    if run.rehearsal is not None:
        return NullScorer()
    learner = run.learner

    def build() -> Rescorer:
        from genevolve_ray.learning.rescoring import Rescorer

        return Rescorer(model_dir, dtype=learner.dtype, device=learner.device, banned=sorted(banned), threads=1)

    return PolicyScorer(build, image_tokens)
