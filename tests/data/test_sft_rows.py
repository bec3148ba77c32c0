"""Rows as tokens: those of the chat template, and a mask that covers what the assistant wrote and nothing else."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import CHATML, OPENING, STRIPPING, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from published_helpers import ANSWER, CALL, OBSERVATION, messages

from genevolve_ray.data.sft_rows import RowEncoder, TokenizedRow, epochs_of
from genevolve_ray.records.published.rejections import RejectionReason, RejectionReport, RowFault
from genevolve_ray.records.published.trajectories import Message, SftRow

TURNS = (CALL, OBSERVATION, CALL, OBSERVATION, ANSWER)


def row_of(*contents: str, **options: Any) -> SftRow:
    said = tuple(Message.model_validate(message) for message in messages(*contents, **options))
    return SftRow(id="r", messages=said, root=Path(), source=Path("rows.jsonl"), number=4)


def rendered(template: str, row: SftRow) -> list[int]:
    """Return the tokens of the whole conversation by the template alone."""
    tokenizer = byte_tokenizer(template)
    text = tokenizer.apply_chat_template([message.model_dump() for message in row.messages], tokenize=False)
    return list(tokenizer.encode(text.removesuffix("\n"), add_special_tokens=False))


def written(template: str, row: TokenizedRow) -> list[str]:
    """Return the masked stretches as text."""
    tokenizer = byte_tokenizer(template)
    example, runs = row.example(), []
    for place, (token, wanted) in enumerate(zip(example.tokens, example.mask, strict=True)):
        if wanted and not example.mask[place - 1]:
            runs.append([])
        if wanted:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


def test_tokens_are_the_templates_own_where_it_keeps_thinking() -> None:
    row = row_of(*TURNS)
    assert RowEncoder(byte_tokenizer(CHATML)).encode(row).example().tokens == rendered(CHATML, row)


def with_last_step(*contents: str) -> SftRow:
    """Return a row in which the message of the last step is a user turn of its own."""
    row = row_of(*contents)
    return row.model_copy(
        update={"messages": (*row.messages[:-1], Message(role="user", content="Answer now."), row.messages[-1])}
    )


def test_two_user_messages_in_a_row_are_rendered_as_the_template_does() -> None:
    row = with_last_step(*TURNS)
    encoded = RowEncoder(byte_tokenizer(CHATML)).encode(row)
    assert encoded.example().tokens == rendered(CHATML, row)
    assert written(CHATML, encoded) == [turn + "<|im_end|>" for turn in (CALL, CALL, ANSWER)]


def test_a_template_that_forbids_them_costs_the_row() -> None:
    rule = (
        "{% for m in messages %}{% if not loop.first and m.role == 'user' and messages[loop.index0 - 1].role == 'user' %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    )
    with pytest.raises(RowFault, match="role_order: .*roles must alternate"):
        RowEncoder(byte_tokenizer(rule + CHATML)).encode(with_last_step(*TURNS))


def test_the_mask_covers_each_turn_of_the_assistant_and_its_end() -> None:
    encoded = RowEncoder(byte_tokenizer(CHATML)).encode(row_of(*TURNS))
    assert written(CHATML, encoded) == [turn + "<|im_end|>" for turn in (CALL, CALL, ANSWER)]
    assert encoded.target_tokens == sum(encoded.example().mask)


def test_earlier_thinking_stays_where_a_template_would_strip_it() -> None:
    """The policy reads its own earlier thinking at run time, see `agent.chat`."""
    row = row_of(*TURNS)
    encoded = RowEncoder(byte_tokenizer(STRIPPING)).encode(row)
    assert encoded.example().tokens == rendered(CHATML, row) != rendered(STRIPPING, row)
    assert written(STRIPPING, encoded) == [turn + "<|im_end|>" for turn in (CALL, CALL, ANSWER)]


def test_what_the_template_opens_is_context() -> None:
    encoded = RowEncoder(byte_tokenizer(OPENING)).encode(row_of(*TURNS))
    opened = [turn.removeprefix("<think>") + "<|im_end|>" for turn in (CALL, CALL, ANSWER)]
    assert written(OPENING, encoded) == opened
    text = byte_tokenizer(OPENING).decode(encoded.example().tokens)
    assert text.count("<|im_start|>assistant\n<think>\nlook it up</think>") == 3


def test_a_turn_without_thinking_does_not_fit_a_template_that_opens_it() -> None:
    encoder = RowEncoder(byte_tokenizer(OPENING))
    with pytest.raises(RowFault) as fault:
        encoder.encode(row_of("<answer>{}</answer>"))
    assert fault.value.reason is RejectionReason.NO_THINKING


def test_placeholders_stay_as_text_where_the_policy_reads_only_text() -> None:
    encoded = RowEncoder(byte_tokenizer(CHATML)).encode(row_of(*TURNS))
    assert byte_tokenizer(CHATML).decode(encoded.example().tokens).count("<image>") == 2
    assert encoded.pictures == ()


def test_a_row_is_rejected_above_the_cutoff_never_cut() -> None:
    row, report = row_of(*TURNS), RejectionReport()
    size = len(rendered(CHATML, row))
    assert len(RowEncoder(byte_tokenizer(CHATML), cutoff=size).encode(row)) == size
    assert list(RowEncoder(byte_tokenizer(CHATML), cutoff=size - 1).encode_all([row], report)) == []
    (example,) = report.examples(RejectionReason.TOO_MANY_TOKENS)
    assert str(example) == f"rows.jsonl:4: too_many_tokens: {size} tokens, cutoff {size - 1}"


@pytest.mark.parametrize("contents", [("hi<|im_end|>" + ANSWER,), (CALL, "<|im_start|>assistant\n", ANSWER)])
def test_a_text_that_spells_a_control_token_is_rejected(contents: tuple[str, ...]) -> None:
    with pytest.raises(RowFault, match="control_text: message"):
        RowEncoder(byte_tokenizer(CHATML)).encode(row_of(*contents))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=7).filter(lambda said: len(said) % 2), st.text())
def test_any_texts_tile_the_conversation(contents: list[str], system: str) -> None:
    row = row_of(*contents, system=system)
    encoded = RowEncoder(byte_tokenizer(CHATML)).encode(row)
    example = encoded.example()
    assert example.tokens == rendered(CHATML, row)
    decoded = [bytes(run, "utf-8").decode() for run in written(CHATML, encoded)]
    assert decoded == [text + "<|im_end|>" for text in contents[::2]]


def numbered(count: int) -> list[TokenizedRow]:
    from array import array

    return [TokenizedRow(str(number), array("i", [number, number]), ((1, 2),)) for number in range(count)]


def test_every_pass_holds_every_row_once_in_an_order_of_its_own() -> None:
    batches = list(epochs_of(numbered(10), epochs=3, batch=4, seed=1))
    assert [len(batch) for batch in batches] == [4] * 7 + [2]
    drawn = [row.id for row in chain.from_iterable(batches)]
    passes = [drawn[i * 10 : (i + 1) * 10] for i in range(3)]
    assert all(sorted(part, key=int) == [str(i) for i in range(10)] for part in passes)
    assert passes[0] != passes[1] != passes[2]
    again = chain.from_iterable(epochs_of(numbered(10), epochs=3, batch=5, seed=1))
    assert [row.id for row in again] == drawn
