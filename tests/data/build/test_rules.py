"""Rules of written prompts: each broken rule is found, and good prompts pass."""

from __future__ import annotations

from typing import Any

import pytest
from prompt_fakes import PROMPT, a_draft, a_row

from genevolve_ray.data.build.rules import PromptRule, PromptRules, RulesConfig, mentions, name_key, private_values
from genevolve_ray.data.build.taxonomy import load_taxonomy

TAXONOMY = load_taxonomy("genevolve")
RULES = PromptRules(RulesConfig(), TAXONOMY)


def test_a_good_prompt_breaks_no_rule() -> None:
    assert RULES.faults(a_draft(), a_row()) == []


@pytest.mark.parametrize(
    ("draft", "row", "rule", "value"),
    [
        ({"prompt": "  "}, {}, PromptRule.EMPTY, "there is no prompt"),
        ({"prompt": "Draw Farol do Cabo."}, {}, PromptRule.WORDS, "4 words instead of 20 to 110"),
        ({"prompt": PROMPT + " very" * 90}, {}, PromptRule.WORDS, "instead of 20 to 110"),
        ({"prompt": PROMPT + "\u200b"}, {}, PromptRule.CONTROL_TEXT, "hidden character U+200B"),
        ({"prompt": PROMPT + " <tool_call>"}, {}, PromptRule.CONTROL_TEXT, "a tag of the protocol"),
        ({"prompt": PROMPT + " Use image_search."}, {}, PromptRule.TOOL_NAME, "'image_search'"),
        ({"prompt": PROMPT + " Use Text Rendering."}, {}, PromptRule.TOOL_NAME, "'Text Rendering'"),
        ({"prompt": PROMPT + " Use the search tool."}, {}, PromptRule.TOOL_NAME, "'search tool'"),
        ({}, {"entities": ["Torre Velha"]}, PromptRule.ENTITY, "'Torre Velha' is not mentioned"),
        ({"image_query": " "}, {}, PromptRule.IMAGE_QUERY, "is empty, and the recipe needs this search"),
        ({"text_query": ""}, {}, PromptRule.TEXT_QUERY, "is empty, and the recipe needs this search"),
        ({}, {"text_search": False}, PromptRule.TEXT_QUERY, "the recipe needs no such search"),
        ({"visible": ["four boats", ""]}, {}, PromptRule.VISIBLE, "1 features instead of at least 2"),
        ({"image_query": "www.example.org"}, {}, PromptRule.PRIVATE, "link"),
        ({"people": ["Ana Sousa"]}, {}, PromptRule.PERSON, "family architecture_landmark names no persons"),
        ({"prompt": PROMPT + " Dr. Sousa waves."}, {}, PromptRule.PERSON, "'Dr. Sousa'"),
        (
            {"people": ["Ana Sousa"]},
            {"family": "public_figure_longtail"},
            PromptRule.PERSON,
            "'Ana Sousa' is none of the entities",
        ),
    ],
)
def test_a_broken_rule_is_named_with_its_value(
    draft: dict[str, Any], row: dict[str, Any], rule: PromptRule, value: str
) -> None:
    found = RULES.faults(a_draft(**draft), a_row(**row))
    assert [fault.rule for fault in found] == [rule]
    assert value in found[0].value
    assert str(found[0]).startswith(f"{rule.value}: ")


def test_a_person_may_be_named_where_the_family_allows_it_and_the_row_is_about_them() -> None:
    row = a_row(family="public_figure_longtail", entities=["Ana Sousa"])
    assert RULES.faults(a_draft(prompt=PROMPT + " Ana Sousa waves.", people=["Sousa"]), row) == []


@pytest.mark.parametrize(
    "text", ["a search and rescue helicopter", "skilled hands", "an attribute of a king", "material, consistency"]
)
def test_ordinary_words_are_no_names_of_tools(text: str) -> None:
    assert RULES.faults(a_draft(prompt=f"{PROMPT} Add {text}."), a_row()) == []


def test_other_names_can_be_forbidden() -> None:
    rules = PromptRules(RulesConfig(forbidden_names=("browse_web",)), TAXONOMY)
    assert [f.rule for f in rules.faults(a_draft(prompt=PROMPT + " Browse-web."), a_row())] == [PromptRule.TOOL_NAME]
    assert rules.faults(a_draft(prompt=PROMPT + " Use image_search."), a_row()) == []
    assert PromptRules(RulesConfig(forbidden_names=()), TAXONOMY).faults(a_draft(), a_row()) == []


def test_a_family_of_another_taxonomy_is_an_error() -> None:
    with pytest.raises(ValueError, match="row prompt-1: taxonomy 'genevolve' has no family 'ships'"):
        RULES.faults(a_draft(), a_row(family="ships"))


def test_bounds_that_no_prompt_satisfies_are_an_error() -> None:
    with pytest.raises(ValueError, match="min_words=30 and max_words=20"):
        RulesConfig(min_words=30, max_words=20)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to ana.sousa+x@mail.example.org", {"e-mail address", "link"}),
        ("follow @ana_sousa", {"handle"}),
        ("see https://example.invalid/a", {"link"}),
        ("see example.com", {"link"}),
        ("call +351 21 123 45 67", {"telephone number"}),
        ("call (021) 123-4567-89", {"telephone number"}),
        ("on 10.0.0.12", {"machine address"}),
        ("pay to PT50000201231234567890154", {"account"}),
        ("Bearer abcdefghijklmnop", {"secret"}),
        ("built 1889-1931, 1,200 steps, 2026-11-29, f/2.8, 1:250000, No. 12345678", set()),
        ("a 16:9 view at 10.30 of 3.5 m, 50 mm lens", set()),
    ],
)
def test_private_values_are_found_and_ordinary_numbers_are_not(text: str, kinds: set[str]) -> None:
    assert set(private_values(text)) == kinds


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        ("the lamps of MALMO", "Malmö", True),
        ("Farol-do-Cabo's light", "Farol do Cabo", True),
        ("a carport", "Car", False),
        ("画北京的塔", "北京", True),
        ("anything", "—", False),
    ],
)
def test_a_name_is_mentioned_as_whole_words(text: str, name: str, found: bool) -> None:
    assert mentions(text, name) is found


def test_marks_of_other_scripts_distinguish_names() -> None:
    assert name_key("か") != name_key("が")
    assert name_key("Ｆａｒｏｌ_do  Cabo!") == "farol do cabo"
