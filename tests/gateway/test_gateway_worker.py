"""Workers play what the loop asks for, over a real server on loopback."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gateway_helpers import MODEL, house, played, rehearsal
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.null_parts import picture
from genevolve_ray.agent.profile_source import read_profile
from genevolve_ray.engines.null import NullEngine
from genevolve_ray.engines.protocol import Engine
from genevolve_ray.evolution.inprocess import build_rollouts, load_chat
from genevolve_ray.evolution.plugins import PluginSpec, RendererSpec
from genevolve_ray.evolution.ports import RolloutTask
from genevolve_ray.evolution.weights import PublishedWeights
from genevolve_ray.experience.config import ExperienceConfig
from genevolve_ray.gateway.auth import Scope, TokenFile
from genevolve_ray.gateway.client import GatewayClient, GatewayDown
from genevolve_ray.gateway.config import GatewayConfig
from genevolve_ray.gateway.console import status_lines
from genevolve_ray.gateway.episodes import OwnTools
from genevolve_ray.gateway.launch import opening_notes
from genevolve_ray.gateway.quarantine import Quarantine
from genevolve_ray.gateway.reasons import GatewayRefusal, RefusalReason
from genevolve_ray.gateway.rollouts import GatewayRenderers
from genevolve_ray.gateway.server import GatewayServer, GatewayStartError
from genevolve_ray.gateway.wire import FileCard, RunCard
from genevolve_ray.gateway.worker import Worker, WorkerConfig
from genevolve_ray.gateway.worker_engine import WorkerError, start_engine
from genevolve_ray.records.images import ImageRef, MemoryImages, reference
from genevolve_ray.records.ledger import TokenLedger
from genevolve_ray.records.trajectory import Outcome, Provenance, Trajectory


async def test_workers_answer_every_sample_and_the_gateway_judges_it(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.publish(0)
        found = await played(h, [h.worker("anna"), h.worker("ben")], [h.task(i) for i in range(12)])
        assert [t.key.sample for t in found] == list(range(12))
        assert {t.outcome for t in found} == {Outcome.SCORED}
        assert {t.provenance.engine for t in found} <= {"gateway:anna", "gateway:ben"}
        assert all(t.reward is not None and t.verdict is not None for t in found)
        assert h.server.gateway.lease_table.counts()["answered"] == 12


async def test_a_worker_ends_without_an_error_when_the_run_has_finished(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.publish(0)
        worker, waiting = h.worker("anna"), h.worker("ben")
        running = [asyncio.create_task(one.run()) for one in (worker, waiting)]
        assert (await h.rollouts.rollout(h.task(0))).outcome is Outcome.SCORED
        async with asyncio.timeout(30):
            while len(h.server.gateway.meters.alive()) < 2:
                await asyncio.sleep(0.01)
    async with asyncio.timeout(30):
        ended = await asyncio.gather(*running)
    assert sum(progress.accepted for progress in ended) == 1


async def test_a_worker_that_waits_for_the_first_version_ends_with_the_run_as_well(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        running = asyncio.create_task(h.worker("anna").run())
        async with asyncio.timeout(30):
            while not h.server.gateway.meters.alive():
                await asyncio.sleep(0.01)
    async with asyncio.timeout(30):
        assert (await running).accepted == 0


async def test_a_run_that_failed_sends_no_worker_away(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the run fails"):
        async with house(tmp_path) as h:
            await h.publish(0)
            config = WorkerConfig(concurrent=1, poll_seconds=0.5, drain_seconds=1, patience=0.2)
            client = h.client(h.token("anna"))
            worker = Worker(client, config, tmp_path / "anna", lambda c, m: start_engine(c, m, None))
            running = asyncio.create_task(worker.run())
            assert (await h.rollouts.rollout(h.task(0))).outcome is Outcome.SCORED
            raise RuntimeError("the run fails")
    with pytest.raises(WorkerError, match="no answer from the gateway"):
        await running


@pytest.mark.parametrize(
    ("settings", "enabled", "outside", "notes"),
    [
        ({"port": 1}, False, False, [r"no worker can connect: .*none\.json holds no token; .*token new NAME --file"]),
        ({"port": 1, "only": True}, True, False, ["no worker can connect", "experience is off: every rollout comes"]),
        ({"port": 1, "only": True}, True, True, ["no worker can connect"]),
    ],
)
def test_what_keeps_workers_or_experience_away_is_said_at_the_start(
    tmp_path: Path, settings: dict[str, Any], enabled: bool, outside: bool, notes: list[str]
) -> None:
    config = GatewayConfig(tokens=tmp_path / "none.json", **settings)
    found = opening_notes(config, ExperienceConfig(enabled=enabled, outside=outside))
    assert len(found) == len(notes)
    assert all(re.search(note, text) for note, text in zip(notes, found, strict=True))
    TokenFile(config.tokens).new("anna", [Scope.ROLLOUT], None)
    assert len(opening_notes(config, ExperienceConfig(enabled=enabled, outside=outside))) == len(notes) - 1


async def test_an_answer_from_outside_equals_the_same_sample_played_inside(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.publish(2)
        task = h.task(4)
        (outside,) = await played(h, [h.worker("anna")], [task])
        engine = NullEngine(load_chat(MODEL).tokenizer, turn_seconds=0, tool_calls=1)
        await engine.update(str(tmp_path / "published-2"), 2)
        inside = await build_rollouts(h.config, MODEL, engine, MemoryImages()).rollout(task)
        assert outside.ledger == inside.ledger
        assert (outside.program, outside.images, outside.termination) == (
            inside.program,
            inside.images,
            inside.termination,
        )
        assert [(t.kind, t.text, t.observation) for t in outside.turns] == [
            (t.kind, t.text, t.observation) for t in inside.turns
        ]


async def test_a_worker_follows_the_versions(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.publish(0)
        worker = h.worker("anna")
        running = asyncio.create_task(worker.run())
        first = await h.rollouts.rollout(h.task(0))
        await h.publish(1)
        second = await h.rollouts.rollout(h.task(1))
        worker.drain()
        await running
        assert (max(first.ledger.versions), second.ledger.oldest_version) == (0, 1)


async def test_a_drained_worker_finishes_what_it_plays(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.publish(0)
        worker = h.worker("anna", concurrent=1)
        running = asyncio.create_task(worker.run())
        answers = [asyncio.create_task(h.rollouts.rollout(h.task(i))) for i in range(3)]
        await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        worker.drain()
        progress = await running
        counts = h.server.gateway.lease_table.counts()
        assert counts["leased"] == 0 and counts["answered"] == progress.accepted
        assert counts["expired"] == 0
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*answers, return_exceptions=True)


async def test_what_a_worker_cannot_finish_in_time_is_given_back(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.publish(0)
        slow = Worker(
            h.client(h.token("slow")),
            WorkerConfig(concurrent=1, poll_seconds=0.5, drain_seconds=0.0),
            tmp_path / "workers" / "slow",
            _never_ending,
        )
        running = asyncio.create_task(slow.run())
        answer = asyncio.create_task(h.rollouts.rollout(h.task(0)))
        while not slow.progress.playing:
            await asyncio.sleep(0.01)
        slow.drain()
        assert (await running).given_back == 1
        assert h.server.gateway.lease_table.counts()["returned"] == 1
        quick = h.worker("quick")
        finishing = asyncio.create_task(quick.run())
        assert (await answer).provenance.engine == "gateway:quick"
        quick.drain()
        await finishing


async def _never_ending(card: RunCard, model: Path) -> Engine:
    return NullEngine(load_chat(model).tokenizer, turn_seconds=3600, tool_calls=1)


async def test_a_worker_that_is_shut_out_ends_with_the_reason(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.publish(0)
        token = h.token("anna")
        h.tokens.revoke("anna")
        with pytest.raises(WorkerError, match="bad_token"):
            await h.worker("anna", token=token).run()


async def test_evidence_outlives_the_gateway(tmp_path: Path) -> None:
    Quarantine(tmp_path / "gateway" / "quarantine").add(
        "anna", GatewayRefusal(RefusalReason.WRONG_LOGPROBS), {"lease": "x"}
    )
    async with house(tmp_path) as h:
        with pytest.raises(WorkerError, match="quarantined"):
            await h.worker("anna").run()


async def test_without_workers_samples_are_played_inside_and_evaluations_always_are(tmp_path: Path) -> None:
    inside = _Inside()
    async with house(tmp_path, inside=inside, share=0.5, patience=30.0) as h:
        await h.publish(0)
        await h.rollouts.rollout(h.task(0))
        assert inside.played == [0]
        worker = h.worker("anna")
        running = asyncio.create_task(worker.run())
        while not h.server.gateway.meters.alive():
            await asyncio.sleep(0.01)
        await h.rollouts.rollout(h.task(9, split="validation"))
        async with asyncio.timeout(60):
            await asyncio.gather(*(h.rollouts.rollout(h.task(i)) for i in range(1, 9)))
        worker.drain()
        await running
        assert len(inside.played) == 2 + 4
        assert h.server.gateway.lease_table.counts()["answered"] == 4


async def test_a_sample_that_no_worker_takes_in_time_is_played_inside(tmp_path: Path) -> None:
    inside = _Inside()
    async with house(tmp_path, inside=inside, share=1.0, patience=0.1) as h, h.http(h.token("idle")) as http:
        await h.publish(0)
        await http.get("/v1/run")  # a worker was seen
        await h.rollouts.rollout(h.task(3))
        assert inside.played == [3]
        assert h.server.gateway.lease_table.counts()["given_up"] == 1


class _Inside:
    """The port of an engine inside that books what it is asked."""

    def __init__(self) -> None:
        self.played: list[int] = []

    async def rollout(self, task: RolloutTask) -> Trajectory:
        self.played.append(task.key.sample)
        return Trajectory(task.key, "", TokenLedger(), Provenance(profile="atlas", engine="inside"))

    async def update(self, weights: PublishedWeights) -> float:
        return 0.0


async def test_status_and_metrics_tell_what_happened(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.publish(0)
        await played(h, [h.worker("anna")], [h.task(i) for i in range(3)])
        async with h.http(h.token("watcher", Scope.STATUS)) as http:
            status = (await http.get("/v1/status")).json()
            await http.post("/v1/leases", json={"count": 1})
            answer = await http.get("/metrics")
        assert status["accepted"] == status["leases"]["answered"] == 3
        assert status["workers"]["anna"]["accepted"] == 3 and status["versions"] == [0]
        assert any("anna" in line for line in status_lines(status))
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        families = {family.name: family for family in text_string_to_metric_families(answer.text)}
        samples = {(s.name, *s.labels.values()): s.value for family in families.values() for s in family.samples}
        assert samples["genevolve_gateway_trajectories_accepted_total",] == 3
        assert samples["genevolve_gateway_refused_total", "scope"] == 1
        assert samples["genevolve_gateway_version",] == 0
        assert families["genevolve_gateway_refused"].type == "counter"
        assert families["genevolve_gateway_workers_alive"].type == "gauge"


async def test_a_trusted_worker_brings_its_own_observations_and_pictures(tmp_path: Path) -> None:
    async with house(tmp_path, trust={"own_tools": True}) as h:
        await h.publish(0)
        images = MemoryImages()
        own = OwnTools(PluginSpec(type="benchmarks.null_parts:Tools").build(images).tools, images)
        token = h.token("anna", Scope.ROLLOUT, Scope.OWN_TOOLS)
        config = WorkerConfig(concurrent=1, poll_seconds=0.5)
        worker = Worker(h.client(token), config, tmp_path / "own", lambda c, m: start_engine(c, m, None), own)
        (found,) = await played(h, [worker], [h.task(0)])
        assert found.outcome is Outcome.SCORED
        assert h.server.gateway.lease_table.counts()["answered"] == 1


async def test_a_renderer_that_is_swapped_draws_for_both_sides(tmp_path: Path) -> None:
    drawn: list[int] = []

    class Host:
        async def add_renderer(self, generation: int, spec: RendererSpec) -> str:
            drawn.append(generation)
            return "inside"

        async def remove_renderer(self, generation: int) -> None:
            drawn.append(-generation)

    class Painter:
        identity = "painter"

        async def render(self, prompt: str, references: object, seed: int) -> ImageRef:
            return reference(picture(), width=8, height=8)

    async def meet(generation: int, spec: RendererSpec) -> Painter:
        return Painter()

    async with house(tmp_path) as h:
        await h.publish(0)
        renderers = GatewayRenderers(Host(), h.rollouts._scoring, meet)
        assert await renderers.add_renderer(7, RendererSpec(type="a:B")) == "painter"
        old, new = await played(h, [h.worker("anna")], [h.task(0), h.task(1).model_copy(update={"renderer": 7})])
        assert (old.provenance.renderer, new.provenance.renderer) == ("null renderer", "painter")
        await renderers.remove_renderer(7)
        assert drawn == [7, -7]


async def test_pictures_of_own_tools_are_decoded_and_need_the_scope(tmp_path: Path) -> None:
    async with house(tmp_path, trust={"own_tools": True}) as h:
        async with h.http(h.token("anna", Scope.ROLLOUT, Scope.OWN_TOOLS)) as http:
            assert (await http.put("/v1/images", content=b"<svg/>")).json()["reason"] == RefusalReason.MALFORMED.value
            assert (await http.put("/v1/images", content=picture())).json()["width"] == 8
        async with h.http(h.token("ben")) as http:
            assert (await http.put("/v1/images", content=picture())).status_code == 403


def test_beyond_loopback_there_is_tls_or_a_word_about_it() -> None:
    with pytest.raises(ValueError, match="10.0.0.1"):
        GatewayConfig(port=1, host="10.0.0.1")
    with pytest.raises(ValueError, match="tls_key"):
        GatewayConfig(port=1, tls_certificate=Path("c"))
    assert GatewayConfig(port=1, host="10.0.0.1", plaintext=True).plaintext


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = GatewayServer(lambda: pytest.fail("never built"), GatewayConfig(port=port))
        with pytest.raises(GatewayStartError, match=str(port)):
            server.start()


async def test_a_worker_whose_download_outlasts_a_version_asks_for_the_newest_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, kept_versions=1) as h:
        await h.publish(0)
        download, versions = GatewayClient.download, [1, 2]

        async def slow(self: GatewayClient, path: str, files: Sequence[FileCard], folder: Path) -> None:
            if path.startswith("/v1/weights") and versions:
                await h.publish(versions.pop(0))  # the requested version is no longer kept
            await download(self, path, files, folder)

        monkeypatch.setattr(GatewayClient, "download", slow)
        (found,) = await played(h, [h.worker("late")], [h.task(0)])
        assert found.ledger.oldest_version == 2


async def test_a_worker_waits_for_a_gateway_that_is_away_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as h:
        await h.publish(0)
        once, down = GatewayClient.download, ["/v1/model", "/v1/weights/0"]

        async def flaky(self: GatewayClient, path: str, files: Sequence[FileCard], folder: Path) -> None:
            if path in down:
                down.remove(path)
                raise GatewayDown("the gateway is away")
            await once(self, path, files, folder)

        monkeypatch.setattr(GatewayClient, "download", flaky)
        monkeypatch.setattr(Worker, "_pause", lambda self: asyncio.sleep(0))
        (found,) = await played(h, [h.worker("anna")], [h.task(0)])
        assert found.outcome is Outcome.SCORED and not down


async def test_a_worker_plays_a_profile_of_the_runs_own(tmp_path: Path) -> None:
    own = {"extends": "atlas", "name": "own", "final_step_as": "turn", "max_turns": 4, "prompt": "Draw.\n{{tools}}\n"}
    run = lambda **gateway: rehearsal(**gateway).model_copy(update={"profile": read_profile(own)})  # noqa: E731
    async with house(tmp_path, run=run) as h:
        await h.publish(0)
        card = h.server.gateway.card()
        assert card.protocol_profile is not None and card.protocol_profile.name == "own"
        (found,) = await played(h, [h.worker("anna")], [h.task(0)])
    assert (found.outcome, found.provenance.profile) == (Outcome.SCORED, "own")
