"""Rows of the pipeline: stable ids, the convention of rejections, and their columns."""

from __future__ import annotations

import hashlib

import pytest

from genevolve_ray.data.build.rows import (
    OUTAGE,
    BuildRow,
    NamedEntity,
    PromptRow,
    Recipe,
    arrow_schema,
    count_rejections,
    from_table,
    is_open,
    kept,
    stable_id,
    to_table,
)
from genevolve_ray.records.request import EvalType


def a_prompt(**changes: object) -> PromptRow:
    values = {
        "id": "p-1",
        "recipe_id": "r-1",
        "eval_type": EvalType.KNOWLEDGE,
        "family": "landmark",
        "gap": "date",
        "anchor": "whole",
        "requirement": "text",
        "secondary": ("material",),
        "difficulty": "hard",
        "prompt": "Draw it.",
        "meta": {"truth": {"count": 3, "names": ["a", "b"]}},
    }
    return PromptRow.model_validate(values | changes)


def test_an_id_depends_on_the_content_alone() -> None:
    canonical = hashlib.sha256(rb'[1,{"a":1,"b":"\u00e9"}]').hexdigest()[:16]
    assert stable_id("r", 1, {"a": 1, "b": "é"}) == stable_id("r", 1, {"b": "é", "a": 1}) == f"r-{canonical}"
    assert stable_id("r", 1) != stable_id("r", 2)


def test_the_first_rejection_of_a_row_stands() -> None:
    row = a_prompt().reject("prompts", "too_long", "92 words").reject("split", "leak")
    assert row.rejected is not None and (row.rejected.stage, row.rejected.reason) == ("prompts", "too_long")


def test_an_outage_is_open_for_its_own_stage_alone() -> None:
    row = a_prompt().reject("prompts", OUTAGE, "503")
    assert is_open(row, "prompts") and not is_open(row, "split")
    assert row.reject("prompts", "too_long").rejected != row.rejected
    assert row.reject("split", "leak").rejected == row.rejected


def test_rejected_rows_stay_and_are_counted() -> None:
    rows = [a_prompt(), a_prompt().reject("prompts", "too_long"), a_prompt().reject("prompts", "too_long")]
    assert len(kept(rows)) == 1
    assert count_rejections(rows) == {("prompts", "too_long"): 2}


@pytest.mark.parametrize(
    "row",
    [
        a_prompt(),
        a_prompt(prompt="", meta={}).reject("prompts", "url", "url: www.x"),
        NamedEntity(id="e-1", name="Ostankino", popularity=12.5),
        NamedEntity(id="e-2", name="北京"),
        Recipe.model_validate({name: value for name, value in dict(a_prompt()).items() if name in Recipe.model_fields}),
    ],
)
def test_a_row_survives_json_and_arrow(row: BuildRow) -> None:
    kind = type(row)
    assert kind.model_validate_json(row.model_dump_json()) == row
    table = to_table([row], kind)
    assert table.schema.equals(arrow_schema(kind))
    assert from_table(table, kind) == [row]


def test_an_empty_table_has_the_columns_of_its_kind() -> None:
    assert to_table([], Recipe).schema.names == list(Recipe.model_fields)


def test_a_table_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="schema of Recipe.*popularity"):
        from_table(to_table([], NamedEntity), Recipe)
    with pytest.raises(TypeError, match="p-1 is a PromptRow, not a Recipe"):
        to_table([a_prompt()], Recipe)


def test_a_row_with_a_prompt_is_a_request() -> None:
    request = a_prompt().as_request()
    assert (request.id, request.prompt, request.category, request.meta) == (
        "p-1",
        "Draw it.",
        "landmark",
        a_prompt().meta,
    )
    with pytest.raises(ValueError, match="p-1 has no prompt"):
        a_prompt(prompt="").as_request()
