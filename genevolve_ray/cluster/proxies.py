"""The ports of a rollout over Serve handles: bounded retries, and a typed failure after them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ray.exceptions import RayActorError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from genevolve_ray.cluster.errors import await_remote
from genevolve_ray.cluster.replies import unwrap
from genevolve_ray.errors import InfraFailure, UserFault
from genevolve_ray.evolution.patience import SHORTEST
from genevolve_ray.evolution.ports import RenderedAttempt
from genevolve_ray.records.components import AnyVerdict, ComponentRange, OpenVerdict
from genevolve_ray.records.images import ImageRef
from genevolve_ray.records.observation import ImageHit, Observation
from genevolve_ray.records.program import Program
from genevolve_ray.records.request import Request
from genevolve_ray.tools.protocol import EpisodeContext

if TYPE_CHECKING:
    from genevolve_ray.cluster.config import ServiceConfig
    from genevolve_ray.tools.protocol import ToolCard

T = TypeVar("T")

RETRYABLE = (
    RayActorError,
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
    TimeoutError,
)
"""A dead or unreachable replica, an overloaded service, a call that takes too long."""
_LONGEST_WAIT = 5.0


@dataclass(frozen=True)
class Caller:
    """Call one service, and retry where that may help.

    Attributes:
        service: name for messages.
        handle: Serve deployment handle, or anything whose methods have `.remote(...)` that returns an awaitable.
        attempts: attempts in total.
        timeout: seconds of one attempt.
        backoff: seconds before the second attempt; they double from there.
    """

    service: str
    handle: Any
    attempts: int
    timeout: float
    backoff: float = 0.2

    @classmethod
    def of(cls, service: str, handle: Any, config: ServiceConfig) -> Caller:
        """Return a caller with a service's own limits."""
        return cls(service, handle, config.attempts, config.timeout or SHORTEST)

    async def __call__(self, method: str, *arguments: Any) -> Any:
        """Call a method of the service.

        Raises:
            InfraFailure: after the last attempt, or when the plug-in itself gave up. Other errors keep their own class.
        """
        remote: Callable[..., Awaitable[Any]] = getattr(self.handle, method).remote
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(RETRYABLE),
            stop=stop_after_attempt(self.attempts),
            wait=wait_exponential_jitter(multiplier=self.backoff, max=_LONGEST_WAIT, jitter=self.backoff),
            reraise=True,
        )
        try:
            return await retrying(self._once, remote, arguments)
        except RETRYABLE as error:
            text = f"{self.service}: {method} failed {self.attempts} times; last error: {type(error).__name__}: {error}"
            raise InfraFailure(text) from error

    async def _once(self, remote: Callable[..., Awaitable[Any]], arguments: Sequence[Any]) -> Any:
        reply = remote(*arguments)
        try:
            async with asyncio.timeout(self.timeout):
                return unwrap(await await_remote(reply))
        except (TimeoutError, asyncio.CancelledError):
            # Otherwise the replica continues without a caller, and keeps a slot and its backend busy.
            if cancel := getattr(reply, "cancel", None):
                cancel()
            raise


class ServeTool:
    """Represent a tool of the tools service."""

    def __init__(self, card: ToolCard, caller: Caller) -> None:
        """Represent the tool that `card` describes."""
        self.name, self.description, self.parameters = card.name, card.description, card.parameters
        self.stateful = card.stateful
        self._caller = caller

    async def call(self, arguments: dict[str, Any], episode: EpisodeContext) -> Observation:
        """Call the tool. Raises ToolArgumentError, or InfraFailure after bounded retries."""
        observation: Observation = await self._caller("call", self.name, arguments, episode)
        return observation


class ServeRenderer:
    """Represent the renderer service."""

    def __init__(self, identity: str, caller: Caller) -> None:
        """Represent the renderer of that identity."""
        self.identity, self._caller = identity, caller
        self.takes_references = True

    async def render(self, prompt: str, references: Sequence[ImageRef], seed: int) -> ImageRef:
        """Render a program. Raises InfraFailure after bounded retries."""
        picture: ImageRef = await self._caller("render", prompt, tuple(references), seed)
        return picture


class ServeJudge:
    """Represent the judge service."""

    def __init__(
        self, identity: str, components: Mapping[str, ComponentRange], caller: Caller, gives_kscore: bool
    ) -> None:
        """Represent the judge of that identity, which measures these components, with the four grades or without."""
        self.identity, self.components, self._caller = identity, components, caller
        self.gives_kscore = gives_kscore

    async def judge(
        self, request: Request, image: ImageRef, program: Program, references: Sequence[ImageHit]
    ) -> AnyVerdict:
        """Judge a rendered program. Raises InfraFailure after bounded retries."""
        verdict: AnyVerdict = await self._caller("judge", request, image, program, tuple(references))
        return verdict


class ServeGroupJudge:
    """Represent the service of a judge of groups."""

    def __init__(self, identity: str, components: Mapping[str, ComponentRange], caller: Caller) -> None:
        """Represent the judge of that identity, which measures these components."""
        self.identity, self.components, self._caller = identity, components, caller

    async def judge_group(self, request: Request, attempts: Sequence[RenderedAttempt]) -> Sequence[OpenVerdict]:
        """Judge the attempts of a group. Raises InfraFailure after bounded retries."""
        verdicts: Sequence[OpenVerdict] = await self._caller("judge_group", request, tuple(attempts))
        return verdicts


class ServeGrader:
    """Represent a judge service with the scale of another benchmark."""

    def __init__(self, identity: str, caller: Caller) -> None:
        """Represent the judge of that identity."""
        self.identity, self._caller = identity, caller

    async def grade(self, prompt: Any, image: ImageRef) -> Any:
        """Grade a picture. Raises InfraFailure after bounded retries."""
        return await self._caller("grade", prompt, image)


async def connect_tools(tools: Caller) -> dict[str, ServeTool]:
    """Query the tools service once, and return proxies of its tools by name."""
    return {card.name: ServeTool(card, tools) for card in await tools("describe")}


async def connect(
    tools: Caller, renderer: Caller, judge: Caller
) -> tuple[dict[str, ServeTool], ServeRenderer, ServeJudge]:
    """Query the services once, and return their proxies."""
    stand_ins, renderer_identity, critic = await asyncio.gather(
        connect_tools(tools), renderer("describe"), connect_judge(judge)
    )
    return stand_ins, ServeRenderer(renderer_identity, renderer), critic


async def connect_judge(judge: Caller) -> ServeJudge:
    """Query a judge service once, and return its proxy. Raises UserFault for a judge of groups."""
    found = await _connect_any(judge)
    if isinstance(found, ServeGroupJudge):
        raise UserFault(f"{judge.service}: {found.identity} judges groups, which only a run's further judges may do")
    return found


async def _connect_any(judge: Caller) -> ServeJudge | ServeGroupJudge:
    identity, components = await judge("describe"), await judge("components")
    if await judge("judges_groups"):
        return ServeGroupJudge(identity, components, judge)
    return ServeJudge(identity, components, judge, await judge("gives_kscore"))


async def connect_judges(callers: Mapping[str, Caller]) -> dict[str, ServeJudge | ServeGroupJudge]:
    """Query the services of further judges, by role (`judges.NAME`) among all services, and return proxies by name."""
    roles = [role for role in callers if role.startswith("judges.")]
    found = await asyncio.gather(*(_connect_any(callers[role]) for role in roles))
    return {role.removeprefix("judges."): judge for role, judge in zip(roles, found, strict=True)}
