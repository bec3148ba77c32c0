"""Chat models behind the chat contract: our own judge as client, and requests that no greedy model can serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import Talker, data_url, png, serving
from tiny_vlm import ANSWER, build_vlm, teach
from vlm_judge_helpers import judged

from genevolve_ray.engines.protocol import ChatImage, CutAnswer, PromptTooLong
from genevolve_ray.errors import InfraFailure
from genevolve_ray.judges.endpoint_judge import EndpointJudge, EndpointJudgeConfig
from genevolve_ray.judges.local_judge import LocalVlmJudge, LocalVlmJudgeConfig
from genevolve_ray.records.usage import metered
from genevolve_ray.serving.access import Access
from genevolve_ray.serving.chat import ChatDoor
from genevolve_ray.serving.door import DoorLimits

OPEN = Access()
RUBRIC = "Grade it."
HELLO = [{"role": "user", "content": "hello"}]


async def post(talker: Talker, body: dict[str, Any]) -> httpx.Response:
    async with serving(ChatDoor([talker], OPEN, DoorLimits())) as url, httpx.AsyncClient(base_url=url) as http:
        return await http.post("/v1/chat/completions", content=json.dumps({"model": talker.identity, **body}))


async def test_our_judge_over_http_gives_the_verdict_of_the_same_model_in_process(tmp_path: Path) -> None:
    folder = teach(build_vlm(tmp_path / "vlm"))
    rubrics = {"kscore_rubric": f"{__name__}:RUBRIC", "sufficiency_rubric": f"{__name__}:RUBRIC", "max_tokens": 64}
    settings = {"backend": "transformers", "model": {"model": folder, "threads": 1}, **rubrics}
    local = LocalVlmJudge(LocalVlmJudgeConfig.model_validate(settings))
    expected = await judged(local)
    async with serving(ChatDoor(local.chat_models(), OPEN, DoorLimits())) as url:
        [model] = local.chat_models()
        there = {"url": f"{url}/v1", "model": model.identity, "attempts": 1}
        judge = EndpointJudge(EndpointJudgeConfig.model_validate({"kscore": there, **rubrics}))
        with metered() as meter:
            verdict = await judged(judge)
        await judge.aclose()
    assert (verdict.image, verdict.text, verdict.rationale) == (expected.image, expected.text, expected.rationale)
    used = meter.by_service["judge"]
    assert used.completion_tokens == 2 * (len(ANSWER) + 4)
    assert used.failed_calls == 2, "the schema was refused, and the calls were repeated without it"


async def test_a_conversation_arrives_whole_and_its_end_is_reported() -> None:
    talker = Talker(answer=CutAnswer("beg"))
    content = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": data_url(png())}}]
    schema = {"type": "object"}
    answer = await post(
        talker,
        {
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}],
            "temperature": 0.0,
            "max_tokens": 7,
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        },
    )
    [(messages, tokens, given)] = talker.calls
    assert [message.role for message in messages] == ["system", "user"]
    text, picture = messages[1].parts
    assert (text, tokens, given) == ("look", 7, schema)
    assert isinstance(picture, ChatImage) and picture.media_type == "image/png"
    [choice] = answer.json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("beg", "length")


async def test_the_models_are_listed() -> None:
    async with serving(ChatDoor([Talker()], OPEN, DoorLimits())) as url, httpx.AsyncClient(base_url=url) as http:
        listed = (await http.get("/v1/models")).json()
        health = await http.get("/health")
    assert [model["id"] for model in listed["data"]] == ["talker:float32"]
    assert health.status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"model": "other", "messages": HELLO}, 404, "model_not_found", "model"),
        ({"messages": HELLO, "temperature": 0.7}, 400, "unsupported_value", "temperature"),
        ({"messages": HELLO, "n": 2}, 400, "unsupported_value", "n"),
        ({"messages": HELLO, "stream": True}, 400, "unsupported_value", "stream"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, 400, "unsupported_value", "tools"),
        ({"messages": HELLO, "chat_template_kwargs": {"x": 1}}, 400, "unsupported_value", "chat_template_kwargs"),
        ({"messages": HELLO, "guided_json": {}}, 400, "unsupported_parameter", "guided_json"),
        ({"messages": HELLO, "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ({"messages": HELLO, "response_format": {"type": "json_object"}}, 400, "unsupported_value", "response_format"),
        ({"messages": []}, 400, "invalid_value", "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "invalid_value", "messages[0]"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, 400, "invalid_value", "messages[0]"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "invalid_json", None),
        ({"messages": HELLO, "\ud800": 1}, 400, "invalid_json", None),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            400,
            "invalid_value",
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}]},
            400,
            "unsupported_address",
            "messages[0].content[0]",
        ),
    ],
)
async def test_what_is_not_served_is_refused_by_name(
    body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    answer = await post(Talker(), body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error" and error["message"]


async def test_fields_without_an_effect_on_a_greedy_answer_are_taken() -> None:
    answer = await post(
        Talker(), {"messages": HELLO, "top_p": 0.9, "seed": 3, "n": 1, "stream": False, "chat_template_kwargs": {}}
    )
    assert answer.status_code == 200


async def test_errors_of_the_model_have_a_status_that_says_whether_another_try_helps() -> None:
    talker = Talker()
    talker.error = InfraFailure("the engine died")
    assert (await post(talker, {"messages": HELLO})).status_code == 502
    talker.error = InfraFailure("too long")
    talker.error.__cause__ = PromptTooLong("9 tokens")
    answer = await post(talker, {"messages": HELLO})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_text_model_refuses_pictures_and_schemas_that_it_cannot_follow() -> None:
    talker = Talker()
    talker.sees, talker.constrained = False, False  # type: ignore[attr-defined]
    picture = {"type": "image_url", "image_url": {"url": data_url(png())}}
    answer = await post(talker, {"messages": [{"role": "user", "content": [picture]}]})
    assert answer.json()["error"]["code"] == "no_vision"
    held = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}
    answer = await post(talker, {"messages": HELLO, "response_format": held})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_parameter")
    assert json.loads(answer.content)["error"]["param"] == "response_format"
