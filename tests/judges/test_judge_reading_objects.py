"""JSON comes out of whatever a model puts around it; what is no object is told."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from genevolve_ray.judges.reading import after_reasoning, is_quotation, salvage_object

WANTED = {"a": ["x, }", 'say "hi",]'], "b": {"c": 1}}
TEXT = json.dumps(WANTED)


@pytest.mark.parametrize(
    "answer",
    [
        TEXT,
        f"```json\n{TEXT}\n```",
        f"Here it is:\n{TEXT}\nHope this helps!",
        f"<think>perhaps {{a: 1}}?</think>{TEXT}",
        f"<think>perhaps one</think>\n{TEXT}",
        TEXT.replace('"c": 1}', '"c": 1,\n}'),
        TEXT.replace("],", " , ],"),
        json.dumps(WANTED, indent=2),
    ],
)
def test_the_object_is_found(answer: str) -> None:
    assert salvage_object(answer) == WANTED


@pytest.mark.parametrize("text", ["x", "<think>y</think>x", "y</think>z</think>x"])
def test_what_follows_the_last_reasoning_counts(text: str) -> None:
    assert after_reasoning(text) == "x"


def test_line_breaks_inside_strings_are_let_through() -> None:
    assert salvage_object('{"a": "two\nlines"}') == {"a": "two\nlines"}


@pytest.mark.parametrize(
    "answer", ["", "no", "}{", "{", '{"a": ', '{"a" 1}', "{1: 2}", "[1, 2]", "{" * 50_000 + "}" * 50_000]
)
def test_what_is_no_object_is_an_error(answer: str) -> None:
    with pytest.raises(ValueError):
        salvage_object(answer)


@given(st.text(max_size=80))
def test_any_text_is_an_object_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(salvage_object(text), dict)


@given(
    st.dictionaries(st.text(max_size=5), st.text(max_size=10) | st.lists(st.text(max_size=10), max_size=3), max_size=4)
)
@example({"": "</think>"})
@example({"a": "<think>", "b": ["</think>"]})
def test_good_json_is_left_as_it_is(value: dict[str, object]) -> None:
    assert salvage_object(json.dumps(value)) == value


@pytest.mark.parametrize(
    "answer", [f"<think>perhaps {TEXT}", f"Well. <think>\n{TEXT}\n", f"<think>a</think><think>{TEXT}"]
)
def test_an_object_inside_open_reasoning_is_no_answer(answer: str) -> None:
    with pytest.raises(ValueError):
        salvage_object(answer)


def test_open_reasoning_leaves_nothing() -> None:
    assert after_reasoning("<think>Consistency: 2") == after_reasoning("<think>a</think>\n<think>Consistency: 2") == ""


def test_a_quotation_is_known_by_its_words_also_where_a_text_in_it_names_the_end_of_reasoning() -> None:
    shown = '{"faithfulness": 1, "rationale": "</think>"}'
    assert is_quotation(f"The program says:\n{shown}\n", f"program: {shown}")
