"""Episodes outside the cluster: the worker's engine on a leased request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.episode import run_episode
from genevolve_ray.agent.policy_session import TokenSession
from genevolve_ray.agent.profile import ProtocolProfile
from genevolve_ray.engines.protocol import Engine
from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.gateway.client import GatewayClient
from genevolve_ray.gateway.wire import LeaseGrant, LedgerBody, OwnCall, Push, ToolAnswer, ToolOrder
from genevolve_ray.gateway.worker_pictures import WorkerPictures
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.observation import Observation, Pictured
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Outcome, SampleKey
from genevolve_ray.tools.protocol import EpisodeContext, Tool, ToolCard


@dataclass(frozen=True)
class OwnTools:
    """Hold tools that a trusted worker executes itself, and the store of the pictures that they find."""

    tools: Mapping[str, Tool]
    images: ImageStore
    toolbox: Any = None
    """Holds the tools; closed with the worker, where it holds connections."""


class EpisodeRunner:
    """Play episodes on an engine, with the gateway's tools or, where the worker is trusted, with its own."""

    def __init__(
        self,
        client: GatewayClient,
        engine: Engine,
        chat: ChatFormat,
        profile: ProtocolProfile,
        tools: tuple[ToolCard, ...],
        pictures: WorkerPictures,
        own: OwnTools | None = None,
    ) -> None:
        """Combine the parts; `pictures` are those that the policy sees, `own` replaces the tools of the same names."""
        self._pictures = pictures
        self._client, self._engine, self._chat, self._profile, self._tools = client, engine, chat, profile, tools
        self._own = own

    async def play(self, grant: LeaseGrant) -> Push | None:
        """Return the episode of a lease; None when it ended without a usable result."""
        recorded: list[OwnCall] = []
        lost: list[ImageRef] = []

        def read(picture: ImageRef) -> bytes:
            try:
                return self._pictures.get(picture)
            except OSError:
                lost.append(picture)
                raise

        tools: dict[str, Tool]
        if self._own is None:
            calls = _Calls(self._client, grant.id, self._pictures)
            tools = {card.name: _OutsideTool(card, calls) for card in self._tools}
        else:
            shown = _Shown(self._client, grant.id, self._pictures) if self._profile.observations.images else None
            tools = {c.name: _OwnTool(c, self._own, self._client, recorded, shown) for c in self._tools}
        trajectory = await run_episode(
            # The judges' part of the request stays inside; the policy reads only the prompt.
            Request(id=grant.id, prompt=grant.prompt, eval_type=EvalType.QUALITY),
            key=SampleKey(step=0, request_id=grant.id, sample=0),
            session=TokenSession(self._engine, self._chat, grant.sampling, read),
            tools=tools,
            profile=self._profile,
            seed=grant.seed,
            experience=grant.experience,
            split=grant.split,
            date=self._chat.date,
        )
        # The gateway has a file that this worker lost, so its replay would go on.
        if lost or (trajectory.outcome is Outcome.INFRA_FAILURE and not trajectory.ledger.policy_tokens):
            return None
        return Push(ledger=ledger_body(trajectory.ledger), own_calls=recorded)


class _Calls:
    """Record the tool calls of one episode, in order."""

    def __init__(self, client: GatewayClient, lease: str, pictures: WorkerPictures) -> None:
        self._client, self._lease, self._pictures, self._index = client, lease, pictures, 0

    async def call(self, name: str, arguments: dict[str, Any]) -> Observation:
        order = ToolOrder(index=self._index, name=name, arguments=arguments)
        self._index += 1
        answer = await self._client.tool(self._lease, order)
        if answer.argument_error is not None:
            raise ToolArgumentError(answer.argument_error)
        if answer.observation is None:
            raise InfraFailure(answer.outage or "the gateway's tool returned nothing")
        return await self._pictures.bring(self._lease, answer.observation)


class _OutsideTool:
    """Delegate a tool call to the gateway."""

    def __init__(self, card: ToolCard, calls: _Calls) -> None:
        self.name, self.description, self.parameters = card.name, card.description, card.parameters
        self._calls = calls

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        """Call the tool at the gateway."""
        return await self._calls.call(self.name, arguments)


class _Shown:
    """Ask the gateway what the policy sees of a worker's own observation, and fetch it."""

    def __init__(self, client: GatewayClient, lease: str, pictures: WorkerPictures) -> None:
        self._client, self._lease, self._pictures = client, lease, pictures

    async def observation(self, own: Observation) -> Observation:
        answer = await self._client.show(self._lease, ToolAnswer.model_validate({"observation": own}))
        assert answer.observation is not None, "the answer to an observation is an observation"
        return await self._pictures.bring(self._lease, answer.observation)


class _OwnTool:
    """Execute a tool on this worker.

    Its pictures are uploaded first, so that both sides use the same references.
    """

    def __init__(
        self, card: ToolCard, own: OwnTools, client: GatewayClient, recorded: list[OwnCall], shown: _Shown | None
    ) -> None:
        self.name, self.description, self.parameters = card.name, card.description, card.parameters
        self._own, self._client, self._recorded, self._shown = own, client, recorded, shown

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        """Execute the tool and record the result."""
        try:
            observation = await self._brought(await self._own.tools[self.name].call(arguments, episode))
        except ToolArgumentError as error:
            self._record(arguments, ToolAnswer(argument_error=str(error)))
            raise
        except InfraFailure as error:
            self._record(arguments, ToolAnswer(outage=str(error)))
            raise
        self._record(arguments, ToolAnswer(observation=observation))
        return observation

    def _record(self, arguments: dict[str, Any], answer: ToolAnswer) -> None:
        self._recorded.append(OwnCall(name=self.name, arguments=arguments, answer=answer))

    async def _brought(self, observation: Observation) -> Observation:
        if not isinstance(observation, Pictured):
            return observation
        hits = [
            hit.model_copy(update={"image": await self._client.put_image(self._own.images.get(hit.image))})
            for hit in observation.hits
        ]
        brought: Observation = observation.model_copy(update={"hits": tuple(hits)})
        return brought if self._shown is None else await self._shown.observation(brought)


def ledger_body(ledger: TokenLedger) -> LedgerBody:
    """Return a ledger in the form in which it is pushed."""
    return LedgerBody(
        tokens=ledger.tokens,
        policy_mask=ledger.policy_mask,
        logprobs=ledger.logprobs,
        versions=ledger.versions,
        spans=ledger.spans,
        media=ledger.media,
    )
