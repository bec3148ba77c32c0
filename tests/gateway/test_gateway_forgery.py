"""Each forgery is refused with its own reason, over a real server; the sample is then played by somebody honest."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_helpers import MODEL, House, house
from gateway_scene import Scene, chat_of, play

from genevolve_ray.gateway import launch
from genevolve_ray.gateway.auth import Scope
from genevolve_ray.gateway.logprobs import NullScorer, Scores
from genevolve_ray.gateway.reasons import FORGERIES, GatewayRefusal, RefusalReason
from genevolve_ray.gateway.wire import LeaseGrant, compress
from genevolve_ray.gateway.worker_engine import WorkerError
from genevolve_ray.records.ledger import SpanKind
from genevolve_ray.records.trajectory import Outcome

CHAT = chat_of(MODEL)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with house(tmp_path, limits={"body_mib": 0.25}) as h:
        await h.publish(3)
        found = await play(h, "mallory", 0)
        yield found
        found.answer.cancel()
        await asyncio.gather(found.answer, return_exceptions=True)
        await found.client.close()


async def test_the_honest_episode_is_accepted(scene: Scene) -> None:
    assert await scene.push() == (200, "")
    assert (await scene.answer).outcome is Outcome.SCORED


def _wrong_logprobs(s: Scene) -> None:
    for i in s.policy():
        s.ledger["logprobs"][i] -= 0.5


def _one_wrong_logprob(s: Scene) -> None:
    s.ledger["logprobs"][s.policy()[3]] += 0.06


def _shifted_mask(s: Scene) -> None:
    first = s.policy()[0]
    s.ledger["policy_mask"][first] = False


def _mask_over_observation(s: Scene) -> None:
    """Claims an observation as sampled, with log-probs and versions to match."""
    i = next(i for i in range(s.policy()[0], len(s.ledger["tokens"])) if not s.ledger["policy_mask"][i])
    s.ledger["policy_mask"][i], s.ledger["versions"][i] = True, 3


def _logprob_on_context(s: Scene) -> None:
    s.ledger["logprobs"][0] = -1.0


def _foreign_prompt(s: Scene) -> None:
    s.ledger["tokens"][5] += 1


def _foreign_observation(s: Scene) -> None:
    i = next(i for i in range(s.policy()[0], len(s.ledger["tokens"])) if not s.ledger["policy_mask"][i]) + 4
    s.ledger["tokens"][i] += 1


def _tail(s: Scene) -> None:
    for name, value in (("tokens", 7), ("policy_mask", False), ("logprobs", 0.0), ("versions", -1)):
        s.ledger[name].append(value)


def _out_of_range(s: Scene) -> None:
    s.ledger["tokens"][s.policy()[0]] = 1 << 20


def _negative(s: Scene) -> None:
    s.ledger["tokens"][s.policy()[0]] = -1


def _banned(s: Scene) -> None:
    s.ledger["tokens"][s.policy()[0]] = CHAT.tokenizer.convert_tokens_to_ids("<tool_response>")


def _positive_logprob(s: Scene) -> None:
    s.ledger["logprobs"][s.policy()[0]] = 0.5


def _future_version(s: Scene) -> None:
    s.ledger["versions"][s.policy()[0]] = 4


def _old_version(s: Scene) -> None:
    s.ledger["versions"][s.policy()[0]] = 2


def _cut_turn(s: Scene) -> None:
    """Ends the last turn before its stop token."""
    for name in ("tokens", "policy_mask", "logprobs", "versions"):
        s.ledger[name].pop()
    s.ledger["spans"][-1]["end"] -= 1


def _other_spans(s: Scene) -> None:
    span = next(x for x in s.ledger["spans"] if x["kind"] == SpanKind.THINK)
    span["kind"] = SpanKind.TEXT.value


def _reward(s: Scene) -> None:
    s.body["reward"] = {"total": 1.0}


def _outcome(s: Scene) -> None:
    s.body["outcome"] = "scored"


def _unknown_key(s: Scene) -> None:
    s.body["extra"] = 1


def _short_column(s: Scene) -> None:
    s.ledger["versions"].pop()


def _text_number(s: Scene) -> None:
    s.ledger["tokens"][0] = "1"


FORGED: list[tuple[Callable[[Scene], None], RefusalReason]] = [
    (_wrong_logprobs, RefusalReason.WRONG_LOGPROBS),
    (_one_wrong_logprob, RefusalReason.WRONG_LOGPROBS),
    (_shifted_mask, RefusalReason.SHIFTED_MASKS),
    (_mask_over_observation, RefusalReason.SHIFTED_MASKS),
    (_logprob_on_context, RefusalReason.SHIFTED_MASKS),
    (_foreign_prompt, RefusalReason.FOREIGN_TOKENS),
    (_foreign_observation, RefusalReason.FOREIGN_TOKENS),
    (_tail, RefusalReason.FOREIGN_TOKENS),
    (_out_of_range, RefusalReason.TOKEN_OUT_OF_RANGE),
    (_negative, RefusalReason.TOKEN_OUT_OF_RANGE),
    (_banned, RefusalReason.BANNED_TOKEN),
    (_positive_logprob, RefusalReason.BAD_LOGPROB),
    (_future_version, RefusalReason.VERSION_NOT_ISSUED),
    (_old_version, RefusalReason.VERSION_STALE),
    (_cut_turn, RefusalReason.BROKEN_TURN),
    (_other_spans, RefusalReason.SHIFTED_SPANS),
    (_reward, RefusalReason.REWARD_CLAIMED),
    (_outcome, RefusalReason.REWARD_CLAIMED),
    (_unknown_key, RefusalReason.MALFORMED),
    (_short_column, RefusalReason.MALFORMED),
    (_text_number, RefusalReason.MALFORMED),
]


@pytest.mark.parametrize(("forge", "reason"), FORGED, ids=[forge.__name__.strip("_") for forge, _ in FORGED])
async def test_a_forged_episode_is_refused(scene: Scene, forge: Callable[[Scene], None], reason: RefusalReason) -> None:
    forge(scene)
    status, found = await scene.push()
    assert (status, found) == (422, reason.value)
    assert not scene.answer.done()
    counts = scene.house.server.gateway.lease_table.counts()
    assert (counts["waiting"], counts["answered"]) == (1, 0)  # the sample waits for somebody honest
    assert scene.house.server.gateway.meters.refused[reason.value] == 1


@pytest.mark.parametrize(("forge", "reason"), [FORGED[0], FORGED[-1]], ids=["forged", "clumsy"])
async def test_a_forger_is_shut_out_with_the_evidence(
    scene: Scene, forge: Callable[[Scene], None], reason: RefusalReason
) -> None:
    forge(scene)
    await scene.push()
    files = list((scene.house.folder / "gateway" / "quarantine").glob("*.json"))
    if reason not in FORGERIES:
        assert not files and (await scene.client.run()).run
        return
    record = json.loads(files[0].read_text())
    assert (record["worker"], record["reason"]) == ("mallory", reason.value)
    assert record["pushed_logprobs"] != record["own_logprobs"]
    assert scene.token not in files[0].read_text()
    with pytest.raises(GatewayRefusal) as refused:
        await scene.client.run()
    assert refused.value.reason is RefusalReason.QUARANTINED


async def test_an_observation_that_never_went_through_the_gateway_is_refused(scene: Scene) -> None:
    gateway = scene.house.server.gateway
    next(iter(gateway.lease_table._open.values())).calls.clear()
    assert await scene.push() == (422, RefusalReason.INVENTED_OBSERVATION.value)


async def test_own_observations_need_the_scope(scene: Scene) -> None:
    call = {"name": "image_search", "arguments": {"query": "x"}, "answer": {"argument_error": "no"}}
    assert await scene.push({**scene.body, "own_calls": [call]}) == (403, RefusalReason.SCOPE.value)


class _Lukewarm(NullScorer):
    """Finds the log-probs right, and every token likelier than chance allows."""

    async def score(self, *arguments: Any) -> Scores:
        honest = await super().score(*arguments)
        n = len(honest.logprobs)
        return honest._replace(entropies=[h + 0.3 for h in honest.entropies], variances=[0.5] * n)


async def test_sampling_that_is_too_cold_is_refused_over_many_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "NullScorer", _Lukewarm)
    async with house(tmp_path, trust={"spot_check": 1.0, "calibration_tokens": 150}) as h:
        await h.publish(0)
        worker = h.worker("cold", concurrent=1)
        running = asyncio.create_task(worker.run())
        answers = [asyncio.create_task(h.rollouts.rollout(h.task(i))) for i in range(30)]
        with pytest.raises(WorkerError, match="quarantined"):
            await running
        assert worker.progress.refused[RefusalReason.MISCALIBRATED.value] == 1
        accepted = h.server.gateway.meters.accepted
        assert 0 < accepted == worker.progress.accepted < 30
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*answers, return_exceptions=True)


async def test_the_same_episode_twice_is_refused(scene: Scene) -> None:
    assert await scene.push() == (200, "")
    assert await scene.push() == (409, RefusalReason.REPLAYED.value)
    assert scene.house.server.gateway.meters.accepted == 1


async def test_another_workers_lease_is_refused_and_its_owner_may_still_answer(scene: Scene) -> None:
    thief = scene.house.token("thief")
    assert await scene.push(token=thief) == (403, RefusalReason.OTHERS_LEASE.value)
    assert await scene.push() == (200, "")


async def test_an_unknown_lease_is_refused(scene: Scene) -> None:
    assert await scene.push(lease="x" * 22) == (404, RefusalReason.UNKNOWN_LEASE.value)


async def test_a_lease_given_back_is_refused(scene: Scene) -> None:
    await scene.client.give_back(scene.grant.id)
    assert await scene.push() == (410, RefusalReason.WITHDRAWN.value)


async def test_a_sample_that_is_no_longer_wanted_is_refused(scene: Scene) -> None:
    scene.answer.cancel()
    await asyncio.gather(scene.answer, return_exceptions=True)
    assert await scene.push() == (410, RefusalReason.WITHDRAWN.value)


async def test_an_expired_lease_is_refused_and_given_to_another(tmp_path: Path) -> None:
    async with house(tmp_path, lease_seconds=0.4) as h:
        await h.publish(0)
        late = await play(h, "late", 0)
        other = h.client(h.token("other"))
        (again,) = await other.lease(1, 10)  # waits until the first lease has expired
        assert again.id != late.grant.id and again.seed == late.grant.seed
        assert await late.push() == (410, RefusalReason.LEASE_EXPIRED.value)
        late.answer.cancel()
        await asyncio.gather(late.answer, return_exceptions=True)


async def test_an_oversized_body_is_refused_however_it_comes(scene: Scene) -> None:
    big = json.dumps({**scene.body, "padding": "x" * (300 << 10)}).encode()
    assert await scene.push(big) == (413, RefusalReason.OVERSIZED.value)

    async def chunks() -> AsyncIterator[bytes]:  # without an announced length
        for start in range(0, len(big), 1 << 15):
            yield big[start : start + (1 << 15)]

    path = f"/v1/leases/{scene.grant.id}/trajectory"
    async with scene.house.http(scene.token) as http:
        answer = await http.post(path, content=chunks())
        assert (answer.status_code, answer.json()["reason"]) == (413, "oversized")
        bomb = compress(b" " * (64 << 20))
        assert len(bomb) < 1 << 16
        answer = await http.post(path, content=bomb, headers={"Content-Encoding": "zstd"})
        assert (answer.status_code, answer.json()["reason"]) == (413, "oversized")
    assert await scene.push() == (200, "")


async def test_without_a_token_and_with_a_wrong_or_expired_one_nothing_is_said(scene: Scene) -> None:
    expired = scene.house.token("old", lifetime=-1.0)
    assert await scene.push(token="") == (401, RefusalReason.NO_TOKEN.value)
    assert await scene.push(token="gvr_" + "x" * 43) == (401, RefusalReason.BAD_TOKEN.value)
    assert await scene.push(token=expired) == (401, RefusalReason.TOKEN_EXPIRED.value)
    scene.house.tokens.revoke("mallory")
    assert await scene.push() == (401, RefusalReason.BAD_TOKEN.value)


async def test_a_token_for_status_may_not_roll_out(scene: Scene) -> None:
    monitor = scene.house.token("watcher", Scope.STATUS)
    assert await scene.push(token=monitor) == (403, RefusalReason.SCOPE.value)


async def test_a_worker_in_a_hurry_is_told_to_slow_down(tmp_path: Path) -> None:
    async with house(tmp_path, limits={"requests_per_second": 0.5, "burst": 3}) as h, h.http(h.token("a")) as http:
        answers = [await http.get("/v1/run") for _ in range(4)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429]
        assert answers[-1].json()["reason"] == RefusalReason.RATE_LIMITED.value


async def test_a_tool_call_is_carried_out_once_and_in_order(scene: Scene) -> None:
    async with scene.house.http(scene.token) as http:
        path = f"/v1/leases/{scene.grant.id}/tools"
        known = scene.house.server.gateway.lease_table._open[scene.grant.id].calls[0]
        same = {"index": 0, "name": known.name, "arguments": known.arguments}
        assert (await http.post(path, json=same)).json()["observation"] is not None
        other = {**same, "arguments": {"query": "something else"}}
        assert (await http.post(path, json=other)).json()["reason"] == RefusalReason.CALL_ORDER.value
        assert (await http.post(path, json={**same, "index": 5})).json()["reason"] == RefusalReason.CALL_ORDER.value


async def test_bombs_of_a_token_hold_nobody_up(tmp_path: Path) -> None:
    slow: list[float] = []
    bombs = [b'{"ledger": [' + b"{}," * (3 << 20) + b"0]}", b"[" + b"0," * (5 << 20) + b"0]", b" " * (11 << 20)]

    async def health(h: House, done: asyncio.Event) -> None:
        async with h.http() as http:
            while not done.is_set():
                began = time.monotonic()
                assert (await http.get("/healthz")).text == "ok"
                slow.append(time.monotonic() - began)

    async with house(tmp_path) as h, h.http(token := h.token("mallory")) as http:
        await h.publish(0)
        posed = [asyncio.create_task(h.rollouts.rollout(h.task(i))) for i in range(3)]
        grants: list[LeaseGrant] = []
        while len(grants) < 3:
            grants += await h.client(token).lease(3, 10)
        watching = asyncio.create_task(health(h, done := asyncio.Event()))
        for bomb, grant in zip(bombs, grants, strict=True):
            packed = compress(bomb)
            assert len(packed) < 3000
            for path in ("/v1/leases", f"/v1/leases/{grant.id}/tools", f"/v1/leases/{grant.id}/trajectory"):
                answer = await http.post(path, content=packed, headers={"Content-Encoding": "zstd"})
                assert answer.status_code in (413, 422), (path, answer.text)
        done.set()
        await watching
        for task in posed:
            task.cancel()
        await asyncio.gather(*posed, return_exceptions=True)
    assert max(slow) < 0.5


async def test_a_token_has_so_many_bytes_a_second(tmp_path: Path) -> None:
    limits = {"mib_per_second": 0.01, "burst_mib": 1.0, "body_mib": 0.25}
    async with house(tmp_path, limits=limits) as h:
        await h.publish(0)
        scene = await play(h, "mallory", 0)
        async with h.http(scene.token) as http:
            path = f"/v1/leases/{scene.grant.id}/tools"
            answers = [await http.post(path, content=b" " * (250 << 10)) for _ in range(5)]
        assert [a.json()["reason"] for a in answers] == ["malformed"] * 4 + ["rate_limited"]
        scene.answer.cancel()
        await asyncio.gather(scene.answer, return_exceptions=True)


async def test_a_tool_call_goes_on_without_its_client_and_is_not_made_again(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.publish(0)
        scene = await play(h, "anna", 0)
        gateway, made, finish = h.server.gateway, 0, threading.Event()
        lease = gateway.lease_table._open[scene.grant.id]
        first = lease.calls.pop()

        async def slow(*arguments: Any) -> Any:
            nonlocal made
            made += 1
            await asyncio.to_thread(finish.wait, 10)
            return first.answer.observation

        gateway.tool_calls._call_tool = slow
        path = f"/v1/leases/{scene.grant.id}/tools"
        order = {"index": 0, "name": first.name, "arguments": first.arguments}
        async with h.http(scene.token) as http:
            for _ in range(3):
                with pytest.raises(httpx.ReadTimeout):
                    await http.post(path, json=order, timeout=0.3)
            other = await http.post(path, json={**order, "arguments": {"query": "other"}})
            assert other.json()["reason"] == RefusalReason.CALL_ORDER.value
            finish.set()
            assert (await http.post(path, json=order)).json()["observation"] is not None
        assert made == 1
        assert await scene.push() == (200, "")
