"""What the scores of a folder leave in doubt is noted after them."""

from __future__ import annotations

from typing import Any

from genevolve_ray.commands.judged import doubts
from genevolve_ray.records.published.cases import PROVENANCE, ResultRow
from genevolve_ray.renderers.prompt_limits import CUT_PROMPTS


def row(number: int, **provenance: Any) -> ResultRow:
    return ResultRow.read({"id": str(number), "question": "a lamp", PROVENANCE: provenance})


def test_clipped_grades_and_cut_prompts_are_noted() -> None:
    usage = {"render": {CUT_PROMPTS: {"images": 1}, "renderer": {"calls": 1}}}
    rows = [row(1, flags=["clipped:aesthetics"]), row(2, usage=usage), row(3, flags=["off-grid:aesthetics"]), row(4)]
    clipped, cut = doubts(rows)
    assert clipped.startswith("25% of the verdicts") and cut.startswith("1 prompts are longer")


def test_nothing_else_is() -> None:
    assert doubts([]) == doubts([row(1), row(2, flags="clipped:x", usage=[1])]) == []
