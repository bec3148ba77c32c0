"""Models that refuse a field of a request: settings leave it out, and the refusal names the setting."""

from __future__ import annotations

from typing import Any

import pytest
from scripted_server import Call, Reply, serving

from genevolve_ray.bench.wise_endpoint import WiseJudgeConfig
from genevolve_ray.doctor.probes import probe_services
from genevolve_ray.doctor.settings_tree import ConfiguredService
from genevolve_ray.engines.chat_endpoint import EndpointChat, EndpointChatConfig, text_message
from genevolve_ray.engines.openai import OpenAIPolicy, OpenAIPolicyConfig
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.judges.endpoint_judge import EndpointJudge, EndpointJudgeConfig
from genevolve_ray.remote.client import ServiceRefusal

ANSWER = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}


def refusing(*fields: str) -> Any:
    """Answer a chat, unless the request has one of these fields."""

    def script(_: int, call: Call) -> Reply:
        found = [field for field in fields if call.data and field in call.body]
        if found:
            message = f"Unsupported value: '{found[0]}' does not support this with this model."
            return Reply({"error": {"message": message, "type": "invalid_request_error", "param": found[0]}}, 400)
        return Reply(ANSWER)

    return script


async def ask(url: str, **settings: Any) -> str:
    chat = EndpointChat(EndpointChatConfig(url=url, model="m", attempts=1, **settings), "judge")
    return await chat.chat([text_message("user", "Say yes.")], max_tokens=5)


async def reply(url: str, **settings: Any) -> str:
    policy = OpenAIPolicy(OpenAIPolicyConfig(url=url, model="m", attempts=1, **settings))
    sampling = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=5, seed=1)
    return (await policy.reply([{"role": "user", "content": "x"}], sampling)).text


async def test_a_judge_without_temperature() -> None:
    with serving(refusing("temperature")) as server:
        assert await ask(server.url, send_temperature=False) == "yes"
        with pytest.raises(ServiceRefusal, match=r"\(send_temperature: false leaves it out\)") as caught:
            await ask(server.url)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("field", "setting", "hint"),
    [
        ("temperature", {"send_temperature": False}, "send_temperature: false"),
        ("top_p", {"send_top_p": False}, "send_top_p: false"),
        ("seed", {"send_seed": False}, "send_seed: false"),
        ("max_tokens", {"tokens_field": "max_completion_tokens"}, "tokens_field: max_completion_tokens"),
    ],
)
async def test_a_policy_without_a_field(field: str, setting: dict[str, Any], hint: str) -> None:
    with serving(refusing(field)) as server:
        assert await reply(server.url, **setting) == "yes"
        with pytest.raises(ServiceRefusal, match=hint):
            await reply(server.url)


async def test_by_default_every_field_is_sent() -> None:
    with serving(refusing()) as server:
        await reply(server.url)
        await ask(server.url)
    assert {"temperature", "top_p", "seed", "max_tokens"} <= server.calls[0].body.keys()
    assert server.calls[1].body["temperature"] == 0


@pytest.mark.parametrize("send", [True, False])
async def test_the_probe_of_the_doctor_uses_the_settings(send: bool) -> None:
    with serving(refusing("temperature")) as server:
        config = EndpointChatConfig(url=server.url, model="m", send_temperature=send)
        service = ConfiguredService("judge", "judge.config.kscore", config)
        found = await probe_services([service], set(), spend=True)
    last = found[-1]
    assert last.status == ("problem" if send else "ok")
    if send:
        assert last.remedy == "judge.config.kscore: send_temperature: false leaves it out"


async def test_a_variable_in_extra_body_is_sent_by_value_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "value-of-my-key")

    def echo(_: int, call: Call) -> Reply:
        return Reply(call.data, 400)

    with serving(echo) as server, pytest.raises(ServiceRefusal) as caught:
        await ask(server.url, extra_body={"api_key": "${MY_KEY}"})
    assert server.calls[0].body["api_key"] == "value-of-my-key"
    assert "value-of-my-key" not in str(caught.value)
    monkeypatch.delenv("MY_KEY")
    with serving(echo) as server, pytest.raises(ServiceRefusal, match="MY_KEY is not set"):
        await ask(server.url, extra_body={"api_key": "${MY_KEY}"})


async def test_a_token_in_an_answer_does_not_reach_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "token-of-the-judge")

    def echo(_: int, call: Call) -> Reply:
        said = f"your header was {call.headers['Authorization']}"
        return Reply({"choices": [{"message": {"content": said}}]})

    with serving(echo) as server:
        assert await ask(server.url, token_env="JUDGE_TOKEN") == "your header was Bearer ***"


def test_a_judge_keeps_its_identity_unless_the_setting_is_used() -> None:
    def identity(**settings: Any) -> str:
        kscore = EndpointChatConfig(url="http://h/v1", model="m", **settings)
        return EndpointJudge(EndpointJudgeConfig(kscore=kscore)).identity

    assert identity() == identity(send_temperature=True) != identity(send_temperature=False)
    one, other = ({"extra_body": {"api_key": key}} for key in ("one", "other"))
    assert identity(**one) == identity(**other)
    assert WiseJudgeConfig(url="http://h/v1", model="m").send_temperature
