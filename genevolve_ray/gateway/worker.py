"""Worker outside the cluster: its own engine, the gateway's requests, tools and weights. It needs no Ray."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import TypeVar

from pydantic import Field

from genevolve_ray.engines.protocol import Engine
from genevolve_ray.evolution.inprocess import load_chat
from genevolve_ray.gateway.client import GatewayClient, GatewayDown
from genevolve_ray.gateway.episodes import EpisodeRunner, OwnTools
from genevolve_ray.gateway.farewell import RunFinished
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.gateway.wire import FileCard, LeaseGrant, Push, RunCard, WeightsCard
from genevolve_ray.gateway.worker_engine import WorkerError, check_version, profile_of
from genevolve_ray.gateway.worker_folder import BaseMismatch, bring_weights, clear_strangers, link_base, version_name
from genevolve_ray.gateway.worker_pictures import FOLDER, WorkerPictures
from genevolve_ray.records.base import Config

T = TypeVar("T")
_LAST_ANSWER = 2.0
"""Seconds that a draining worker waits for the answer to its last request for work."""
_FATAL = frozenset(
    {
        RefusalReason.NO_TOKEN,
        RefusalReason.BAD_TOKEN,
        RefusalReason.TOKEN_EXPIRED,
        RefusalReason.SCOPE,
        RefusalReason.QUARANTINED,
    }
)


class WorkerConfig(Config):
    """Configure a worker."""

    concurrent: int = Field(default=8, ge=1)
    """Concurrent episodes."""
    poll_seconds: float = Field(default=20.0, gt=0, le=30)
    """Longest wait of one request for work or weights at the gateway."""
    drain_seconds: float = Field(default=60.0, ge=0)
    """After SIGTERM, seconds for the episodes in progress; episodes that are still playing then are given back."""
    patience: float = Field(default=600.0, gt=0)
    """Seconds without an answer from the gateway after which the worker gives up."""


@dataclass
class WorkerProgress:
    """Count the work of a worker."""

    version: int = -1
    playing: int = 0
    accepted: int = 0
    tokens: int = 0
    given_back: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    base_bytes: int = 0
    """Bytes transferred for the base."""
    version_bytes: Counter[int] = field(default_factory=Counter)
    """Bytes transferred for each version."""
    started: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """Return the counts in one line."""
        rate = 60 * self.accepted / max(time.monotonic() - self.started, 1e-9)
        refused = ", ".join(f"{count} {reason}" for reason, count in self.refused.most_common())
        loaded = f"{self.version_bytes[self.version] / 1e6:.3g} MB"
        if self.base_bytes:
            loaded += f" and {self.base_bytes / 1e6:.3g} MB of base"
        return (
            f"version {self.version} ({loaded}), {self.playing} in progress, {self.accepted} accepted ({rate:.1f} a minute, "
            f"{self.tokens} tokens), {self.given_back} returned, rejected: {refused or 'none'}"
        )


StartEngine = Callable[[RunCard, Path], Awaitable[Engine]]
"""Starts an engine on a model folder."""


class Worker:
    """Play episodes until drained."""

    def __init__(
        self,
        client: GatewayClient,
        config: WorkerConfig,
        folder: Path,
        start_engine: StartEngine,
        own: OwnTools | None = None,
        base: Path | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            client: the gateway.
            config: the worker's settings.
            folder: for model and weights; existing files are reused.
            start_engine: starts the engine.
            own: tools of this worker's own.
            base: a model folder that holds the base, for a run whose versions are adapters; without it the base is
                downloaded.
        """
        self._client, self._config, self._folder, self._start = client, config, folder, start_engine
        self._own, self._base = own, base
        self.progress = WorkerProgress()
        self._draining = asyncio.Event()
        self._updated = asyncio.Condition()
        self._heard = time.monotonic()

    def drain(self) -> None:
        """Take no more work, and finish the episodes in progress."""
        self._draining.set()

    async def run(self) -> WorkerProgress:
        """Work until drained, or until the run has finished.

        Raises:
            WorkerError: when the gateway quarantines this worker, is unreachable for too long, or has another version.
        """
        with suppress(RunFinished):
            card = await self._meet()
            check_version(card)
            self._runner, engine = await self._prepare(card)
            try:
                await self._work(engine)
            finally:
                await engine.close()
        return self.progress

    async def _meet(self) -> RunCard:
        """Wait for the gateway within the configured patience."""
        return await self._patiently(self._client.run)

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call of the start, again and again while the gateway is unreachable, within the configured patience.

        Raises:
            WorkerError: for a refusal, after the patience, and when the worker drains.
        """
        while True:
            try:
                return await call()
            except GatewayRefusal as refusal:
                _end_for(refusal, "the gateway rejected this worker", every=True)
            except GatewayDown as error:
                self._check_patience(error)
                await self._pause()
                if self._draining.is_set():
                    raise WorkerError(f"drained before the gateway was reachable: {error}") from error

    async def _prepare(self, card: RunCard) -> tuple[EpisodeRunner, Engine]:
        """Download model and weights and start the engine."""
        model = self._folder / "model"
        await self._patiently(lambda: self._client.download("/v1/model", card.model, model))
        weights, folder = await self._first_version()
        # The engine starts from a complete model folder: the base, or the first version where versions are whole.
        await asyncio.to_thread(clear_strangers, model, card.base)
        if card.base:
            await self._bring_base(card.base, model)
        else:
            await asyncio.to_thread(bring_weights, folder, model)
        engine = await self._start(card, model)
        await engine.update(str(folder), weights.version, weights.probe)
        self.progress.version = weights.version
        chat = load_chat(model, card.date)
        pictures = WorkerPictures(self._client, self._folder / FOLDER)
        return EpisodeRunner(self._client, engine, chat, profile_of(card), card.tools, pictures, self._own), engine

    async def _bring_base(self, files: Sequence[FileCard], model: Path) -> None:
        """Put the base into the model folder: the worker's own base, or else the downloaded one.

        The download is repeated within the configured patience.

        Raises:
            WorkerError: when the worker's own base differs, or the worker drains; the next start resumes the download.
        """
        if self._base is not None:
            try:
                return await asyncio.to_thread(link_base, self._base, model, files)
            except BaseMismatch as error:
                raise WorkerError(str(error)) from error
        before = self._client.received
        while True:
            got = self._client.received
            loading = asyncio.create_task(self._client.download("/v1/model", files, model))
            draining = asyncio.create_task(self._draining.wait())
            try:
                await asyncio.wait([loading, draining], return_when=asyncio.FIRST_COMPLETED)
                if not loading.done():
                    raise WorkerError("drained while the base was loading; the next start resumes the download")
                return loading.result()
            except GatewayDown as error:
                if self._client.received > got:
                    self._heard = time.monotonic()
                self._check_patience(error)
                await self._pause()
            finally:
                self.progress.base_bytes = self._client.received - before
                for task in (loading, draining):
                    task.cancel()
                await asyncio.gather(loading, draining, return_exceptions=True)

    async def _first_version(self) -> tuple[WeightsCard, Path]:
        """Download the newest version; one that is retired during its download is replaced by the newest then."""
        while True:
            weights = await self._patiently(self._first_weights)
            try:
                return weights, await self._fetch(weights)
            except GatewayDown as error:
                self._check_patience(error)
                await self._pause()
            except GatewayRefusal as refusal:
                if refusal.reason is not RefusalReason.UNKNOWN_FILE:
                    _end_for(refusal, "the gateway rejected this worker", every=True)
                self._heard = time.monotonic()

    async def _first_weights(self) -> WeightsCard:
        while not self._draining.is_set():
            if (card := await self._client.weights(-1, self._config.poll_seconds)) is not None:
                return card
            self._heard = time.monotonic()
        raise WorkerError("no weights available yet")

    async def _fetch(self, card: WeightsCard) -> Path:
        """Download a version's files; older ones are removed."""
        folder = self._folder / version_name(card)
        before = self._client.received
        try:
            await self._client.download(f"/v1/weights/{card.version}", card.files, folder)
        finally:
            self.progress.version_bytes[card.version] += self._client.received - before
        for old in self._folder.glob("v*"):
            if old != folder:
                await asyncio.to_thread(rmtree, old, True)
        return folder

    async def _work(self, engine: Engine) -> None:
        slots = [asyncio.create_task(self._slot(), name=f"slot {i}") for i in range(self._config.concurrent)]
        updates = asyncio.create_task(self._follow(engine), name="weights")
        stop = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait([*slots, updates, stop], return_when=asyncio.FIRST_COMPLETED)
            _raise_first(slots, updates)
            await asyncio.wait(slots, timeout=self._config.drain_seconds, return_when=asyncio.FIRST_EXCEPTION)
            _raise_first(slots, updates)
        finally:
            for task in (*slots, updates, stop):
                task.cancel()
            await asyncio.gather(*slots, updates, stop, return_exceptions=True)

    async def _follow(self, engine: Engine) -> None:
        """Load every new version into the engine, while episodes continue."""
        while True:
            try:
                card = await self._client.weights(self.progress.version, self._config.poll_seconds)
                self._heard = time.monotonic()
                if card is None:
                    continue
                folder = await self._fetch(card)
            except GatewayDown as error:
                self._check_patience(error)
                await asyncio.sleep(1.0)
                continue
            except GatewayRefusal as refusal:
                _end_for(refusal, "the gateway has quarantined this worker")
                continue  # the version was removed during the download
            await engine.update(str(folder), card.version, card.probe)
            self.progress.version = card.version
            async with self._updated:
                self._updated.notify_all()

    async def _slot(self) -> None:
        """Play one episode after another."""
        while not self._draining.is_set():
            try:
                for grant in await self._leases():
                    await self._play(grant)
            except GatewayDown as error:
                self._check_patience(error)
                await self._pause()
            except GatewayRefusal as refusal:
                self.progress.refused[refusal.reason.value] += 1
                _end_for(refusal, "the gateway has quarantined this worker")

    async def _leases(self) -> list[LeaseGrant]:
        """Request work until there is some or the worker drains.

        A request in progress then has a moment left, and what it brings is given back: a lease whose answer nobody
        reads would stay open until it expires.
        """
        asking = asyncio.create_task(self._client.lease(1, self._config.poll_seconds))
        draining = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait([asking, draining], return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                await asyncio.wait([asking], timeout=_LAST_ANSWER)
            if not asking.done():
                return []
            grants = asking.result()
            self._heard = time.monotonic()
            if not self._draining.is_set():
                return grants
            for grant in grants:
                await self._return(grant)
            return []
        finally:
            for task in (asking, draining):
                task.cancel()
            await asyncio.gather(asking, draining, return_exceptions=True)

    async def _play(self, grant: LeaseGrant) -> None:
        """Play a lease and push the episode; a lease whose episode is not played to its end is given back."""
        self.progress.playing += 1
        beat = asyncio.create_task(self._renew(grant))
        playing = asyncio.create_task(self._episode(grant))
        try:
            await asyncio.wait([beat, playing], return_when=asyncio.FIRST_COMPLETED)
            if not playing.done():
                beat.result()  # the lease is lost
                return
            push = playing.result()
            beat.cancel()
            if push is None:
                await self._return(grant)
                return
            await self._client.push(grant.id, push)
            self.progress.accepted += 1
            self.progress.tokens += sum(push.ledger.policy_mask)
        except BaseException as error:
            # A refused renewal or push has ended the lease; a refusal within the episode has not.
            if not isinstance(error, GatewayRefusal) or _failed(playing):
                await self._return(grant)
            raise
        finally:
            self.progress.playing -= 1
            for task in (beat, playing):
                task.cancel()
            await asyncio.gather(beat, playing, return_exceptions=True)

    async def _episode(self, grant: LeaseGrant) -> Push | None:
        async with self._updated:
            await self._updated.wait_for(lambda: self.progress.version >= grant.version)
        return await self._runner.play(grant)

    async def _renew(self, grant: LeaseGrant) -> None:
        """Extend a lease until it is lost, which raises GatewayRefusal."""
        while True:
            await asyncio.sleep(grant.seconds / 3)
            await self._client.renew(grant.id)

    async def _return(self, grant: LeaseGrant) -> None:
        with suppress(GatewayRefusal, GatewayDown):
            await self._client.give_back(grant.id)
            self.progress.given_back += 1

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._draining.wait(), 1.0)

    def _check_patience(self, error: GatewayDown) -> None:
        if time.monotonic() - self._heard > self._config.patience:
            raise WorkerError(f"no answer from the gateway for {self._config.patience:g} s: {error}") from error


def _end_for(refusal: GatewayRefusal, said: str, *, every: bool = False) -> None:
    """Raise a refusal that ends a worker: RunFinished at the end of the run, else WorkerError."""
    if refusal.reason is RefusalReason.FINISHED:
        raise RunFinished from refusal
    if every or refusal.reason in _FATAL:
        raise WorkerError(f"{said}: {refusal.why}") from refusal


def _failed(task: asyncio.Task[T]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


def _raise_first(slots: list[asyncio.Task[None]], updates: asyncio.Task[None]) -> None:
    """Raise the error that ended a task."""
    for task in (*slots, updates):
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise error
