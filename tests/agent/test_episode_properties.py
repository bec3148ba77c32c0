"""Whatever the policy emits, the episode ends in a typed outcome and its ledger holds together."""

from __future__ import annotations

import asyncio

from agent_fakes import CHATML, SEARCH_IMAGES, ScriptedEngine, answer, byte_tokenizer, call, image_hit, play
from fake_sources import FakeSource
from hypothesis import given, settings
from hypothesis import strategies as st

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.profile import PROFILES, ProtocolProfile
from genevolve_ray.records.ledger import SpanKind
from genevolve_ray.records.observation import TextHit
from genevolve_ray.records.trajectory import Outcome, Termination
from genevolve_ray.tools.image_search import ImageSearchTool
from genevolve_ray.tools.knowledge import KnowledgeTool
from genevolve_ray.tools.search import SearchTool

CHAT = ChatFormat(byte_tokenizer(CHATML))
VOCABULARY = 259
WHOLE = [call("search", queries=["a"]), SEARCH_IMAGES, call("query_knowledge", skill_name="s"), answer()]
PIECES = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<answer>",
    "</answer>",
    '{"name": "search"',
    "}",
    '"\\ud800"',
]
soup = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=8).map(lambda parts: "".join(parts))
turns = st.lists(
    st.sampled_from(WHOLE)
    | soup.map(lambda s: s.encode(errors="replace").decode())
    | st.lists(st.integers(0, VOCABULARY - 1)),
    min_size=1,
    max_size=7,
)
profiles = st.builds(
    lambda turns, calls, response, turn: ProtocolProfile.model_validate(
        PROFILES["atlas"].model_dump()
        | {
            "max_turns": turns,
            "max_tool_calls": calls,
            "max_response_tokens": response,
            "max_turn_tokens": min(turn, response),
        }
    ),
    st.integers(2, 6),
    st.integers(1, 4),
    st.integers(1, 2500),
    st.integers(1, 400),
)


@settings(max_examples=150)
@given(turns, profiles, st.text(max_size=20))
def test_any_policy_gives_a_typed_outcome_and_a_sound_ledger(
    script: list[str | list[int]], profile: ProtocolProfile, foreign: str
) -> None:
    tools = {
        "search": SearchTool(FakeSource([TextHit(title=foreign, url=foreign, snippet=foreign)])),
        "image_search": ImageSearchTool(FakeSource([image_hit("heron", foreign)])),
        "query_knowledge": KnowledgeTool({"s": f"# S\n## In short\n{foreign}\n"}),
    }
    engine = ScriptedEngine(CHAT, script)
    trajectory = asyncio.run(play([], profile, tools, chat=CHAT, engine=engine))
    assert trajectory.outcome in (Outcome.PENDING, Outcome.POLICY_FAILURE)
    assert (trajectory.program is not None) == (trajectory.outcome is Outcome.PENDING) == (not trajectory.reason)
    assert trajectory.termination is not Termination.ERROR
    assert 1 <= len(trajectory.turns) == len(engine.calls) <= profile.max_turns
    assert trajectory.tool_calls <= profile.max_tool_calls
    ledger = trajectory.ledger
    assert len(ledger) - ledger.spans[0].end <= profile.max_response_tokens
    assert [span.kind for span in ledger.spans].count(SpanKind.PROMPT) == 1
    sampled = [token for token, mine in zip(ledger.tokens, ledger.policy_mask, strict=True) if mine]
    assert len(sampled) == ledger.policy_tokens <= profile.max_turns * profile.max_turn_tokens
