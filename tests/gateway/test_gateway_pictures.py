"""A policy that sees, outside: pictures travel by hash, and a replay accepts only those that the tools showed."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from threading import current_thread
from typing import Any

import pytest
from gateway_helpers import House, house, played, rehearsal
from gateway_scene import Scene, chat_of, play
from PIL import Image
from zoo import build

from benchmarks.null_parts import NoConfig, PictureTools, noise
from genevolve_ray.agent.profile_source import read_profile
from genevolve_ray.config import RunConfig
from genevolve_ray.engines.protocol import Probe, PromptImage, SamplingParams
from genevolve_ray.evolution.inprocess import load_banned
from genevolve_ray.evolution.plugins import PluginSpec
from genevolve_ray.gateway.auth import Scope
from genevolve_ray.gateway.client import GatewayDown
from genevolve_ray.gateway.episodes import OwnTools
from genevolve_ray.gateway.launch import build_scorer
from genevolve_ray.gateway.leases import SampleLease
from genevolve_ray.gateway.reasons import FORGERIES, GatewayRefusal, RefusalReason
from genevolve_ray.gateway.tool_calls import ToolCalls
from genevolve_ray.gateway.wire import BLIND_PROTOCOL, PROTOCOL, ToolAnswer
from genevolve_ray.gateway.worker import Worker, WorkerConfig
from genevolve_ray.gateway.worker_engine import WorkerError, start_engine
from genevolve_ray.gateway.worker_pictures import WorkerPictures
from genevolve_ray.models import image_tokens
from genevolve_ray.records.images import ImageRef, MemoryImages
from genevolve_ray.records.ledger import MediaSpan
from genevolve_ray.records.observation import ImageHit, ImageSearchObservation
from genevolve_ray.records.trajectory import Outcome, Trajectory

TOOLS = "benchmarks.null_parts:PictureTools"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen3-vl", tmp_path_factory.mktemp("qwen3-vl") / "model")


def seeing(**gateway: Any) -> RunConfig:
    profile = read_profile({"extends": "atlas", "name": "seeing", "observations": {"images": True, "max_side": 96}})
    blind = rehearsal(**gateway)
    return blind.model_copy(update={"profile": profile, "tools": blind.tools.model_copy(update={"type": TOOLS})})


@pytest.fixture
async def scene(tmp_path: Path, model: Path) -> AsyncIterator[Scene]:
    async with house(tmp_path, run=seeing, model=model) as h:
        await h.publish(0)
        found = await play(h, "mallory", 0)
        yield found
        found.answer.cancel()
        await asyncio.gather(found.answer, return_exceptions=True)
        await found.client.close()


def check_seen(trajectory: Trajectory, images: Any) -> None:
    """Check that the ledger's pictures are files of the run's store, of bounded size."""
    assert len(trajectory.ledger.media) == 2
    for span in trajectory.ledger.media:
        ref = trajectory.shown(span.sha256)
        assert max(ref.width, ref.height) <= 96
        assert hashlib.sha256(images.get(ref)).hexdigest() == span.sha256


async def test_a_worker_fetches_the_pictures_that_its_policy_sees_once(tmp_path: Path, model: Path) -> None:
    async with house(tmp_path, run=seeing, model=model) as h:
        await h.publish(0)
        worker = h.worker("anna", concurrent=1)
        found = await played(h, [worker], [h.task(i) for i in range(3)])
        for trajectory in found:
            assert trajectory.outcome is Outcome.SCORED
            check_seen(trajectory, h.images)
        kept = sorted(path.stem for path in (tmp_path / "workers" / "anna" / "pictures").glob("*/*"))
        assert kept == sorted(span.sha256 for span in found[0].ledger.media)


async def test_the_ledger_of_a_worker_states_the_pictures(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(scene.ledger["media"]) == 2
    loaded, load = list[str](), image_tokens.load_image_processor
    monkeypatch.setattr(
        image_tokens, "load_image_processor", lambda model: (loaded.append(current_thread().name), load(model))[1]
    )
    assert await scene.push() == (200, "")
    assert len(loaded) == 1 and loaded[0] != "gateway", "not on the event loop of the gateway"
    check_seen(await scene.answer, scene.house.images)


def _another_hash(media: list[dict[str, Any]]) -> None:
    media[0]["sha256"] = hashlib.sha256(b"foreign").hexdigest()


def _exchanged(media: list[dict[str, Any]]) -> None:
    media[0]["sha256"], media[1]["sha256"] = media[1]["sha256"], media[0]["sha256"]


def _missing(media: list[dict[str, Any]]) -> None:
    media.pop()


def _surplus(media: list[dict[str, Any]]) -> None:
    media.append({**media[-1], "start": media[-1]["end"], "end": media[-1]["end"] + 1})


def _shifted(media: list[dict[str, Any]]) -> None:
    media[0]["start"], media[0]["end"] = media[0]["start"] + 1, media[0]["end"] + 1


def _turned(media: list[dict[str, Any]]) -> None:
    time, height, width = media[0]["grid"]
    media[0]["grid"] = [time, width, height]


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (_another_hash, RefusalReason.FOREIGN_PICTURES),
        (_exchanged, RefusalReason.FOREIGN_PICTURES),
        (_missing, RefusalReason.FOREIGN_PICTURES),
        (_surplus, RefusalReason.FOREIGN_PICTURES),
        (_shifted, RefusalReason.SHIFTED_PICTURES),
        (_turned, RefusalReason.SHIFTED_PICTURES),
    ],
)
async def test_other_pictures_than_the_tools_showed_are_refused(
    scene: Scene, forge: Callable[[list[dict[str, Any]]], None], reason: RefusalReason
) -> None:
    forge(scene.ledger["media"])
    assert await scene.push() == (422, reason.value)
    assert reason in FORGERIES and not scene.answer.done()


async def test_a_picture_is_served_to_the_lease_that_was_shown_it_alone(scene: Scene) -> None:
    client, h = scene.client, scene.house
    shown = scene.ledger["media"][0]["sha256"]
    assert hashlib.sha256(await client.picture(scene.grant.id, shown)).hexdigest() == shown
    truth = h.requests.train(0).truth_image
    assert truth is not None and h.images.get(truth)
    for foreign in (truth.sha256, "0" * 64, "run.json"):
        with pytest.raises(GatewayRefusal) as refused:
            await client.picture(scene.grant.id, foreign)
        assert refused.value.reason is RefusalReason.UNKNOWN_FILE
    thief = h.client(h.token("thief"))
    with pytest.raises(GatewayRefusal) as refused:
        await thief.picture(scene.grant.id, shown)
    assert refused.value.reason is RefusalReason.OTHERS_LEASE
    async with h.http() as http:
        assert (await http.get(f"/v1/leases/{scene.grant.id}/images/{shown}")).status_code == 401
    await thief.close()


async def test_a_picture_that_arrives_damaged_is_not_kept(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = scene.house.server.gateway.lease_table._open[scene.grant.id]
    observation = next(c.answer.observation for c in lease.calls if c.name == "image_search")
    assert isinstance(observation, ImageSearchObservation)
    pictures = WorkerPictures(scene.client, tmp_path / "fresh")
    monkeypatch.setattr(MemoryImages, "get", lambda self, ref: b"changed on the way")
    with pytest.raises(GatewayDown, match="arrived damaged"):
        await pictures.bring(scene.grant.id, observation)
    assert not list((tmp_path / "fresh").glob("*/*"))


async def test_a_picture_that_cannot_be_kept_ends_the_worker_in_one_line(scene: Scene, tmp_path: Path) -> None:
    lease = scene.house.server.gateway.lease_table._open[scene.grant.id]
    observation = next(c.answer.observation for c in lease.calls if c.name == "image_search")
    assert isinstance(observation, ImageSearchObservation)
    ref = next(iter(lease.pictures.values()))
    (tmp_path / "full" / ref.sha256[:2] / ref.file_name).mkdir(parents=True)  # in the place of its file
    with pytest.raises(WorkerError, match=rf"cannot keep a picture in {tmp_path / 'full'}"):
        await WorkerPictures(scene.client, tmp_path / "full").bring(scene.grant.id, observation)


async def test_an_uploaded_picture_that_is_lost_is_refused(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(self: MemoryImages, ref: ImageRef) -> bytes:
        raise PermissionError(13, "denied")

    async with house(tmp_path, run=seeing, model=model, trust={"own_tools": True}) as h:
        await h.publish(0)
        client = h.client(h.token("ben", Scope.ROLLOUT, Scope.OWN_TOOLS))
        posed = asyncio.create_task(h.rollouts.rollout(h.task(0)))
        (grant,) = await client.lease(1, 10)
        hit = ImageHit(title="", url="https://x.org/1", image=await client.put_image(noise(96, 64)))
        monkeypatch.setattr(MemoryImages, "get", unread)
        with pytest.raises(GatewayRefusal, match="an uploaded image cannot be read") as refused:
            await client.show(grant.id, ToolAnswer(observation=ImageSearchObservation(query="x", hits=(hit,))))
        assert refused.value.reason is RefusalReason.UNKNOWN_FILE
        posed.cancel()
        await asyncio.gather(posed, return_exceptions=True)
        await client.close()


async def test_an_episode_whose_picture_a_worker_lost_is_given_back(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: WorkerPictures, ref: ImageRef) -> bytes:
        raise FileNotFoundError(ref.sha256)

    async with house(tmp_path, run=seeing, model=model) as h:
        await h.publish(0)
        worker = h.worker("anna", concurrent=1)
        with monkeypatch.context() as broken:
            broken.setattr(WorkerPictures, "get", gone)
            posed, running = asyncio.create_task(h.rollouts.rollout(h.task(0))), asyncio.create_task(worker.run())
            async with asyncio.timeout(60):
                while not worker.progress.given_back:
                    await asyncio.sleep(0.01)
        assert (await posed).outcome is Outcome.SCORED, "nobody was shut out"
        worker.drain()
        await running
        assert not worker.progress.refused


async def test_a_refusal_within_an_episode_gives_the_lease_back(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, refusals = ToolCalls.picture, [GatewayRefusal(RefusalReason.UNKNOWN_FILE, "cannot be read")]

    async def once_missing(self: ToolCalls, lease: SampleLease, sha256: str) -> tuple[bytes, str]:
        if refusals:
            raise refusals.pop()
        return await served(self, lease, sha256)

    monkeypatch.setattr(ToolCalls, "picture", once_missing)
    async with house(tmp_path, run=seeing, model=model) as h:
        await h.publish(0)
        worker = h.worker("anna", concurrent=1)
        (found,) = await played(h, [worker], [h.task(0)])
        assert found.outcome is Outcome.SCORED
        assert (worker.progress.given_back, worker.progress.refused) == (1, {"unknown_file": 1})
        counts = h.server.gateway.lease_table.counts()
        assert (counts["returned"], counts["expired"]) == (1, 0), "nobody waited for the lease to expire"


async def test_a_worker_that_cannot_keep_a_picture_gives_the_lease_back_before_it_ends(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: WorkerPictures, ref: ImageRef, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WorkerPictures, "_put", full)
    async with house(tmp_path, run=seeing, model=model) as h:
        await h.publish(0)
        posed = asyncio.create_task(h.rollouts.rollout(h.task(0)))
        with pytest.raises(WorkerError, match="cannot keep a picture"):
            await h.worker("anna", concurrent=1).run()
        assert h.server.gateway.lease_table.counts()["returned"] == 1
        posed.cancel()
        await asyncio.gather(posed, return_exceptions=True)


async def test_old_pictures_make_room_for_new_ones(scene: Scene, tmp_path: Path) -> None:
    lease = scene.house.server.gateway.lease_table._open[scene.grant.id]
    observation = next(c.answer.observation for c in lease.calls if c.name == "image_search")
    assert isinstance(observation, ImageSearchObservation)
    pictures = WorkerPictures(scene.client, tmp_path / "small", max_bytes=1)
    await pictures.bring(scene.grant.id, observation)
    assert not list((tmp_path / "small").glob("*/*"))


async def test_a_worker_that_does_not_know_pictures_is_told_at_once(tmp_path: Path, model: Path) -> None:
    async with house(tmp_path, run=seeing, model=model) as h, h.http(h.token("old")) as http:
        answer = (await http.get("/v1/run")).json()  # as workers did before there were pictures
        assert answer["reason"] == RefusalReason.SCOPE.value
        assert answer["detail"].startswith("the policy of this run sees pictures (protocol 3), this worker knows")
        assert (await http.get("/v1/run", params={"protocol": PROTOCOL})).json()["protocol"] == PROTOCOL


async def test_a_blind_run_speaks_as_before(tmp_path: Path) -> None:
    own = {"extends": "atlas", "name": "own", "max_turns": 4}
    run = lambda **gateway: rehearsal(**gateway).model_copy(update={"profile": read_profile(own)})  # noqa: E731
    async with house(tmp_path, run=run) as h, h.http(h.token("old")) as http:
        await h.publish(0)
        card = (await http.get("/v1/run")).json()
        assert card["protocol"] == BLIND_PROTOCOL and "observations" not in card["protocol_profile"]
        found = await play(h, "anna", 0)
        assert "media" not in found.ledger
        assert await found.push() == (200, "")
        assert (await found.answer).outcome is Outcome.SCORED
        await found.client.close()


async def test_a_probe_brings_its_pictures(tmp_path: Path, model: Path) -> None:
    async with house(tmp_path, run=seeing, model=model) as h:
        await h.publish(0)
        store = h.server.gateway.version_store
        data = noise(512, 512)
        span = MediaSpan(start=0, end=1, sha256=hashlib.sha256(data).hexdigest(), grid=(1, 2, 2))
        probe = Probe(token_ids=(1, 2), logprobs=(0.0,), media=(PromptImage(span=span, data=data),) * 3)
        store.put(str(store.get(0).folder), 1, probe)
        client = h.client(h.token("anna"))
        card = await client.weights(0, 5)
        assert card is not None and card.probe == probe and len(data) > 500_000
        await client.close()


def _own(tmp_path: Path, h: House, name: str, images: MemoryImages) -> Worker:
    own = OwnTools(PluginSpec(type=TOOLS).build(images).tools, images)
    token = h.token(name, Scope.ROLLOUT, Scope.OWN_TOOLS)
    config = WorkerConfig(concurrent=1, poll_seconds=0.5)
    return Worker(h.client(token), config, tmp_path / name, lambda c, m: start_engine(c, m, None), own)


async def test_pictures_of_a_trusted_workers_own_tools_are_shown_as_the_gateway_makes_them(
    tmp_path: Path, model: Path
) -> None:
    async with house(tmp_path, run=seeing, model=model, trust={"own_tools": True}) as h:
        await h.publish(0)
        (found,) = await played(h, [_own(tmp_path, h, "anna", MemoryImages())], [h.task(0)])
        assert found.outcome is Outcome.SCORED
        check_seen(found, h.images)
        assert {hit.image.sha256 for hit in found.images.values()} != {span.sha256 for span in found.ledger.media}


async def test_what_a_trusted_worker_states_about_shown_files_has_no_effect(tmp_path: Path, model: Path) -> None:
    async with house(tmp_path, run=seeing, model=model, trust={"own_tools": True}) as h:
        await h.publish(0)
        scene = await play(h, "anna", 0)
        other = h.client(h.token("ben", Scope.ROLLOUT, Scope.OWN_TOOLS))
        posed = asyncio.create_task(h.rollouts.rollout(h.task(1)))
        (grant,) = await other.lease(1, 10)
        images = MemoryImages()
        tool = PictureTools(NoConfig(), images).tools["image_search"]
        found = await tool.call({"query": "x"}, None)  # type: ignore[arg-type]
        assert isinstance(found, ImageSearchObservation)
        truth = h.requests.train(0).truth_image  # of the run's store, and uploaded by nobody
        claimed = [
            hit.model_copy(update={"image": await other.put_image(images.get(hit.image)), "shown": truth})
            for hit in found.hits
        ]
        claim = found.model_copy(update={"hits": tuple(claimed)})
        answer = await other.show(grant.id, ToolAnswer(observation=claim))
        assert isinstance(answer.observation, ImageSearchObservation)
        assert all(hit.shown not in (None, truth) for hit in answer.observation.hits)
        foreign = found.model_copy(update={"hits": (claimed[0].model_copy(update={"image": truth}),)})
        with pytest.raises(GatewayRefusal, match="was not uploaded"):
            await other.show(grant.id, ToolAnswer(observation=foreign))
        with pytest.raises(GatewayRefusal) as refused:
            await scene.client.show(scene.grant.id, answer)
        assert refused.value.reason is RefusalReason.SCOPE
        for task in (posed, scene.answer):
            task.cancel()
        await asyncio.gather(posed, scene.answer, return_exceptions=True)
        await other.close()


def grey(width: int, height: int) -> bytes:
    """Return a picture of the same size without anything in it."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "grey").save(buffer, "PNG")
    return buffer.getvalue()


async def test_the_gateway_scores_tokens_with_the_pictures_that_the_policy_saw(tmp_path: Path, model: Path) -> None:
    from genevolve_ray.engines.transformers import TransformersEngine

    chat, files = chat_of(model), (noise(96, 64), noise(64, 96))
    banned = load_banned(model, chat)
    grids = [chat.grid(96, 64), chat.grid(64, 96)]
    tokens, places = chat.observation("look <image> and <image>", ended=False, grids=grids)
    media = [
        PromptImage(span=MediaSpan(start=a, end=b, sha256=hashlib.sha256(f).hexdigest(), grid=grid), data=f)
        for (a, b), f, grid in zip(places, files, grids, strict=True)
    ]
    engine = TransformersEngine(model, banned=banned)
    sampled = await engine.generate(tokens, SamplingParams(temperature=0.7, max_tokens=12, seed=1), "r/0", media)
    await engine.close()
    run = seeing().model_copy(update={"rehearsal": None})
    scorer = build_scorer(run, model, frozenset(banned), chat.image_tokens)
    whole, mask = [*tokens, *sampled.tokens], [False] * len(tokens) + [True] * len(sampled.tokens)
    found = await scorer.score(model, whole, mask, 0.7, 1.0, media)
    assert found.logprobs == pytest.approx(sampled.logprobs, abs=1e-4)
    other = grey(96, 64)
    span = media[0].span.model_copy(update={"sha256": hashlib.sha256(other).hexdigest()})
    swapped = await scorer.score(model, whole, mask, 0.7, 1.0, [PromptImage(span=span, data=other), media[1]])
    assert max(abs(a - b) for a, b in zip(swapped.logprobs, sampled.logprobs, strict=True)) > 1e-3
    await scorer.close()
