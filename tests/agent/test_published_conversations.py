"""Conversations with a scripted chat endpoint and search service over HTTP, message for message as the published client's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import CHATML, SEARCH_IMAGES, answer, byte_tokenizer, call
from agent_fakes import play as play_script
from conversation_texts import FINAL_STEP, FORMAT_ERROR, SKILL, expected
from scripted_chat import ScriptedChat, serving_chat
from scripted_conversations import SCRIPTS, play_world
from web_world import World, serving_world

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.episode import run_episode
from genevolve_ray.agent.policy_session import ChatSession
from genevolve_ray.agent.profile import ProtocolProfile, prompt_messages
from genevolve_ray.agent.profile_source import read_profile
from genevolve_ray.engines.openai import OpenAIPolicy, OpenAIPolicyConfig
from genevolve_ray.engines.protocol import SamplingParams
from genevolve_ray.records.images import MemoryImages
from genevolve_ray.records.published.writers import agent_row
from genevolve_ray.records.request import EvalType, Request
from genevolve_ray.records.trajectory import SampleKey, Trajectory
from genevolve_ray.tools.web import WebTools, WebToolsConfig

SYSTEM = 'Draw well.\n<tools>\n{"name": "search"}\n</tools>\nProceed.\n'
REQUEST = Request(id="r1", prompt="a heron at dawn", eval_type=EvalType.KNOWLEDGE)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with serving_world() as served:
        play_world(served)
        yield served


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package laid out as the published one, with other words."""
    folder = tmp_path_factory.mktemp("copy") / "genevolve"
    (folder / "knowledge" / "skills").mkdir(parents=True)
    (folder / "knowledge" / "skills" / "quantity_counting.md").write_text(SKILL)
    (folder / "system_prompt.py").write_text(f"FINAL_STEP_MESSAGE = {FINAL_STEP!r}\nSYSTEM_PROMPT: str = {SYSTEM!r}\n")
    literal = f"<tool_response>\n{FORMAT_ERROR}\n</tool_response>"
    (folder / "agent.py").write_text(f"import nothing_of_this_name\n\ndef run():\n    return {literal!r}\n")
    return folder


def published(copy: Path, **changes: Any) -> ProtocolProfile:
    return read_profile({"extends": "release", "texts_from": str(copy), "answers": "published"} | changes)


def play(world: World, chat: ScriptedChat, profile: ProtocolProfile) -> Trajectory:
    """Play one conversation over both endpoints."""
    settings = {
        "serper": {"url": world.url, "token_env": "", "attempts": 1, "backoff_s": 0},
        "fetch": {"ports": [world.port], "allow": ["127.0.0.1/32"]},
        "on_outage": "report",
    }
    tools = WebTools(WebToolsConfig.model_validate(settings), MemoryImages()).tools

    async def run() -> Trajectory:
        policy = OpenAIPolicy(OpenAIPolicyConfig(url=chat.url, model="m"))
        assert profile.sampling is not None
        try:
            return await run_episode(
                REQUEST,
                key=SampleKey(step=0, request_id="r1", sample=0),
                session=ChatSession(policy, SamplingParams(**profile.sampling.model_dump())),
                tools=tools,
                profile=profile,
                seed=1,
                date="2026-05-10",
            )
        finally:
            await policy.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_conversation_is_the_published_one(name: str, world: World, copy: Path) -> None:
    profile = published(copy)
    with serving_chat(SCRIPTS[name]) as chat:
        trajectory = play(world, chat, profile)
    turns = [turn if isinstance(turn, str) else turn[0] for turn in SCRIPTS[name]]
    heard = expected(world.url)[name]
    wanted = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": REQUEST.prompt}]
    for turn, said in enumerate(turns):
        wanted += [{"role": "user", "content": heard[turn - 1]}] if turn else []
        wanted += [{"role": "user", "content": FINAL_STEP}] if turn == 10 else []
        wanted.append({"role": "assistant", "content": said.strip()})
    assert len(chat.asked) == len(turns)
    assert chat.asked[-1]["messages"] == wanted[:-1]
    row = agent_row({"id": "r1"}, trajectory, opening=wanted[:2])
    assert row["messages"] == wanted
    assert row["genevolve_ray"]["answers"] == "published"


@pytest.mark.parametrize(
    ("name", "termination"),
    [("no answer", "no_answer"), ("a call in the last turn", "max_rounds_reached"), ("the final step", "answer")],
)
def test_an_episode_ends_for_the_published_reason(name: str, termination: str, world: World, copy: Path) -> None:
    with serving_chat(SCRIPTS[name]) as chat:
        trajectory = play(world, chat, published(copy))
    assert (trajectory.termination.value, len(trajectory.turns)) == (termination, 11)


def test_each_request_samples_as_the_published_client(world: World, copy: Path) -> None:
    with serving_chat(SCRIPTS["image search"]) as chat:
        play(world, chat, published(copy))
    sent = {key: chat.asked[0][key] for key in ("temperature", "top_p", "max_tokens")}
    assert sent == {"temperature": 0.6, "top_p": 0.9, "max_tokens": 4096}


def test_references_are_sorted_and_cut_and_what_was_left_out_is_named(world: World, copy: Path) -> None:
    with serving_chat(SCRIPTS["an answer with more than is asked"]) as chat:
        trajectory = play(world, chat, published(copy))
    assert trajectory.program is not None
    assert trajectory.program.gen_prompt == "the second reference image"
    kept = [(reference.img_id, reference.note) for reference in trajectory.program.reference_images]
    assert kept == [("IMG_001", "one"), ("IMG_002", "two")]
    assert trajectory.turns[-1].error == "references left out (never returned: IMG_009; beyond 2: IMG_003)"


def test_strict_answers_are_final_and_a_failed_search_is_shown(world: World, copy: Path) -> None:
    strict = published(copy, answers="strict")
    with serving_chat(SCRIPTS["an answer with more than is asked"]) as chat:
        assert play(world, chat, strict).program is None
    with serving_chat(SCRIPTS["a failed image search"]) as chat:
        told = play(world, chat, strict)
    assert "--- image search error for [down]: service unavailable ---" in told.turns[0].observation
    assert told.provenance.answers == "strict"


def test_the_evaluation_prompt_ends_in_the_bare_date(world: World, copy: Path) -> None:
    with serving_chat(SCRIPTS["skills"]) as chat:
        trajectory = play(world, chat, published(copy, extends="paper-eval"))
    assert chat.asked[0]["messages"][0]["content"] == f"{SYSTEM} 2026-05-10"
    assert "=== Skill: quantity_counting ===\nUse number words.\n</tool_response>" in trajectory.turns[0].observation


async def test_the_ledger_holds_the_templates_own_tokens_of_the_final_step(tools: dict[str, Any]) -> None:
    chat = ChatFormat(byte_tokenizer(CHATML))
    roomy = {"max_prompt_tokens": 20_000, "max_response_tokens": 90_000, "max_turns": 3}
    profile = read_profile({"name": "roomy", **roomy})
    turns = [SEARCH_IMAGES, call("search", queries=["heron"]), answer()]
    trajectory = await play_script(turns, profile, tools, chat=chat)
    assert trajectory.turns[1].messages[1] == profile.messages.final_step
    row = agent_row({}, trajectory, opening=prompt_messages("a heron at dawn", profile, tools))
    assert [message["role"] for message in row["messages"]][-3:] == ["user", "user", "assistant"]
    before, last = row["messages"][:-1], trajectory.ledger.spans[-1].end
    context = chat.prompt_ids(before)
    assert trajectory.ledger.tokens[: len(context)] == context
    assert chat.decode(trajectory.ledger.tokens[len(context) : last]) == f"{turns[-1]}<|im_end|>"
    kinds = [span.kind.value for span in trajectory.ledger.spans]
    assert kinds.count("observation") == 2
