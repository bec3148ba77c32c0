"""The chat template's tokens, and the ledger that they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from agent_fakes import CHATML, OPENING, SEARCH_IMAGES, STRIPPING, answer, byte_tokenizer, call, play
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from genevolve_ray.agent.chat import ChatFormat
from genevolve_ray.agent.profile import PROFILES, prompt_messages
from genevolve_ray.records.ledger import SpanKind
from genevolve_ray.records.trajectory import Outcome, Trajectory

FORMAT = ChatFormat(byte_tokenizer(CHATML))
TURNS = [call("search", queries=["heron"]), "no action", SEARCH_IMAGES, answer()]
ROOMY = PROFILES["release"].model_copy(update={"max_prompt_tokens": 9000})  # One byte is one token here.


def rendered(chat: ChatFormat, trajectory: Trajectory, turns: Sequence[str], tools: dict[str, Any]) -> list[int]:
    """Return the template's tokens of the whole conversation, by the template alone."""
    messages = prompt_messages(trajectory.prompt, ROOMY, tools)
    for text, turn in zip(turns, trajectory.turns, strict=True):
        messages.append({"role": "assistant", "content": text})
        if turn.observation:
            messages.append({"role": "user", "content": turn.observation})
    text = chat.tokenizer.apply_chat_template(messages, tokenize=False)
    return list(chat.tokenizer.encode(text.removesuffix("\n"), add_special_tokens=False))


async def test_the_ledger_equals_the_template_where_it_keeps_thinking(tools: dict[str, Any]) -> None:
    trajectory = await play(TURNS, ROOMY, tools, chat=FORMAT)
    assert trajectory.outcome is Outcome.PENDING
    assert trajectory.ledger.tokens == rendered(FORMAT, trajectory, TURNS, tools)


async def test_a_stripping_template_differs_by_the_earlier_thinking_only(tools: dict[str, Any]) -> None:
    """A template that strips earlier thinking rewrites history before each turn.

    The ledger keeps the thinking: the engine sampled every turn on a context that still held it; log-probs recomputed
    on a rewritten context would not be those of the behaviour policy. Keeping also leaves the KV cache of earlier turns
    valid. So the ledger, not the template's rendering of the finished conversation, is what must be trained on.
    """
    chat = ChatFormat(byte_tokenizer(STRIPPING))
    trajectory = await play(TURNS, ROOMY, tools, chat=chat)
    kept, stripped = trajectory.ledger.tokens, rendered(chat, trajectory, TURNS, tools)
    thinking = [t.partition("</think>") for t in TURNS[:-1]]
    removed = sum(len(head) + len(mark) for head, mark, _ in thinking if mark)
    assert removed > 0
    assert len(kept) - len(stripped) == removed
    assert kept == rendered(FORMAT, trajectory, TURNS, tools)


async def test_the_engine_is_shown_exactly_the_ledger_before_each_turn(tools: dict[str, Any]) -> None:
    from agent_fakes import ScriptedEngine

    engine = ScriptedEngine(FORMAT, TURNS)
    ledger = (await play(TURNS, ROOMY, tools, chat=FORMAT, engine=engine)).ledger
    starts = [span.start for span in ledger.spans if span.kind is SpanKind.THINK or span.kind is SpanKind.TEXT]
    assert [seen for seen, _, _ in engine.calls] == [ledger.tokens[:start] for start in starts]


def test_a_turn_that_did_not_end_itself_is_closed_by_the_template() -> None:
    ended, cut = FORMAT.observation_ids("hi", ended=True), FORMAT.observation_ids("hi", ended=False)
    assert cut == [FORMAT.end_of_turn_id, *ended]
    assert FORMAT.decode(ended) == "\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_prompt_ids_are_the_templates_own() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    expected = FORMAT.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert FORMAT.prompt_ids(messages) == expected


def test_a_template_without_an_end_of_turn_token_is_refused() -> None:
    with pytest.raises(ValueError, match="end an assistant turn"):
        ChatFormat(byte_tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"))


def test_thinking_opened_by_the_template_belongs_to_the_turn() -> None:
    chat = ChatFormat(byte_tokenizer(OPENING))
    tokens = [*chat.tokenizer.encode('why</think><answer>{"a": 1}</answer>'), chat.end_of_turn_id]
    assert chat.turn_text(tokens).startswith("<think>")
    assert [(kind, chat.decode(part)) for kind, part in chat.split_turn(tokens)] == [
        (SpanKind.THINK, "why</think>"),
        (SpanKind.ANSWER, '<answer>{"a": 1}</answer><|im_end|>'),
    ]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (SEARCH_IMAGES, [SpanKind.THINK, SpanKind.TOOL_CALL]),
        (answer(), [SpanKind.THINK, SpanKind.ANSWER]),
        ("<answer>broken</answer>", [SpanKind.ANSWER]),
        ("<think>only", [SpanKind.TEXT]),
        ("words", [SpanKind.TEXT]),
        ("<think>a</think>words", [SpanKind.THINK, SpanKind.TEXT]),
        ("<think>Grüße 🦩</think>\n<answer>{}</answer>", [SpanKind.THINK, SpanKind.ANSWER]),
    ],
)
def test_a_turn_is_cut_by_its_tags(text: str, kinds: list[SpanKind]) -> None:
    tokens = [*FORMAT.tokenizer.encode(text), FORMAT.end_of_turn_id]
    parts = FORMAT.split_turn(tokens)
    assert [kind for kind, _ in parts] == kinds
    if kinds[0] is SpanKind.THINK:
        assert FORMAT.decode(parts[0][1]).endswith("</think>")


@given(st.lists(st.integers(0, 258), max_size=60))
def test_the_parts_of_any_turn_tile_it(tokens: list[int]) -> None:
    parts = FORMAT.split_turn(tokens)
    assert [token for _, part in parts for token in part] == tokens
    assert all(part for _, part in parts)


GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
DATED = "{% set day = strftime_now('%d %b %Y') %}<|im_start|>system\nToday: {{ day }}\n<|im_end|>\n" + CHATML
SPACED = CHATML.replace("{{ m.content }}<|im_end|>", "{{ m.content }} <|im_end|>")


@pytest.mark.parametrize("special", [True, False])
async def test_a_turn_ends_in_the_templates_own_token(tools: dict[str, Any], special: bool) -> None:
    tokenizer = byte_tokenizer(GEMMA)
    tokenizer.add_tokens([AddedToken("<end_of_turn>", special=special), AddedToken("<start_of_turn>", special=special)])
    chat = ChatFormat(tokenizer)
    assert chat.decode([chat.end_of_turn_id]) == "<end_of_turn>"
    trajectory = await play(TURNS, ROOMY, tools, chat=chat)
    assert trajectory.outcome is Outcome.PENDING
    assert chat.decode(trajectory.ledger.tokens).count("<end_of_turn>") == 2 * len(TURNS)


def test_a_system_message_without_a_place_of_its_own_begins_the_users() -> None:
    tokenizer = byte_tokenizer(GEMMA)
    tokenizer.add_tokens([AddedToken("<end_of_turn>")])
    chat = ChatFormat(tokenizer)
    messages = [{"role": "system", "content": "be brief\n"}, {"role": "user", "content": "draw"}]
    assert "be brief\n\ndraw<end_of_turn>" in chat.decode(chat.prompt_ids(messages))
    assert chat.decode(chat.system_ids("be brief\n")).endswith("<start_of_turn>user\nbe brief\n")


def test_white_space_before_the_end_of_a_turn_is_layout() -> None:
    assert ChatFormat(byte_tokenizer(SPACED)).end_of_turn_id == FORMAT.end_of_turn_id


def test_a_template_prints_the_day_that_it_is_given() -> None:
    chat = ChatFormat(byte_tokenizer(DATED), date="2024-02-29")
    assert chat.dated and "Today: 29 Feb 2024\n" in chat.decode(chat.prompt_ids([{"role": "user", "content": "x"}]))
    assert not FORMAT.dated


def test_a_template_that_fails_or_is_missing_is_an_error_of_one_kind() -> None:
    with pytest.raises(ValueError, match="has no chat template"):
        ChatFormat(byte_tokenizer(""))
    with pytest.raises(ValueError, match="template fails: TemplateError: not for you"):
        ChatFormat(byte_tokenizer("{{ raise_exception('not for you') }}"))


def test_a_place_is_found_in_other_tokens_of_the_same_text() -> None:
    tokens = FORMAT.text_ids("Today: 1 May\nbefore|after")
    assert FORMAT.length_through(tokens, "before|") == len(tokens) - len("after")
    assert FORMAT.length_through(tokens, "missing") is None
    assert FORMAT.length_through(tokens, "") is None


# --- two user messages in a row --------------------------------------------------------------------------------------

MERGING = (
    "{% for m in messages %}{% set same = loop.index0 and messages[loop.index0 - 1].role == m.role %}"
    "{% if same %}\n\n{% else %}<|im_start|>{{ m.role }}\n{% endif %}{{ m.content }}"
    "{% if loop.last or messages[loop.index0 + 1].role != m.role %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if loop.index0 and messages[loop.index0 - 1].role == m.role %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
) + CHATML.partition("{% for m in messages %}")[2]
LAST_ONLY = (
    "{% for m in messages %}{% if loop.last or messages[loop.index0 + 1].role != m.role %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template", [CHATML, MERGING])
def test_two_user_messages_have_the_templates_own_tokens(template: str) -> None:
    form = ChatFormat(byte_tokenizer(template))
    form.check_user_turns()
    opening = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    later = [{"role": "assistant", "content": "a"}, *({"role": "user", "content": text} for text in ("one", "two"))]
    turn = [*form.text_ids("a"), form.end_of_turn_id]
    built = [*form.prompt_ids(opening), *turn, *form.observation_ids("one", "two", ended=True)]
    assert built == form.prompt_ids([*opening, *later])


@pytest.mark.parametrize(
    ("template", "said"),
    [(ALTERNATING, "forbids two user messages in a row: .*roles must alternate"), (LAST_ONLY, "leaves out one of two")],
)
def test_a_template_without_two_user_messages_is_refused(template: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ChatFormat(byte_tokenizer(template)).check_user_turns()
