"""A reward over HTTP, against real servers that are good, wrong or away."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError
from scripted_server import Reply, in_turn, serving
from vlm_judge_helpers import IMAGE, PROGRAM, REQUEST, TRUTH, png

from genevolve_ray.contracts.judge import check_judge
from genevolve_ray.errors import InfraFailure
from genevolve_ray.judges.http_reward import HttpReward, HttpRewardConfig
from genevolve_ray.judges.protocol import declared_components, gives_kscore, needs_truth
from genevolve_ray.records.components import ComponentRange, OpenVerdict
from genevolve_ray.records.usage import metered

TWO = {"overlap": {"high": 10}, "style": {"sometimes": True}}


def reward_of(url: str, **settings: Any) -> HttpReward:
    transport = {"url": url, "attempts": 2, "backoff_s": 0, "timeout_s": 10}
    return HttpReward(HttpRewardConfig.model_validate(transport | settings))


async def asked(judge: HttpReward, image: bytes = IMAGE) -> OpenVerdict:
    try:
        return await judge.judge(REQUEST, image, TRUTH, PROGRAM, [])
    finally:
        await judge.aclose()


async def test_a_row_goes_out_and_a_bare_number_comes_back() -> None:
    with serving(in_turn(Reply({"rewards": [0.25]}))) as server, metered() as meter:
        judge = reward_of(server.url, long_side=28)
        verdict = await asked(judge)
    assert (verdict.components["reward"].value, verdict.judge, verdict.flags) == (0.25, judge.identity, ())
    [call] = server.calls
    [row] = call.body["rows"]
    assert (call.path, row["id"], row["prompt"]) == ("/v1/reward", REQUEST.id, REQUEST.prompt)
    assert row["program"]["gen_prompt"] == PROGRAM.gen_prompt and "truth" not in row
    assert Image.open(io.BytesIO(base64.b64decode(row["image"]))).size == (28, 21)
    assert meter.by_service["judge"].calls == 1


async def test_named_numbers_have_their_ranges_and_reasons() -> None:
    reward = {"overlap": {"value": 7, "rationale": "seven words"}, "more": 3}
    with serving(in_turn(Reply({"rewards": [reward]}))) as server:
        judge = reward_of(server.url, components=TWO, send_truth=True)
        verdict = await asked(judge)
    assert list(verdict.components) == ["overlap"]
    assert (verdict.components["overlap"].scaled, verdict.components["overlap"].rationale) == (0.7, "seven words")
    assert "truth" in server.calls[0].body["rows"][0]
    assert needs_truth(judge) and needs_truth(HttpReward, judge.config)
    assert declared_components(judge) == {"overlap": ComponentRange(high=10), "style": ComponentRange(sometimes=True)}


async def test_a_number_outside_its_range_is_clipped_and_flagged_or_refused() -> None:
    with serving(in_turn(Reply({"rewards": [7]}))) as server:
        verdict = await asked(reward_of(server.url))
        assert (verdict.components["reward"].value, verdict.flags) == (1.0, ("clipped:reward",))
        with pytest.raises(InfraFailure, match=r"reward=7 is outside \[0, 1\]"):
            await asked(reward_of(server.url, out_of_range="refuse"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"rewards": [0.1, 0.2]}, "with one reward is expected"),
        ({"rewards": []}, "with one reward is expected"),
        ([0.1], "not a JSON object but list"),
        (b"nonsense", "not JSON"),
        ({"rewards": [0.5]}, "a bare number, but overlap, style are expected"),
        ({"rewards": [{"style": 1}]}, "no overlap in the reward"),
        ({"rewards": [{"overlap": True}]}, "overlap is no finite number"),
        (b'{"rewards": [{"overlap": NaN}]}', "overlap is no finite number"),
        ({"rewards": [{"overlap": 10**400}]}, "unexpected content: OverflowError"),
        ({"rewards": [{"overlap": "0.5"}]}, "overlap is no finite number"),
        (b" " * 3000 + b'{"rewards": [{"overlap": 1}]}', "answer is longer than 2048 bytes"),
    ],
)
async def test_an_answer_that_is_no_reward_is_asked_again_and_never_becomes_a_number(body: Any, said: str) -> None:
    with serving(in_turn(Reply(body))) as server:
        with pytest.raises(InfraFailure, match=said):
            await asked(reward_of(server.url, components=TWO, max_answer_bytes=2048))
        assert len(server.calls) == 2
    with serving(in_turn(Reply(body), Reply({"rewards": [{"overlap": 5}]}))) as server:
        verdict = await asked(reward_of(server.url, components=TWO, max_answer_bytes=2048))
        assert verdict.components["overlap"].scaled == 0.5


async def test_it_keeps_the_contract_of_a_judge() -> None:
    with serving(in_turn(Reply({"rewards": [0.5]}))) as server:
        judge = reward_of(server.url)
        await check_judge(judge)
        await judge.aclose()


def test_a_number_by_the_name_of_the_kscore_is_none() -> None:
    judge = reward_of("http://a:1", components={"kscore": {}})
    assert not gives_kscore(judge) and not gives_kscore(HttpReward, judge.config)


def test_the_identity_has_no_host_and_settings_that_cannot_be_are_refused() -> None:
    one, other = reward_of("http://a:1"), reward_of("http://b:2", attempts=4)
    assert one.identity == other.identity != reward_of("http://a:1", long_side=64).identity
    assert reward_of("http://a:1", components=TWO).identity != one.identity
    for wrong in ({"a.b": {}}, {"a": {"low": 1, "high": 1}}, {}):
        with pytest.raises(ValidationError):
            reward_of("http://a:1", components=wrong)


async def test_a_picture_that_cannot_be_read_is_not_sent() -> None:
    with serving(in_turn(Reply({"rewards": [0.5]}))) as server:
        with pytest.raises(InfraFailure, match="cannot read the image of case-7"):
            await asked(reward_of(server.url), image=png("red")[:40])
        assert not server.calls
