"""The example and the taxonomy of `docs/data_build.md` work as they are written."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from genevolve_ray.data.build.coverage import UncoveredReason
from genevolve_ray.data.build.recipes import plan_recipes
from genevolve_ray.data.build.rules import PromptRule
from genevolve_ray.data.build.taxonomy import load_taxonomy, read_taxonomy

PAGE = (Path(__file__).parents[3] / "docs/data_build.md").read_text(encoding="utf-8")


def block(start: str) -> str:
    """Return the fenced block that begins with some text."""
    (found,) = re.findall(rf"```\w*\n({re.escape(start)}.*?)```", PAGE, re.DOTALL)
    return str(found)


def test_the_example_builds_requests() -> None:
    names: dict[str, object] = {}
    exec(block("import asyncio"), names)
    table, uncovered = names["table"], names["plan"].coverage.uncovered  # type: ignore[attr-defined]
    assert table.num_rows == 100  # type: ignore[attr-defined]
    assert uncovered == ()


def test_the_taxonomy_is_valid() -> None:
    taxonomy = read_taxonomy(yaml.safe_load(block("name: ships")), "page")
    assert {r.family for r in plan_recipes(taxonomy, seed=1, rows=20).recipes()} == {"ship_portrait", "harbor_scene"}


def test_the_page_names_every_rule_and_reason() -> None:
    assert [name for name in (*PromptRule, *UncoveredReason) if f"`{name}`" not in PAGE] == []


def test_the_page_states_the_pairs_of_the_pool() -> None:
    coverage = plan_recipes(load_taxonomy("genevolve"), seed=1).coverage
    assert f"{coverage.pairs} allowed pairs. The {len(coverage.uncovered)} that no row has" in PAGE
