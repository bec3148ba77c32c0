"""The parser: every text has a typed outcome."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genevolve_ray.agent.parser import (
    MAX_DEPTH,
    FinalAnswer,
    ToolCall,
    TurnError,
    TurnFault,
    dissect,
    parse_program,
    parse_turn,
)
from genevolve_ray.records.program import Program, ProgramError, ProgramFault

CALL = '<tool_call>{"name": "search", "arguments": {"queries": ["x"]}}</tool_call>'
PIECES = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<answer>",
    "</answer>",
    '{"name":',
    "[",
    "{",
    '"',
    "\\ud800",
]
soup = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=12).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda c: st.lists(c) | st.dictionaries(st.text(), c),
)


def fault(text: str) -> TurnFault:
    parsed = parse_turn(text)
    assert isinstance(parsed, TurnError), parsed
    return parsed.fault


def test_a_call_with_thinking_is_read() -> None:
    parsed = parse_turn(f"<think>why <answer>?</think>\n{CALL}\n")
    assert parsed == ToolCall("search", {"queries": ["x"]})


def test_thinking_is_optional() -> None:
    assert isinstance(parse_turn(CALL), ToolCall)


def test_an_answer_is_read_raw() -> None:
    assert parse_turn('<answer>{"gen_prompt": 1}</answer>') == FinalAnswer({"gen_prompt": 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", TurnFault.EMPTY),
        (" \n", TurnFault.EMPTY),
        ("<think>never ends" + CALL, TurnFault.UNCLOSED_THINK),
        ("just words", TurnFault.NO_ACTION),
        ("<think>done</think>", TurnFault.NO_ACTION),
        ("<tool_call>{}", TurnFault.NO_ACTION),
        (CALL + CALL, TurnFault.MANY_ACTIONS),
        (CALL + "<answer>{}</answer>", TurnFault.MANY_ACTIONS),
        ("well, " + CALL, TurnFault.STRAY_TEXT),
        (CALL + " thanks", TurnFault.STRAY_TEXT),
        ("<tool_call>search</tool_call>", TurnFault.BAD_JSON),
        ('<tool_call>{"name": NaN}</tool_call>', TurnFault.BAD_JSON),
        ('<tool_call>{"name": 1e999}</tool_call>', TurnFault.BAD_JSON),
        ('<tool_call>{"name": "\\ud800"}</tool_call>', TurnFault.BAD_JSON),
        ("<tool_call>" + '{"a":' * 100_000 + "</tool_call>", TurnFault.BAD_JSON),
        ('<tool_call>{"a": ' + "9" * 5000 + "}</tool_call>", TurnFault.BAD_JSON),
        ('<tool_call>{"a": 1, "a": 2}</tool_call>', TurnFault.DUPLICATE_KEY),
        ("<tool_call>[]</tool_call>", TurnFault.NOT_AN_OBJECT),
        ('<tool_call>{"name": "search"}</tool_call>', TurnFault.BAD_CALL),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', TurnFault.BAD_CALL),
        ('<tool_call>{"name": "s", "arguments": {}, "x": 1}</tool_call>', TurnFault.BAD_CALL),
    ],
)
def test_each_fault_has_its_name(text: str, expected: TurnFault) -> None:
    assert fault(text) is expected


def test_nesting_is_bounded() -> None:
    def nested(levels: int) -> str:
        return '<answer>{"a": ' + "[" * (levels - 1) + "]" * (levels - 1) + "}</answer>"

    assert isinstance(parse_turn(nested(MAX_DEPTH)), FinalAnswer)
    assert fault(nested(MAX_DEPTH + 1)) is TurnFault.BAD_JSON


def test_a_broken_answer_is_final_and_a_broken_call_is_not() -> None:
    answer, call = parse_turn("<answer>{</answer>"), parse_turn("<tool_call>{</tool_call>")
    assert isinstance(answer, TurnError)
    assert answer.final
    assert isinstance(call, TurnError)
    assert not call.final


@given(soup)
def test_any_text_has_a_typed_outcome(text: str) -> None:
    assert isinstance(parse_turn(text), ToolCall | FinalAnswer | TurnError)


@given(st.binary(max_size=64))
def test_any_bytes_inside_an_action_have_a_typed_outcome(data: bytes) -> None:
    text = data.decode(errors="replace")
    for tag in ("tool_call", "answer"):
        assert isinstance(parse_turn(f"<{tag}>{text}</{tag}>"), ToolCall | FinalAnswer | TurnError)


@given(soup)
def test_the_thinking_ends_inside_the_text(text: str) -> None:
    assert 0 <= dissect(text).think_end <= len(text)


@given(st.text(), st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers() | st.booleans()))
def test_what_is_written_is_read(name: str, arguments: dict[str, Any]) -> None:
    call = json.dumps({"name": name, "arguments": arguments})
    if "tool_call>" in call or "answer>" in call or any("\ud800" <= c <= "\udfff" for c in name):
        return
    assert parse_turn(f"<think>t</think><tool_call>{call}</tool_call>") == ToolCall(name, arguments)


def program(prompt: str = "as in the first reference image", ids: tuple[str, ...] = ("IMG_001",)) -> dict[str, Any]:
    return {"gen_prompt": prompt, "reference_images": [{"img_id": i, "note": "n"} for i in ids]}


def program_fault(obj: object, max_references: int = 2) -> ProgramFault:
    with pytest.raises(ProgramError) as error:
        parse_program(obj, {"IMG_001", "IMG_002", "IMG_003"}, max_references)
    return error.value.fault


def test_a_program_is_built() -> None:
    built = parse_program(program(), {"IMG_001"}, 2)
    assert [r.img_id for r in built.reference_images] == ["IMG_001"]


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (None, ProgramFault.NOT_JSON),
        ([], ProgramFault.NOT_JSON),
        ({}, ProgramFault.FIELDS),
        (program() | {"seed": 1}, ProgramFault.FIELDS),
        ({"gen_prompt": 1, "reference_images": []}, ProgramFault.FIELDS),
        ({"gen_prompt": "x", "reference_images": {}}, ProgramFault.FIELDS),
        ({"gen_prompt": "x", "reference_images": ["IMG_001"]}, ProgramFault.FIELDS),
        ({"gen_prompt": "x", "reference_images": [{"img_id": 1, "note": ""}]}, ProgramFault.FIELDS),
        ({"gen_prompt": "x", "reference_images": [{"img_id": "IMG_001", "weight": 1}]}, ProgramFault.FIELDS),
        (program("  "), ProgramFault.EMPTY_PROMPT),
        (program("x", ()), ProgramFault.REFERENCE_COUNT),
        (program("x", ("IMG_001", "IMG_002", "IMG_003")), ProgramFault.REFERENCE_COUNT),
        (program(ids=("cat.png",)), ProgramFault.UNKNOWN_REFERENCE),
        (program(ids=("IMG_009",)), ProgramFault.UNKNOWN_REFERENCE),
        (program(ids=("IMG_001", "IMG_001")), ProgramFault.DUPLICATE_REFERENCE),
        (program(ids=("IMG_002", "IMG_001")), ProgramFault.UNSORTED),
        (program("IMG_001 as the first reference image"), ProgramFault.LEAKED_ID),
        (program("https://x.org the first reference image"), ProgramFault.LEAKED_LINK),
        (program("the second reference image"), ProgramFault.ORDINALS),
        (program("no reference named"), ProgramFault.ORDINALS),
    ],
)
def test_each_program_fault_has_its_name(obj: object, expected: ProgramFault) -> None:
    assert program_fault(obj) is expected


@given(values)
def test_any_value_is_a_program_or_a_typed_fault(value: object) -> None:
    for obj in (
        value,
        {"gen_prompt": value, "reference_images": [value]},
        {"gen_prompt": "x", "reference_images": value},
    ):
        try:
            assert isinstance(parse_program(obj, {"IMG_001"}), Program)
        except ProgramError as error:
            assert isinstance(error.fault, ProgramFault)
