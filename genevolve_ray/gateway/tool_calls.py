"""Tool calls of workers: carried out inside, or by a trusted worker itself, and the pictures that they show."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from genevolve_ray.errors import InfraFailure, ToolArgumentError
from genevolve_ray.gateway.auth import Scope, TokenEntry, require
from genevolve_ray.gateway.inspector import PolicyFacts
from genevolve_ray.gateway.leases import Call, LeaseTable, SampleLease
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.gateway.wire import OwnCall, ToolAnswer, ToolOrder
from genevolve_ray.records.images import ImageRef, ImageStore
from genevolve_ray.records.observation import Observation, Pictured
from genevolve_ray.records.pictures import ImageRefused, clean_picture
from genevolve_ray.records.secrets import redacted
from genevolve_ray.tools.protocol import EpisodeContext, Tool
from genevolve_ray.tools.showing import ShownPictures

_UPLOADS = 20_000
"""Pictures of workers' own tools that observations may still refer to."""
CallTool = Callable[[Tool, dict[str, object], EpisodeContext], Awaitable[object]]
"""Executes a tool call in the event loop of the tool."""


class ToolCalls:
    """Execute and record the tool calls of leases; where the policy sees, hand out the pictures of their results."""

    def __init__(
        self,
        facts: PolicyFacts,
        lease_table: LeaseTable,
        *,
        call_tool: CallTool | None,
        images: ImageStore | None,
        own_tools: bool,
    ) -> None:
        """Combine the parts.

        Args:
            facts: the tools and the profile.
            lease_table: told when an episode advances.
            call_tool: executes tool calls in another event loop.
            images: the run's store, with the pictures that tools find.
            own_tools: whether trusted workers may execute tools themselves.
        """
        self._facts, self._lease_table, self._images = facts, lease_table, images
        self._call_tool: CallTool = call_tool or (lambda tool, arguments, context: tool.call(arguments, context))
        self._own_tools = own_tools and images is not None
        self._uploads: dict[ImageRef, None] = {}
        observations = facts.profile.observations
        self._show = ShownPictures(observations, images) if observations.images and images is not None else None

    async def call(self, lease: SampleLease, order: ToolOrder) -> ToolAnswer:
        """Execute a tool call of an episode, once, and record it.

        A call goes on when its client disconnects, and a repeated request receives its answer.
        """
        done, running = len(lease.calls), lease.running
        if order.index > done or order.index >= self._facts.profile.max_turns:
            raise GatewayRefusal(RefusalReason.CALL_ORDER, f"call {order.index} of {done} so far")
        if order.index < done:
            known = lease.calls[order.index]
            _check_repeated(order, known.name, known.arguments)
            return known.answer
        if running is None:
            running = lease.running = (order, asyncio.create_task(self._record(lease, order)))
        _check_repeated(order, running[0].name, running[0].arguments)
        return await asyncio.shield(running[1])

    async def _record(self, lease: SampleLease, order: ToolOrder) -> ToolAnswer:
        try:
            answer = await self._carry_out(lease, order)
            self._note_pictures(lease, answer.observation)
            lease.calls.append(Call(order.name, order.arguments, answer))
            self._lease_table.progressed(lease)
            return answer
        finally:
            lease.running = None

    async def _carry_out(self, lease: SampleLease, order: ToolOrder) -> ToolAnswer:
        tool = self._facts.tools.get(order.name)
        if tool is None:
            raise GatewayRefusal(RefusalReason.MALFORMED, f"unknown tool {order.name[:64]!r}")
        task = lease.sample.task
        try:
            context = EpisodeContext(request=task.request, seed=task.seed, key=str(task.key))
            observation = await self._call_tool(tool, order.arguments, context)
        except ToolArgumentError as error:
            return ToolAnswer(argument_error=str(error))
        except InfraFailure as error:
            return ToolAnswer(outage=redacted(str(error)))
        return ToolAnswer.model_validate({"observation": observation})

    # --- pictures ---

    def _note_pictures(self, lease: SampleLease, observation: Observation | None) -> None:
        """Let the worker of a lease fetch the pictures of an observation. Raises GatewayRefusal for too many."""
        if self._show is None or not isinstance(observation, Pictured):
            return
        shown = {hit.shown.sha256: hit.shown for hit in observation.hits if hit.shown is not None}
        most = self._facts.profile.most_images
        if len(lease.pictures | shown) > most:
            raise GatewayRefusal(RefusalReason.CALL_ORDER, f"more than the {most} pictures that an episode can show")
        lease.pictures.update(shown)

    async def picture(self, lease: SampleLease, sha256: str) -> tuple[bytes, str]:
        """Return a file that the policy is shown in a lease's episode, and its media type.

        Raises:
            GatewayRefusal: for a file that no tool showed in this episode, and for one that is missing or damaged.
        """
        ref = lease.pictures.get(sha256)
        if ref is None or self._images is None:
            raise GatewayRefusal(RefusalReason.UNKNOWN_FILE, f"no tool showed picture {sha256[:12]!r} in this episode")
        try:
            return await asyncio.to_thread(self._images.get, ref), ref.media_type
        except OSError as error:
            raise GatewayRefusal(RefusalReason.UNKNOWN_FILE, f"picture {sha256[:12]} cannot be read") from error

    # --- tools of a trusted worker's own ---

    async def put_image(self, who: TokenEntry, body: bytes) -> ImageRef:
        """Accept a picture that a trusted worker's own tool found; it is decoded here, and only its pixels are kept."""
        images = self._trusted(who)
        try:
            picture = await asyncio.to_thread(clean_picture, body)
        except ImageRefused as error:
            raise GatewayRefusal(RefusalReason.MALFORMED, str(error)) from error
        ref = await asyncio.to_thread(
            images.put, picture.data, width=picture.width, height=picture.height, media_type=picture.media_type
        )
        self._uploads[ref] = None
        while len(self._uploads) > _UPLOADS:
            del self._uploads[next(iter(self._uploads))]
        return ref

    async def show(self, who: TokenEntry, lease: SampleLease, answer: ToolAnswer) -> ToolAnswer:
        """Return the answer of a worker's own tool with the pictures that the policy sees of it."""
        self._trusted(who)
        shown = await self._as_shown(answer)
        self._note_pictures(lease, shown.observation)
        self._lease_table.progressed(lease)
        return shown

    async def own(self, who: TokenEntry, calls: Sequence[OwnCall]) -> list[Call]:
        """Return the calls that a trusted worker reports, with the gateway's own choice of what the policy sees.

        Raises:
            GatewayRefusal: for a worker without that trust, for a picture that it did not upload, and for one that
                cannot be read.
        """
        if not calls:
            return []
        self._trusted(who)
        return [Call(call.name, call.arguments, await self._as_shown(call.answer)) for call in calls]

    async def _as_shown(self, answer: ToolAnswer) -> ToolAnswer:
        observation = answer.observation
        if not isinstance(observation, Pictured):
            return answer
        # Only known references: one from outside could name any file.
        if any(hit.image not in self._uploads for hit in observation.hits):
            raise GatewayRefusal(RefusalReason.UNKNOWN_FILE, "an image was not uploaded before")
        # What a worker states about the files that the policy sees has no effect.
        bare = tuple(hit.unshown() for hit in observation.hits)
        made: Observation = observation.model_copy(update={"hits": bare})
        if self._show is not None:
            try:
                made = await self._show.observation(made)
            except InfraFailure as error:
                raise GatewayRefusal(RefusalReason.UNKNOWN_FILE, "an uploaded image cannot be read") from error
        return answer.model_copy(update={"observation": made})

    def _trusted(self, who: TokenEntry) -> ImageStore:
        """Return the image store, for a worker that may execute tools itself. Raises GatewayRefusal for others."""
        require(who, Scope.OWN_TOOLS)
        if not self._own_tools or self._images is None:
            raise GatewayRefusal(
                RefusalReason.SCOPE, "this run accepts no observations of workers (gateway.trust.own_tools)"
            )
        return self._images


def _check_repeated(order: ToolOrder, name: str, arguments: dict[str, object]) -> None:
    if (name, arguments) != (order.name, order.arguments):
        raise GatewayRefusal(RefusalReason.CALL_ORDER, f"call {order.index} differs from the first request")
