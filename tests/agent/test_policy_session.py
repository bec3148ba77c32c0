"""A policy behind a chat endpoint plays the very episode that an engine plays, and leaves nothing to train on."""

from __future__ import annotations

from typing import Any

import pytest
from fake_sources import FakeSource
from played_world import World, answer, playing, turn

from genevolve_ray.agent.episode import run_episode
from genevolve_ray.agent.policy_session import ChatSession
from genevolve_ray.agent.profile import PROFILES
from genevolve_ray.engines.openai import OpenAIPolicy, OpenAIPolicyConfig, read_reply
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.evolution.learner import trained_trajectories
from genevolve_ray.records.images import reference
from genevolve_ray.records.observation import ImageHit, TextHit
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import Group, Outcome, SampleKey, Termination, Trajectory
from genevolve_ray.records.usage import metered
from genevolve_ray.remote.client import Unusable
from genevolve_ray.tools.image_search import ImageSearchTool
from genevolve_ray.tools.search import SearchTool

RELEASE = PROFILES["release"]
SAMPLING = SamplingParams(temperature=0.3, top_p=0.9)


def tools() -> dict[str, Any]:
    hit = ImageHit(title="heron", url="https://x.org/1.png", image=reference(b"heron", width=8, height=8))
    listed = (
        SearchTool(FakeSource([TextHit(title="Heron", url="u", snippet="wades")])),
        ImageSearchTool(FakeSource([hit])),
    )
    return {tool.name: tool for tool in listed}


async def play(world: World, profile: Any = RELEASE, **settings: Any) -> Trajectory:
    config = OpenAIPolicyConfig(url=f"{world.url}/v1", model="m", attempts=2, backoff_s=0.0, **settings)
    policy = OpenAIPolicy(config)
    try:
        return await run_episode(
            Request(id="r1", prompt="a heron", eval_type=EvalType.KNOWLEDGE),
            key=SampleKey(step=0, request_id="r1", sample=0),
            session=ChatSession(policy, SAMPLING),
            tools=tools(),
            profile=profile,
            seed=5,
        )
    finally:
        await policy.aclose()


def agent(messages: list[dict[str, str]]) -> str:
    """Search, search pictures, answer: one turn for each message it has heard."""
    turns = [turn("search", queries=["heron"]), turn("image_search", query="heron"), answer()]
    return turns[sum(m["role"] == "user" for m in messages) - 1]


async def test_the_protocol_is_messages_with_tools_in_the_system_prompt_and_observations_from_the_user() -> None:
    with playing(World(script=agent)) as world, metered() as meter:
        trajectory = await play(world)
    assert (trajectory.outcome, trajectory.termination) == (Outcome.PENDING, Termination.ANSWER)
    assert trajectory.program is not None and trajectory.provenance.engine == "openai:m"
    bodies = [body for _, body in world.bodies]
    last = bodies[-1]["messages"]
    assert [m["role"] for m in last] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert '"name": "image_search"' in last[0]["content"]
    assert all(m["content"].startswith("<tool_response>\n") for m in last[3::2])
    assert [m["content"] for m in last[2::2]] == [t.text for t in trajectory.turns[:2]]
    assert {(b["temperature"], b["top_p"], b["max_tokens"]) for b in bodies} == {(0.3, 0.9, RELEASE.max_turn_tokens)}
    assert len({b["seed"] for b in bodies}) == 3
    assert "tools" not in last and bodies[0].keys() == {
        "model",
        "messages",
        "temperature",
        "top_p",
        "max_tokens",
        "seed",
    }
    used = meter.by_service["policy"]
    assert (used.calls, used.failed_calls) == (3, 0) and used.prompt_tokens > used.completion_tokens > 0


async def test_the_learner_refuses_what_has_no_tokens() -> None:
    with playing(World(script=agent)) as world:
        trajectories = [await play(world), await play(world)]
    for trajectory in trajectories:
        assert not trajectory.has_tokens
        trajectory.outcome = Outcome.POLICY_FAILURE
    with pytest.raises(ValueError, match="openai:m has no tokens and no log-probs"):
        trained_trajectories([Group("r1", 0, trajectories)])


async def test_an_endpoint_that_gives_up_is_an_infrastructure_failure() -> None:
    with playing(World(fault=lambda service, body: 503)) as world:
        trajectory = await play(world)
    assert trajectory.outcome is Outcome.INFRA_FAILURE
    assert "policy:" in trajectory.reason and "gave up after 2 tries" in trajectory.reason
    assert world.calls["chat"] == 2


async def test_limits_hold_by_the_tokens_that_the_endpoint_counts() -> None:
    tight = RELEASE.model_copy(update={"max_prompt_tokens": 50})
    with playing(World(script=agent)) as world:
        long = await play(world, tight)
    assert (long.outcome, long.turns, long.repeatable) == (Outcome.INFRA_FAILURE, [], False)
    assert "tokens, limit 50" in long.reason
    short = RELEASE.model_copy(update={"max_response_tokens": 60, "max_turn_tokens": 60})
    with playing(World(script=agent)) as world:
        spent = await play(world, short)
    assert (spent.outcome, spent.termination) == (Outcome.POLICY_FAILURE, Termination.NO_ANSWER)


FULL = "This model's maximum context length is 50 tokens"


@pytest.mark.parametrize(
    ("reason", "outcome", "asked"),
    [(FULL, Outcome.POLICY_FAILURE, 3), ("no such model", Outcome.INFRA_FAILURE, 2)],
)
async def test_a_full_context_after_the_first_turn_is_the_policys_spending(
    reason: str, outcome: Outcome, asked: int
) -> None:
    """Where the server speaks of its context it is asked once more, without a wish for room."""
    world = World(script=agent, fault=lambda service, body: 400 * (len(body["messages"]) > 2), reason=reason)
    with playing(world):
        trajectory = await play(world)
    assert (trajectory.outcome, world.calls["chat"]) == (outcome, asked)
    assert reason in trajectory.reason


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "<answer>{}</answer>"}, "<answer>{}</answer>"),
        ({"content": "\n\n<answer>x", "reasoning_content": " why \n"}, "<think>why</think>\n<answer>x"),
        ({"content": "why</think>\n<answer>x"}, "<think>why</think>\n<answer>x"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": None}, ""),
    ],
)
def test_a_turn_is_read_with_its_thinking(message: dict[str, Any], text: str) -> None:
    assert read_reply({"choices": [{"message": message}]}).text == text


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{"message": None}]}, {"choices": [3]}])
def test_an_answer_without_a_message_is_of_no_use(answer: dict[str, Any]) -> None:
    with pytest.raises(Unusable):
        read_reply(answer)
