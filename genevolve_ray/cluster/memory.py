"""The experience memory as an actor: one writer, which restarts from the last committed state when it dies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayActorError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from genevolve_ray.cluster.errors import Supervise, await_remote, unsupervised
from genevolve_ray.evolution.ports import ExperienceStep
from genevolve_ray.experience.changes import join_changes
from genevolve_ray.experience.memory import ExperienceMemory
from genevolve_ray.records.request import Request
from genevolve_ray.records.trajectory import Group

if TYPE_CHECKING:
    from genevolve_ray.cluster.config import PlacedConfig
    from genevolve_ray.evolution.experience import LocalExperience


class ExperienceWorker:
    """Run the memory with its summarizer and embedder in a process of its own."""

    def __init__(self, config: PlacedConfig, model_dir: str) -> None:
        """Keep the settings and the folder of the policy; `start` does the work."""
        self._config, self._model_dir = config, model_dir
        self._experience: LocalExperience | None = None

    async def start(self) -> None:
        """Build memory, summarizer and embedder. Raises ValueError for a missing plug-in or model."""
        from genevolve_ray.evolution.inprocess import start_experience

        self._experience = start_experience(self._config, Path(self._model_dir))

    async def ping(self) -> None:
        """Answer: the event loop of this process runs."""

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the experience port."""
        assert self._experience is not None, "call start first; only runs with experience have this actor"
        return await getattr(self._experience, method)(*arguments)

    async def learn(self, *arguments: Any) -> tuple[ExperienceStep, bytes]:
        """Learn a step and return what changed in the memory, so that a later death of this process loses nothing."""
        learned = await self.call("learn", *arguments)
        return learned, await self.call("changes")


class RayExperience:
    """Serve the experience port over the memory actor.

    When the actor dies, or cannot be reached, a new one replaces it with the memory of the last committed step, and the
    call is repeated. The result of a step depends only on that memory and on the step's groups.
    """

    def __init__(
        self,
        create: Callable[[], Any],
        kill: Callable[[Any], None],
        attempts: int,
        supervise: Supervise = unsupervised,
    ) -> None:
        """Create the actor; `start` waits for it.

        Args:
            create: returns a new actor immediately.
            kill: ends an actor immediately.
            attempts: attempts per call.
            supervise: awaits calls on the actor, and ends one that no longer answers.
        """
        self._supervise = supervise
        self._create, self._kill, self._attempts = create, kill, attempts
        self._base = ExperienceMemory().snapshot()
        """The last whole memory that the loop committed."""
        self._committed: list[bytes] = []
        """What it committed since, in order."""
        self._learned: list[bytes] = []
        """What was learned since; the loop has not committed it yet."""
        self._lost = False
        self.worker = create()

    async def start(self) -> None:
        """Wait until the memory has started."""
        await self._call("start")

    async def prepare(self, requests: Sequence[Request], groups: Sequence[Group], step: int) -> None:
        """Compare some groups of a step early. When the actor dies, `learn` compares them with its replacement."""
        if self._lost:
            return
        try:
            await self._call("call", "prepare", list(requests), list(groups), step)
        except RayActorError:
            self._lost = True

    async def learn(self, requests: Sequence[Request], groups: Sequence[Group], step: int) -> ExperienceStep:
        """Write a step's bundles and recall one for each request. Raises RayActorError when actors keep dying."""
        learned, changes = await self._again("learn", list(requests), list(groups), step)
        self._learned.append(changes)
        step_learned: ExperienceStep = learned
        return step_learned

    async def snapshot(self) -> bytes:
        """Return the whole memory after the last step as bytes, and keep them: the loop commits them."""
        self._base = await self._again("call", "snapshot")
        self._committed, self._learned = [], []
        return self._base

    async def changes(self) -> bytes:
        """Return what was learned since the last commit as bytes, and keep them: the loop commits them."""
        if not self._learned:
            self._learned.append(await self._again("call", "changes"))
        self._committed += self._learned
        changes, self._learned = join_changes(self._learned), []
        return changes

    async def restore(self, snapshot: bytes) -> None:
        """Load the memory of a snapshot. Raises SnapshotError."""
        await self._again("call", "restore", snapshot)
        self._base, self._committed, self._learned = snapshot, [], []

    async def _again(self, method: str, *arguments: Any) -> Any:
        """Call the actor, or its replacement. Raises RayActorError when actors keep dying."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(RayActorError), stop=stop_after_attempt(self._attempts), reraise=True
        )
        return await retrying(self._once, method, *arguments)

    async def _once(self, method: str, *arguments: Any) -> Any:
        if self._lost:
            if method == "learn":  # The step is learned again, from what it started with.
                self._learned = []
            await self._renew()
        try:
            return await self._call(method, *arguments)
        except RayActorError:
            self._lost = True
            raise

    async def _call(self, method: str, *arguments: Any) -> Any:
        worker = self.worker
        kind = str(arguments[0]) if method == "call" else method
        work = await_remote(getattr(worker, method).remote(*arguments))
        # An actor that does not exist yet answers no pings.
        ping = None if method == "start" else lambda: worker.ping.remote()
        return await self._supervise(f"experience memory, {kind}", worker, work, ping=ping)

    async def _renew(self) -> None:
        """Replace a lost actor; when the new one dies as well, the next attempt replaces it again."""
        self._kill(self.worker)  # it may be alive but unreachable
        self.worker = self._create()
        await self.start()
        await self._call("call", "restore", self._base, [*self._committed, *self._learned])
        self._lost = False
