"""The learner as one actor per rank, and the port over these actors."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayActorError

from genevolve_ray.cluster.errors import Supervise, await_remote, unsupervised
from genevolve_ray.cluster.transports.device import Sender, TensorsPayload, TransferGroup
from genevolve_ray.cluster.transports.host import FilesPayload, forget_weights, pack, run_folder
from genevolve_ray.evolution.ports import LearnerLost, Parts
from genevolve_ray.evolution.weights import PublishedWeights, WeightFolders, remove_leftovers
from genevolve_ray.records.experience import Lesson, MovedToken
from genevolve_ray.records.images import FilesystemImages
from genevolve_ray.records.trajectory import Group

if TYPE_CHECKING:
    from genevolve_ray.cluster.config import PlacedConfig
    from genevolve_ray.evolution.learner import LocalLearner


_CHANGING = ("step", "load")
"""Calls after which the weights differ from the published ones."""
_AFTERMATH_SECONDS = 10.0
"""Longest wait for the errors of the other ranks, to distinguish the rank that died from those that waited for it."""
_STOP_SECONDS = 5.0


class LearnerWorker:
    """Run one rank of the learner in a process of its own; `start` loads the model."""

    def __init__(self, config: PlacedConfig, model_dir: str, images_uri: str, rank: int = 0) -> None:
        """Keep the settings; `images_uri` names the store with the pictures that the policy saw."""
        self._config, self._model_dir, self._rank = config, model_dir, rank
        self._images_uri = images_uri
        self._learner: LocalLearner | None = None
        self._sender: Sender | None = None

    async def address(self) -> str:
        """Return `host:port` of this node at which the ranks can meet; only rank 0 is called."""
        from ray.util import get_node_ip_address

        with socket.socket() as free:
            free.bind(("", 0))
            return f"{get_node_ip_address()}:{free.getsockname()[1]}"

    async def start(self, address: str | None = None) -> None:
        """Load policy and optimizer; several ranks first meet at rank 0's address.

        Raises FileNotFoundError or UserFault for a model that cannot be trained.
        """
        from genevolve_ray.evolution.inprocess import start_learner
        from genevolve_ray.learning.policy import use_threads

        size = self._config.cluster.learner_ranks
        if not self._config.learner.threads:
            # Ray limits workers to one thread. In a synchronous step the engine is idle while the learner works (but for
            # what `loop.overlap` adds early).
            use_threads(max(1, len(os.sched_getaffinity(0)) // size))
        ranks = None
        if address is not None:
            from genevolve_ray.learning.distributed import join_ranks

            limit = self._config.cluster.learner_timeout
            ranks = join_ranks(self._rank, size, address, self._config.learner.device, limit)
        # Only the first rank writes to its folders; ranks of one node must not empty each other's. A learner that was
        # replaced keeps what the last one published: workers still load it.
        folders = WeightFolders(run_folder() / f"learner-{self._rank}")
        remove_leftovers()
        images = FilesystemImages(self._images_uri)
        self._learner = start_learner(self._config, Path(self._model_dir), folders, images, ranks)
        if self._config.cluster.weights != "host":
            self._sender = Sender(self._config.cluster.weights, self._rank, self._learner.outgoing())

    async def ping(self) -> None:
        """Answer: the event loop runs."""

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the learner port."""
        assert self._learner is not None, "call start first"
        return await getattr(self._learner, method)(*arguments)

    async def publish(self, version: int, elsewhere: bool) -> PublishedWeights | None:
        """Write the weights to a folder of this node.

        Rank 0 returns them, with contents where other nodes need them.
        """
        weights: PublishedWeights = await self.call("publish", version)
        if self._rank:
            return None
        return replace(weights, payload=pack(await weights.folder(), elsewhere))

    async def write(self, version: int, elsewhere: bool) -> FilesPayload | None:
        """Write the weights as `publish` does, for workers that joined after the transfer."""
        folder = await self.call("write", version)
        return pack(folder, elsewhere) if self._rank == 0 else None

    async def send(self, group: TransferGroup | None) -> None:
        """Send the weights to the engines of a group (see `Sender.send`); other calls are answered meanwhile."""
        assert self._sender is not None, "cluster.weights=host has no sender"
        await asyncio.to_thread(self._sender.send, group)

    async def stop(self) -> None:
        """Remove the published files from this node."""
        forget_weights()


class RayLearner:
    """Serve the learner port over the learner's actors: all of them execute every call, and rank 0 answers.

    Errors of the learner arrive with their own class; a rank that has died raises LearnerLost.
    """

    def __init__(
        self,
        create: Callable[[], Sequence[Any]],
        *,
        kill: Callable[[Any], None] = lambda worker: None,
        max_restarts: int = 0,
        elsewhere: Callable[[], bool] = lambda: False,
        sends: bool = False,
        supervise: Supervise = unsupervised,
    ) -> None:
        """Create the learner's actors.

        Args:
            create: returns one new actor for each rank, in their order.
            kill: ends an actor immediately.
            max_restarts: how often all of them may be replaced.
            elsewhere: whether any other node needs the weights.
            sends: whether published weights stay in memory until `send`, and are not written.
            supervise: awaits calls on actors, and ends one that takes far longer than usual.
        """
        self._supervise = supervise
        self.workers = list(create())
        self._create, self._kill, self._restarts_left = create, kill, max_restarts
        self._elsewhere, self._sends = elsewhere, sends
        # A restarted worker may request weights at any time, and ranks must be called in one order.
        self._turn = asyncio.Lock()
        self._held: int | None = None
        """The version that was published last, while the learner's weights are still the same."""

    async def start(self) -> None:
        """Wait until the model is loaded on every rank."""
        address = await self.address() if len(self.workers) > 1 else None
        await self._all("start", lambda worker: worker.start.remote(address))

    async def restart(self) -> None:
        """Replace the actors of all ranks by new ones in the initial state; `load` and `step` restore later states.

        Raises:
            LearnerLost: after too many restarts.
        """
        async with self._turn:
            self._held = None
            while True:
                self.end()
                if self._restarts_left == 0:
                    raise LearnerLost("the learner died too often (cluster.max_restarts)")
                self._restarts_left -= 1
                self.workers = list(self._create())
                try:
                    return await self.start()
                except LearnerLost:
                    continue

    async def accumulate(self, groups: Sequence[Group], step: int) -> None:
        """Add the gradient of some groups of a step early, on every rank."""
        await self._call("accumulate", list(groups), step, answers=True)

    async def step(
        self,
        groups: Sequence[Group],
        step: int,
        lessons: Sequence[Lesson] = (),
        parts: Parts = (),
        redraws: Sequence[Group] = (),
    ) -> dict[str, float]:
        """Take one optimization step on judged groups, taught by lessons, and return its metrics."""
        if parts:
            # A learner that was replaced has none of them; `step` alone takes as long as its rest usually does.
            await self._call("catch_up", list(groups), step, parts, answers=True)
        metrics: dict[str, float] = await self._call("step", list(groups), step, list(lessons), parts, list(redraws))
        return metrics

    async def teacher_disagreement(self) -> list[MovedToken]:
        """Return the tokens on which the teacher of the last step disagreed most."""
        tokens: list[MovedToken] = await self._call("teacher_disagreement")
        return tokens

    async def publish(self, version: int) -> PublishedWeights:
        """Return the weights as a version: files on the learner's node, or tensors in its memory where it sends."""
        if self._sends:
            probe = await self._call("probe")
            self._held = version
            return PublishedWeights(version, probe, TensorsPayload(partial(self._write, version)))
        async with self._turn:
            published: PublishedWeights = (
                await self._all("publish", lambda worker: worker.publish.remote(version, self._elsewhere()))
            )[0]
            return published

    async def _write(self, version: int) -> FilesPayload | None:
        """Write a version that was published as tensors; None when the learner no longer holds it."""
        async with self._turn:
            if self._held != version:
                return None
            files: FilesPayload = (
                await self._all("write", lambda worker: worker.write.remote(version, self._elsewhere()))
            )[0]
            return files

    async def release(self, version: int) -> None:
        """Remove the files of a version that every engine has replaced."""
        await self._call("release", version)

    async def send(self, group: TransferGroup | None) -> None:
        """Send the weights to the engines of a group, or with None to those of the last one.

        See `SendingLearner.send`.
        """
        async with self._turn:
            await self._all("send", lambda worker: worker.send.remote(group))

    async def address(self) -> str:
        """Return `host:port` of rank 0's node for the rendezvous of a group."""
        address: str = (await _together("address", [await_remote(self.workers[0].address.remote())]))[0]
        return address

    def end(self) -> None:
        """End all ranks immediately, because one of them waits for a dead process."""
        for worker in self.workers:
            self._kill(worker)

    async def stop(self) -> None:
        """Have every rank remove its published files; a dead or busy rank does not delay the end."""
        with suppress(RayActorError, TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await asyncio.gather(*(await_remote(worker.stop.remote()) for worker in self.workers))

    async def save(self, folder: str) -> None:
        """Write a checkpoint."""
        await self._call("save", folder)

    async def load(self, folder: str) -> None:
        """Restore a checkpoint."""
        await self._call("load", folder)

    async def state_hash(self) -> str:
        """Return a hash over weights, optimizer and RNG."""
        digest: str = await self._call("state_hash")
        return digest

    async def _call(self, method: str, *arguments: Any, answers: bool = False) -> Any:
        if len(self.workers) > 1:
            import ray

            # One copy of a batch for all ranks.
            arguments = tuple(ray.put(argument) for argument in arguments)
        async with self._turn:
            if method in _CHANGING:
                self._held = None
            return (await self._all(method, lambda worker: worker.call.remote(method, *arguments), answers))[0]

    async def _all(self, method: str, call: Callable[[Any], Awaitable[Any]], answers: bool = False) -> list[Any]:
        """Call every rank, and return the replies in their order.

        A rank answers pings where it works in another thread (`answers`); else it computes in its event loop.
        """

        def supervised(worker: Any) -> Awaitable[Any]:
            ping = (lambda: worker.ping.remote()) if answers else None
            return self._supervise(f"learner, {method}", worker, await_remote(call(worker)), ping=ping)

        return await _together(method, [supervised(worker) for worker in self.workers])


async def _together(method: str, replies: Sequence[Awaitable[Any]]) -> list[Any]:
    """Return the ranks' replies in order. Raises LearnerLost where one has died, else the first rank's error.

    When a rank dies, the others are in a collective, which fails a moment later or at its time limit. One error alone
    therefore does not show the cause.
    """
    tasks = [asyncio.ensure_future(reply) for reply in replies]
    try:
        _, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if rest:
            await asyncio.wait(rest, timeout=_AFTERMATH_SECONDS)
    finally:
        late = [task for task in tasks if task.cancel()]
    errors = {i: task.exception() for i, task in enumerate(tasks) if task not in late}
    for rank, error in errors.items():
        if isinstance(error, RayActorError):
            raise LearnerLost(f"rank {rank} of the learner died in {method!r}: {error}") from error
    for error in errors.values():
        if error is not None:
            raise error
    return [task.result() for task in tasks]


def learner_environment(config: PlacedConfig) -> dict[str, str]:
    """Return the environment variables of the learner's process: OpenMP reads its number of threads once, at import."""
    threads = config.learner.threads
    sends = config.cluster.weights != "host"
    return (
        {"HF_HUB_OFFLINE": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        | ({"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"} if sends else {})
    )
