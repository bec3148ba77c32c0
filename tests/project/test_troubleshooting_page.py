"""`docs/troubleshooting.md` explains every error message of the package, and no message that there is not."""

from __future__ import annotations

import ast

import pytest

from docs.messages import LEAST_LETTERS, Entry, entries, explained, letters, messages, texts

MOST_OF_AN_ENTRY = 25
"""Messages that one entry may explain: one that explains more says too little."""


def test_the_package_has_messages() -> None:
    found = {message.kind for message in messages()}
    assert len(messages()) > 900
    assert {"UserFault", "ConfigError", "StoreError", "InfraFailure", "GatewayRefusal", "RowFault"} <= found
    assert "ToolArgumentError" not in found  # The policy reads these.


def test_every_message_is_explained() -> None:
    missing = [message for message in messages() if explained(message.template) is None]
    assert [f"{message.place}: {message.template}" for message in missing] == [], "add a row to docs/troubleshooting.md"


def test_every_entry_explains_a_message() -> None:
    templates = {message.template for message in messages()}
    found = {entry.template: sum(map(bool, map(entry.pattern.fullmatch, templates))) for entry in entries()}
    assert [template for template, number in found.items() if number == 0] == []
    assert [template for template, number in found.items() if number > MOST_OF_AN_ENTRY] == []


def test_an_entry_has_words_and_a_remedy() -> None:
    assert [entry.template for entry in entries() if letters(entry.template) < LEAST_LETTERS - 1] == []
    assert [entry.template for entry in entries() if len(entry.remedy.split()) < 4] == []


def test_no_entry_stands_in_two_rows() -> None:
    templates = [entry.template for entry in entries()]
    assert sorted({one for one in templates if templates.count(one) > 1}) == []


def test_an_entry_matches_the_whole_message() -> None:
    entry = Entry("no run at …", "", "")
    assert entry.pattern.fullmatch("no run at …: it is gone")
    assert not entry.pattern.fullmatch("there is no run at …")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("'a whole text'", ["a whole text"]),
        ("f'{path}: no such file'", ["…: no such file"]),
        ("'one ' f'{two}' ' three'", ["one … three"]),
        ("f'no {a}' + ('.' if b else ' here')", ["no ….", "no … here"]),
        ("anything(1)", ["…"]),
    ],
)
def test_a_template_is_read_from_the_source(expression: str, expected: list[str]) -> None:
    assert texts(ast.parse(expression, mode="eval").body, None) == expected


def test_a_text_with_a_name_is_found_where_it_is_assigned() -> None:
    function = ast.parse("def f():\n    told = f'{x} is lost'\n    raise StoreError(told)").body[0]
    call = next(node for node in ast.walk(function) if isinstance(node, ast.Call))
    assert texts(call.args[0], function) == ["… is lost"]
